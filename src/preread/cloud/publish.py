"""The cloud's story: a document becomes an immutable, streamable context.

take up what was begun → read a batch → encode its chunks → put segments → note them; when all is read: measure what
they cost → put manifest → put name. Until the name is put, nobody sees any of it; if anything fails before, what was
published earlier stays as it was, and whoever begins the same goes on behind the last chunk that was noted.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import msgspec
import numpy as np
import numpy.typing as npt

from preread.cloud.chunks import GROUP_LAYERS, chunked
from preread.cloud.document import Tokens, check
from preread.cloud.encode import sized, stored
from preread.cloud.events import Mode, Published, Request
from preread.cloud.profiles import Stored
from preread.cloud.quality import Found, as_stated, measure, measured_rung, stated, windows
from preread.cloud.reading import NO_HELP, Help, Reading, read_context
from preread.cloud.resume import Record, restored, taken_up
from preread.codec.base import Codec
from preread.codec.ladder import codec, ladder, needs_profile
from preread.codec.profile import Prepared, prepare
from preread.codec.profile import Quality as Measured
from preread.codec.state import state_codec_beside
from preread.engine.llamacpp import BATCH_TOKENS, LlamaCpp
from preread.engine.model import engine_version
from preread.engine.session import batches
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.store.claims import Claimed
from preread.store.objects import Objects
from preread.values import Fingerprint, Form, KVBlock, Layer, ObjectRef, Span, StateBlock, geometry_of
from preread.wire import draft as drafts
from preread.wire import manifest as manifests
from preread.wire import tokens as token_objects
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id
from preread.wire.draft import Row, RungCodec, Work
from preread.wire.fields import SizedId
from preread.wire.manifest import LOSSLESS, Group, Manifest, Model, Origin, Quality, Rung
from preread.wire.parts import groups_of, numbers

Report = Callable[[str, int, int], None]
"""Told a stage ("prefill" or "encode"), how many tokens of it are done, and how many there are; from any thread."""


_ALL_THERE = "all of it was stored before: nothing was read"
_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Owner:
    """Who makes something, by a name that nobody else has, and names of those that are known to have `gone`."""

    name: str = ""
    gone: frozenset[str] = frozenset()


NOBODY = Owner()
"""Gets a new name."""


async def publish(
    store: Objects,
    engine: LlamaCpp,
    worker: Worker,
    name: str,
    tokens: Tokens,
    form: Form,
    rungs: tuple[str, ...] | None,
    progress: Report,
    profile: Stored | None = None,
    help: Help = NO_HELP,
    mode: Mode = "exact",
) -> Published:
    """Make the KV of `tokens` available under `name`, as `make` says, which has the arguments and errors.

    While somebody else makes the same, that is waited for.
    """
    while True:
        try:
            made = await make(store, engine, worker, name, tokens, form, rungs, progress, profile, help, mode)
        except Claimed:
            progress("wait", 0, 1)
            await asyncio.sleep(_LOOK_AGAIN_S)
        else:
            await store.put_name(made.entry)
            return made


async def make(
    store: Objects,
    engine: LlamaCpp,
    worker: Worker,
    name: str,
    tokens: Tokens,
    form: Form,
    rungs: tuple[str, ...] | None,
    progress: Report,
    profile: Stored | None = None,
    help: Help = NO_HELP,
    mode: Mode = "exact",
    owner: Owner = NOBODY,
) -> Published:
    """Store all that `name` is to lead to. What somebody made before, or began to, is not made again.

    Args:
        store, engine, worker: where to; the model; its thread.
        name, tokens, form: the context.
        rungs: in which qualities, and what these refine; None: lossless, and all that the profile knows.
        progress: is told how far it is.
        profile: of this model; some rungs need it.
        help, mode: who helps to read it, and how, if the gate lets it. What is read with help is always made anew.
        owner: who makes it, and who is known to have ended.

    Raises:
        Claimed: somebody else makes the same just now.
        UsageError: the name is not one, the document leaves no room in the model's window, or a rung is unknown.
        EngineError: the model's KV cannot be exported, or the engine failed.
        RemoteError: the store cannot be written; the catalogue is as it was.
    """
    started = time.monotonic()
    check(engine, name, len(tokens))
    codecs = await asyncio.to_thread(codecs_for, engine.embeddings, tokens, rungs, profile)
    model = Model(engine.spec.name, engine.spec.fingerprint, engine.spec.layers)
    work = work_of(model, tokens, form, codecs, profile, engine_version())
    spans = windows(len(tokens), engine.spec.window_tokens, engine.scored_tokens) if needed(rungs, model.layers) else []
    making = _Making(store, engine, worker, tokens, codecs, work, profile, spans, progress)
    if mode != "exact" and help != NO_HELP:
        manifest, notes = await making.with_help(help, mode)
        ref = sized(await store.put("manifests", manifests.dumps(manifest)))
        return _published(name, engine, manifest, ref, started, notes)
    async with store.claims.held(drafts.digest(work), owner.name, owner.gone):
        record = await taken_up(store, work)
        if record.manifest is not None:
            return _published(name, engine, *record.manifest, started, (_ALL_THERE,))
        manifest = await making.alone(record)
        ref = sized(await store.put("manifests", manifests.dumps(manifest)))
        await record.finish(ref)
    return _published(name, engine, manifest, ref, started, ())


@dataclass(frozen=True, slots=True)
class _Making:
    """One context's chunks are read, encoded and stored one after the other, and then measured.

    `spans`: where what a rung costs is measured, if any is.
    """

    store: Objects
    engine: LlamaCpp
    worker: Worker
    tokens: Tokens
    codecs: tuple[Codec, ...]
    work: Work
    profile: Stored | None
    spans: Sequence[Span]
    progress: Report

    async def alone(self, record: Record) -> Manifest:
        """Read what the record does not have, batch by batch, and note each chunk.

        From the lossless segments that are stored the engine goes on; without these it reads from the start, and only
        encoding goes on.
        """
        with self._pool() as pool:
            logits = await self._read(pool, record)
            return await self._measured(pool, record.rows, Reading(logits=logits))

    async def with_help(self, help: Help, mode: Mode) -> tuple[Manifest, tuple[str, ...]]:
        """Read all of it with help, and then store all of it; also why it was read as it was."""
        read = partial(read_context, self.engine, help, self.tokens, mode, self.progress, self.spans)
        with self._pool() as pool:
            reading = await self.worker.run(read, partial(_cancel, self.engine, help.large))
            rows = list[Row]()
            for chunk in _missing(self.work, rows, len(self.tokens)):
                rows.append(await self._stored(pool, chunk))
                self.progress("encode", chunk.stop, len(self.tokens))
            return await self._measured(pool, rows, reading), reading.notes

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.engine.threads)  # more would only fight over the cores

    async def _read(self, pool: Executor, record: Record) -> npt.NDArray[np.float32] | None:
        """Logits where they are measured; None: the engine that holds it all tells them."""
        session, count, logits = self.engine.session, len(self.tokens), []
        held = await restored(self.store, self.engine, self.worker, pool, self.work, record)
        for batch in batches(Span(held, count), BATCH_TOKENS):
            inside = [] if held else _inside(self.spans, batch)
            prefill = partial(session.prefill, self.tokens[: batch.stop], None, inside, batch.start)
            if (found := await self.worker.run(prefill, session.cancel)) is not None:
                logits.append(found)
            self.progress("prefill", batch.stop, count)
            for chunk in _missing(self.work, record.rows, batch.stop):
                await record.add(await self._stored(pool, chunk))
                self.progress("encode", chunk.stop, count)
        return np.concatenate(logits) if logits else None

    async def _stored(self, pool: Executor, chunk: Span) -> Row:
        at = self.work.chunks.index((chunk.start, chunk.stop))
        groups = [self.work.groups[group] for group in self.work.groups_at(at)]
        blocks = [await self.worker.run(partial(self._exported, chunk, group)) for group in groups]
        return await stored(self.store, pool, self.work.context, self.codecs, blocks)

    def _exported(self, chunk: Span, group: Group) -> KVBlock | StateBlock:
        session = self.engine.session
        if group.kind == "rows":
            return session.export(chunk, Span(*group.layers))
        return session.export_state(numbers(self.work.model.layers, group))

    async def _measured(self, pool: ThreadPoolExecutor, rows: Sequence[Row], reading: Reading) -> Manifest:
        """The manifest of what is stored, which says what each rung costs."""
        ids = await self.store.put("tokens", token_objects.pack(self.tokens))
        plain, found = manifest_of(self.work, rows, ids, self.profile, reading), None
        if self.profile is not None and self.spans and (step := _measured(self.codecs, self.profile)) is not None:
            found = await measure(
                self.store, self.engine, self.worker, pool, plain, step, self.tokens, self.spans, reading.logits
            )
        return _with_quality(plain, self.profile, found, reading.quality)


async def refuse(ask: Request, progress: Report) -> Published:
    """The publisher of a cloud without a model: it serves what is there, and publishes nothing."""
    raise UsageError("this cloud only serves what was published before: it runs no model")


def needed(rungs: tuple[str, ...] | None, layers: Sequence[Layer]) -> bool:
    """Whether publishing in these rungs (None: as `make` says) takes a profile; where layers differ there is none."""
    if rungs is None:
        return geometry_of(layers) is not None
    return not set(rungs) <= set(ladder())


def work_of(
    model: Model,
    tokens: Tokens,
    form: Form,
    codecs: tuple[Codec, ...],
    profile: Stored | None,
    engine: str,
) -> Work:
    """What is made, if the model reads it alone; `engine`: name and version of what reads."""
    bases = _bases(profile)
    states = any(layer.state for layer in model.layers)
    groups = groups_of(model.layers, GROUP_LAYERS) if profile is None else manifests.rows_of(profile.profile.groups)
    chunks = manifests.pairs(chunked(len(tokens)))

    def rung(step: Codec) -> RungCodec:
        id = profile.ref.id if profile is not None and needs_profile(step.version) else None
        beside = state_codec_beside(step.rung).version if states else None
        return RungCodec(step.rung, step.version, id, bases.get(step.rung), beside)

    return Work(
        context=context_id(model.fingerprint, tokens),
        form=form,
        model=msgspec.structs.replace(model, layers=_told(model.layers)),
        token_count=len(tokens),
        chunks=chunks,
        groups=groups,
        parts=manifests.all_parts(groups, chunks),
        rungs=tuple(map(rung, codecs)),
        origin=Origin(engine, f"preread {version('preread')}", BATCH_TOKENS),
    )


def _told(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """What a manifest says of layers: of those that are alike no windows, which are each reader's own to know."""
    if geometry_of(layers) is None:
        return tuple(layers)
    return tuple(Layer(layer.rows) for layer in layers)


def _cancel(*engines: LlamaCpp | None) -> None:
    for engine in engines:
        if engine is not None:
            engine.session.cancel()


def _missing(work: Work, rows: Sequence[Row], stop: int) -> list[Span]:
    """Chunks that end at `stop` or before, and are not stored."""
    return [Span(*chunk) for chunk in work.chunks[len(rows) :] if chunk[1] <= stop]


def _inside(spans: Sequence[Span], batch: Span) -> list[Span]:
    """Those parts of spans that lie in a batch."""
    parts = [Span(max(span.start, batch.start), min(span.stop, batch.stop)) for span in spans]
    return [part for part in parts if part.start < part.stop]


def manifest_of(
    work: Work, rows: Sequence[Row], tokens: ObjectRef, profile: Stored | None, reading: Reading
) -> Manifest:
    """Of what is stored; it states no quality yet."""

    def rung(at: int, of: RungCodec) -> Rung:
        ref = sized(profile.ref) if profile is not None and of.profile is not None else None
        return Rung(of.name, of.codec, drafts.flat(work, rows, at), ref, None, of.base, of.states)

    return Manifest(
        context=work.context,
        form=work.form,
        model=work.model,
        tokens=manifests.Tokens(work.token_count, tokens.id, tokens.size_bytes),
        chunks=work.chunks,
        groups=work.groups,
        parts=work.parts,
        rungs=tuple(rung(at, of) for at, of in enumerate(work.rungs)),
        origin=msgspec.structs.replace(work.origin, mode=reading.mode),
    )


def codecs_for(
    embed: Callable[[Tokens], npt.NDArray[np.float32]],
    tokens: Tokens,
    rungs: tuple[str, ...] | None,
    profile: Stored | None,
) -> tuple[Codec, ...]:
    """The codecs of the rungs, ready for this context, best quality first.

    Args:
        embed: the model's embeddings (tokens, width) of token ids.
        tokens, rungs, profile: as for `make`.

    Raises:
        UsageError: there is no such rung, or it needs a profile.
    """
    prepared: Prepared | None = None
    known = ladder(None if profile is None else profile.profile)
    if rungs is None:
        fitted = () if profile is None else tuple(rung.name for rung in profile.profile.rungs)
        rungs = (LOSSLESS, *fitted)
    bases = _bases(profile)
    rungs = tuple(dict.fromkeys([*rungs, *(bases[rung] for rung in rungs if rung in bases)]))
    if profile is not None and not set(rungs) <= set(ladder()):
        prepared = prepare(profile.profile, embed(tokens))
    codecs = [codec(rung, prepared) for rung in rungs]
    return tuple(sorted(codecs, key=lambda step: known.index(step.rung)))


def _published(
    name: str, engine: LlamaCpp, manifest: Manifest, ref: SizedId, started: float, notes: tuple[str, ...]
) -> Published:
    entry = entry_of(name, manifest, ref, engine.spec.vocabulary)
    sizes = {rung.name: rung.size_bytes for rung in manifest.rungs}
    refined = {rung.name: rung.base for rung in manifest.rungs if rung.base}
    return Published(entry, sizes, time.monotonic() - started, manifest.origin.mode, notes, refined)


def entry_of(name: str, manifest: Manifest, ref: SizedId, vocabulary: Fingerprint) -> Entry:
    """A context's line in the catalogue."""
    return Entry(
        name=name,
        context=manifest.context,
        form=manifest.form,
        fingerprint=manifest.model.fingerprint,
        vocabulary=vocabulary,
        model=manifest.model.name,
        token_count=manifest.tokens.count,
        manifest=ref,
        tokens=sized(manifests.tokens_ref(manifest)),
    )


def _measured(codecs: tuple[Codec, ...], profile: Stored) -> Codec | None:
    """The codec of the rung that is measured, if any needs the profile."""
    name = measured_rung(profile.profile, [step.rung for step in codecs])
    return next((step for step in codecs if step.rung == name), None)


def _with_quality(manifest: Manifest, profile: Stored | None, found: Found | None, read: Measured | None) -> Manifest:
    """The manifest with what each rung costs: what its codec does, and what the way does in which it was read."""

    def quality(rung: Rung) -> Quality | None:
        if profile is not None and rung.profile is not None:
            return stated(profile.profile.rung(rung.name), profile.profile, found, read)
        return as_stated(read) if read is not None and rung.name == LOSSLESS else None

    rungs = tuple(msgspec.structs.replace(rung, quality=quality(rung)) for rung in manifest.rungs)
    return msgspec.structs.replace(manifest, rungs=rungs)


def _bases(profile: Stored | None) -> dict[str, str]:
    """What each rung refines, of those that do not stand alone."""
    return {} if profile is None else {rung.name: rung.base for rung in profile.profile.rungs if rung.base}
