"""The cloud's story: a document becomes an immutable, streamable context.

read → encode → digest → put segments → measure what they cost → put manifest → put name. Until the name is put,
nobody sees any of it; if anything fails before, what was published earlier stays as it was.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from preread import limits
from preread.cloud.events import Mode, Published
from preread.cloud.profiles import Stored
from preread.cloud.quality import Found, as_stated, measure, measured_rung, stated, windows
from preread.cloud.reading import NO_HELP, Help, Reading, read_context
from preread.codec.base import Codec
from preread.codec.fitted import Fitted, encoded
from preread.codec.ladder import codec, ladder, needs_profile
from preread.codec.profile import Prepared, prepare
from preread.codec.profile import Quality as Measured
from preread.engine import length
from preread.engine.llamacpp import BATCH_TOKENS, LlamaCpp
from preread.engine.model import engine_version
from preread.engine.worker import Worker
from preread.errors import TooLong, UsageError
from preread.store.objects import Objects
from preread.values import ContextId, Form, KVBlock, ObjectRef, Span
from preread.wire import manifest as manifests
from preread.wire import segment
from preread.wire import tokens as token_objects
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id
from preread.wire.fields import SizedId
from preread.wire.manifest import Manifest, Model, Origin, Quality, Rung
from preread.wire.names import why_unfit

Tokens = npt.NDArray[np.int32]
Report = Callable[[str, int, int], None]
"""Told a stage ("prefill" or "encode"), how many tokens of it are done, and how many there are; from any thread."""

_Rows = list[tuple[SizedId, ...]]
"""Segments of one rung: [chunk][group]."""

CHUNK_TOKENS = 128
SMALLEST_CHUNK_TOKENS = 64
"""Chunks are what an edge may compute instead of loading. In batches of 64 to 512 tokens llama.cpp computes the very
same KV; so a chunk is shorter only where prefill has a batch of its own for it."""

SHORT_TOKENS = 512
"""Contexts of up to so many tokens end in one of the smallest chunks: chunks are what computing and loading share out,
and a slow link that could bring a fifth of such a context meanwhile is no help where the last chunk is half of it."""

MOST_CHUNKS = 16
"""Chunks of longer contexts are longer, up to a batch: every segment costs an edge a request, some milliseconds of a
processor that it also computes the prompt with, and a sixteenth of a context is little to load or compute too much."""

GROUP_LAYERS = 2
"""Few layers, so that little is left to compute after the last. A profile says by itself how many it codes together."""

LOSSLESS = "lossless"

SMALLEST_ROOM_TOKENS = 64
"""A context must leave at least so many tokens of the window for a prompt and its answer."""


def read_document(engine: LlamaCpp, text: str | None, tokens: Tokens | None, form: str) -> tuple[Tokens, Form]:
    """Token ids of a document as prompts will begin with them.

    Args:
        engine: whose tokenizer and chat template to use.
        text: the document; or `tokens`: its ids, taken as they are.
        form: "chat" makes the text the system prompt of a chat, "text" takes it as it is; "auto" is "chat" for models
            with a chat template.

    Raises:
        UsageError: the document is empty, or its ids are not this model's, or the model cannot do `form`.
        TooLong: it is so much too long that this was seen from its size or its beginning.
    """
    if tokens is not None:
        _check_room(engine, len(tokens))
    if text is not None and (least := least_tokens(engine, text)) is not None:
        _check_room(engine, least, "at least ")
    return as_tokens(engine, text, tokens, form)


def as_tokens(engine: LlamaCpp, text: str | None, tokens: Tokens | None, form: str) -> tuple[Tokens, Form]:
    """The same of a document of any length.

    Raises:
        UsageError: the document is empty, or its ids are not this model's, or the model cannot do `form`.
    """
    if (text is None) == (tokens is None):
        raise UsageError("a document is either text or token ids")
    if tokens is not None:
        if not len(tokens):
            raise UsageError("the document is empty")
        engine.check_tokens(tokens)
        return tokens, "chat" if form == "chat" else "text"
    if not text or not text.strip():
        raise UsageError("the document is empty")
    if form == "text" or (form == "auto" and engine.chat is None):
        return engine.tokenize(text, special=False, start=True), "text"
    if engine.chat is None:
        raise UsageError(f"{engine.spec.name} has no chat template: publish the document as text")
    return engine.tokenize_prompt(engine.chat.system_prefix(text)), "chat"


def needed(rungs: tuple[str, ...] | None) -> bool:
    """Whether publishing in these rungs (None: as `publish` says) takes a profile."""
    return rungs is None or not set(rungs) <= set(ladder())


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
    """Make the KV of `tokens` available under `name`.

    Args:
        store, engine, worker: where to; the model; its thread.
        name, tokens, form: the context.
        rungs: in which qualities, and what these refine; None: lossless, and all that the profile knows.
        progress: is told how far it is.
        profile: of this model; some rungs need it.
        help, mode: who helps to read it, and how, if the gate lets it.

    Raises:
        UsageError: the name is not one, the document leaves no room in the model's window, or a rung is unknown.
        EngineError: the model's KV cannot be exported, or the engine failed.
        RemoteError: the store cannot be written; the catalogue is as it was.
    """
    started = time.monotonic()
    check(engine, name, len(tokens))
    codecs = await asyncio.to_thread(_codecs, engine, tokens, rungs, profile)
    spans = windows(len(tokens), engine.spec.window_tokens, engine.scored_tokens) if needed(rungs) else []
    engines = [engine] if help.large is None else [engine, help.large]
    prefill = partial(read_context, engine, help, tokens, mode, progress, spans)
    reading = await worker.run(prefill, lambda: _cancel(engines))
    with ThreadPoolExecutor(limits.cpus()) as pool:  # more would only fight over the cores
        plain = await _encoded(store, engine, worker, pool, tokens, form, codecs, profile, reading, progress)
        found = None
        if profile is not None and (step := _measured(codecs, profile)) is not None and spans:
            found = await measure(store, engine, worker, pool, plain, step, tokens, spans, reading.logits)
    manifest = _with_quality(plain, profile, found, reading.quality)
    entry = _entry(name, manifest, engine, await store.put("manifests", manifests.dumps(manifest)))
    await store.put_name(entry)
    sizes = {rung.name: sum(cell.size_bytes for row in rung.segments for cell in row) for rung in manifest.rungs}
    refined = {rung.name: rung.base for rung in manifest.rungs if rung.base}
    return Published(entry, sizes, time.monotonic() - started, reading.mode, reading.notes, refined)


async def _encoded(
    store: Objects,
    engine: LlamaCpp,
    worker: Worker,
    pool: ThreadPoolExecutor,
    tokens: Tokens,
    form: Form,
    codecs: tuple[Codec, ...],
    profile: Stored | None,
    reading: Reading,
    progress: Report,
) -> Manifest:
    """Store what the engine holds in every rung; the manifest of it, which states no quality yet."""
    context, bases = context_id(engine.spec.fingerprint, tokens), _bases(profile)
    layers = GROUP_LAYERS if profile is None else profile.profile.group_layers
    chunks, groups = chunked(len(tokens)), _spans(engine.spec.geometry.layers, layers)
    rows: dict[str, _Rows] = {step.rung: [] for step in codecs}
    for chunk in chunks:
        blocks = [await worker.run(partial(engine.session.export, chunk, group)) for group in groups]
        encode = partial(_frames, context, codecs)
        frames = await asyncio.gather(*[_on(pool, encode, block) for block in blocks])
        for step in codecs:
            rows[step.rung].append(tuple([_sized(await store.put("segments", row[step.rung])) for row in frames]))
        progress("encode", chunk.stop, len(tokens))
    ids = await store.put("tokens", token_objects.pack(tokens))

    def rung(step: Codec) -> Rung:
        with_profile = profile is not None and needs_profile(step.version)
        ref = _sized(profile.ref) if profile is not None and with_profile else None
        return Rung(step.rung, step.version, tuple(rows[step.rung]), ref, None, bases.get(step.rung))

    return Manifest(
        context=context,
        form=form,
        model=Model(engine.spec.name, engine.spec.fingerprint, engine.spec.geometry),
        tokens=manifests.Tokens(len(tokens), ids.id, ids.size_bytes),
        chunks=manifests.pairs(chunks),
        groups=manifests.pairs(groups),
        rungs=tuple(map(rung, codecs)),
        origin=Origin(engine_version(), f"preread {version('preread')}", BATCH_TOKENS, reading.mode),
    )


async def refuse(
    name: str, text: str | None, tokens: list[int] | None, form: Form | Literal["auto"], mode: Mode, progress: Report
) -> Published:
    """The publisher of a cloud without a model: it serves what is there, and publishes nothing."""
    raise UsageError("this cloud only serves what was published before: it runs no model")


def check(engine: LlamaCpp, name: str, tokens: int) -> None:
    """Refuse, before any work is done, a context of so many tokens that cannot be published under `name`.

    Raises:
        UsageError: the name is not one, the model's KV cannot be streamed, or the document does not fit its window.
    """
    if unfit := why_unfit(name):
        raise UsageError(f"{name!r} cannot name a context: {unfit}")
    if engine.no_injection:
        raise UsageError(f"KV of {engine.spec.name} cannot be streamed: {engine.no_injection}")
    _check_room(engine, tokens)


def least_tokens(engine: LlamaCpp, text: str) -> int | None:
    """A number of tokens above the window that a text surely has; None if it may have fewer. Not all of it is read."""
    window, widest = engine.spec.window_tokens, engine.spec.token_characters
    if len(text) > window * widest:
        return -(-len(text) // widest)
    return length.at_least(text, window, partial(engine.tokenize, special=False))


def _check_room(engine: LlamaCpp, tokens: int, about: str = "") -> None:
    over = tokens + SMALLEST_ROOM_TOKENS - engine.spec.window_tokens
    if over > 0:
        raise TooLong(
            f"the document has {about}{tokens} tokens, {over} too many: the window of {engine.spec.name} is "
            f"{engine.spec.window_tokens} tokens, of which {SMALLEST_ROOM_TOKENS} stay free for a prompt"
        )


def _cancel(engines: list[LlamaCpp]) -> None:
    for engine in engines:
        engine.session.cancel()


def _codecs(
    engine: LlamaCpp, tokens: Tokens, rungs: tuple[str, ...] | None, profile: Stored | None
) -> tuple[Codec, ...]:
    """The codecs of the rungs, ready for this context, best quality first."""
    prepared: Prepared | None = None
    known = ladder(None if profile is None else profile.profile)
    if rungs is None:
        fitted = () if profile is None else tuple(rung.name for rung in profile.profile.rungs)
        rungs = (LOSSLESS, *fitted)
    bases = _bases(profile)
    rungs = tuple(dict.fromkeys([*rungs, *(bases[rung] for rung in rungs if rung in bases)]))
    if profile is not None and needed(rungs):
        prepared = prepare(profile.profile, engine.embeddings(tokens))
    codecs = [codec(rung, prepared) for rung in rungs]
    return tuple(sorted(codecs, key=lambda step: known.index(step.rung)))


def _entry(name: str, manifest: Manifest, engine: LlamaCpp, stored: ObjectRef) -> Entry:
    return Entry(
        name=name,
        context=manifest.context,
        form=manifest.form,
        fingerprint=engine.spec.fingerprint,
        vocabulary=engine.spec.vocabulary,
        model=engine.spec.name,
        token_count=manifest.tokens.count,
        manifest=_sized(stored),
        tokens=_sized(manifests.tokens_ref(manifest)),
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


def chunked(tokens: int) -> list[Span]:
    """Chunks of a context of so many tokens, none of them shorter than `SMALLEST_CHUNK_TOKENS` without need."""
    step = CHUNK_TOKENS
    while step < BATCH_TOKENS and tokens > MOST_CHUNKS * step:
        step *= 2
    end = tokens - SMALLEST_CHUNK_TOKENS if CHUNK_TOKENS < tokens <= SHORT_TOKENS else tokens
    spans = _spans(end, step)
    if len(spans) > 1 and len(spans[-1]) < SMALLEST_CHUNK_TOKENS and spans[-1].start % BATCH_TOKENS:
        spans[-2:] = [Span(spans[-2].start, end)]
    return spans if end == tokens else [*spans, Span(end, tokens)]


def _spans(stop: int, step: int) -> list[Span]:
    return [Span(start, min(start + step, stop)) for start in range(0, stop, step)]


def _bases(profile: Stored | None) -> dict[str, str]:
    """What each rung refines, of those that do not stand alone."""
    return {} if profile is None else {rung.name: rung.base for rung in profile.profile.rungs if rung.base}


def _frames(context: ContextId, codecs: tuple[Codec, ...], block: KVBlock) -> dict[str, bytes]:
    """A block's segment at each rung."""
    _, kv_heads, _, head_dim = block.k.shape
    fitted = [step for step in codecs if isinstance(step, Fitted)]
    payloads = {step.rung: step.encode(block) for step in codecs if not isinstance(step, Fitted)}
    if fitted:
        payloads |= encoded(fitted[0].prepared, block, [step.rung for step in fitted])
    header = partial(segment.SegmentHeader, context)
    return {
        rung: segment.pack(header(rung, block.tokens, block.layers, kv_heads, head_dim), payload)
        for rung, payload in payloads.items()
    }


def _on(
    pool: ThreadPoolExecutor, encode: Callable[[KVBlock], dict[str, bytes]], block: KVBlock
) -> asyncio.Future[dict[str, bytes]]:
    return asyncio.get_running_loop().run_in_executor(pool, encode, block)


def _sized(ref: ObjectRef) -> SizedId:
    return SizedId(ref.id, ref.size_bytes)
