"""A cloud without a model: it publishes random KV through the real formats and codecs, and serves it over real HTTP."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import uvicorn
from starlette.types import ASGIApp

from preread.cloud.events import Counted, Published, Request
from preread.cloud.publish import NOBODY, Owner, Report
from preread.cloud.ray.replica import Opened
from preread.codec import fitted
from preread.codec.ladder import codec
from preread.errors import UsageError
from preread.store.objects import Objects, open_store
from preread.values import ContextId, Fingerprint, Form, Geometry, KVBlock, ObjectRef, Span, alike
from preread.wire import manifest as manifests
from preread.wire import segment, tokens
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id
from preread.wire.fields import SizedId

FINGERPRINT = Fingerprint("f" * 64)
GEOMETRY = Geometry(layers=2, kv_heads=1, head_dim=8)
MODEL = "random"
FITTED = "b4"


@dataclass(frozen=True, slots=True)
class RandomPublisher:
    """Stands where the model's publisher stands. Every letter is a token; KV follows from the tokens alone.

    With `profile`, any bytes, the last rung is called `FITTED`, and said to need them; its segments are what they were.
    """

    store: Objects
    rungs: tuple[str, ...] = ("lossless", "q4")
    profile: bytes = b""
    chunk_tokens: int = 8
    window_tokens: int = 4096

    async def __call__(self, ask: Request, progress: Report) -> Published:
        made = await self.make(ask, progress)
        await self.store.put_name(made.entry)
        return made

    async def make(self, ask: Request, progress: Report, owner: Owner = NOBODY) -> Published:
        """All but the name."""
        ids = _ids(ask)
        if len(ids) > self.window_tokens:
            over = len(ids) - self.window_tokens
            raise UsageError(f"document has {len(ids)} tokens: {over} more than the window of {self.window_tokens}")
        progress("prefill", len(ids), len(ids))
        context = context_id(FINGERPRINT, ids)
        chunks = [Span(a, min(a + self.chunk_tokens, len(ids))) for a in range(0, len(ids), self.chunk_tokens)]
        groups = [Span(layer, layer + 1) for layer in range(GEOMETRY.layers)]
        rungs = []
        for rung in self.rungs:
            blocks = [[_block(ids, chunk, group) for group in groups] for chunk in chunks]
            frames = [[_frame(context, rung, block) for block in row] for row in blocks]
            cells = [[_sized(await self.store.put("segments", frame)) for frame in row] for row in frames]
            flat = tuple(row[group] for group in range(len(groups)) for row in cells)
            rungs.append(manifests.Rung(rung, codec(rung).version, flat))
        if self.profile:
            needed = _sized(await self.store.put("profiles", self.profile))
            rungs[-1] = msgspec.structs.replace(rungs[-1], name=FITTED, codec=fitted.VERSION, profile=needed)
        progress("encode", len(chunks), len(chunks))
        entry = await self._entry(ask.name, "chat" if ask.form == "chat" else "text", ids, chunks, groups, tuple(rungs))
        sizes = {rung.name: rung.size_bytes for rung in rungs}
        return Published(entry, sizes, 0.0)

    async def counted(self, ask: Request) -> Counted:
        """What a document would be, as `preread.cloud.app.Counter` tells it."""
        ids = _ids(ask)
        context, entry = context_id(FINGERPRINT, ids), await self.store.entry(ask.name)
        form = "chat" if ask.form == "chat" else "text"
        current = entry is not None and (entry.context, entry.form) == (context, form)
        return Counted(MODEL, len(ids), self.window_tokens, context, current)

    async def _entry(
        self,
        name: str,
        form: Form,
        ids: npt.NDArray[np.int32],
        chunks: list[Span],
        groups: list[Span],
        rungs: tuple[manifests.Rung, ...],
    ) -> Entry:
        packed = _sized(await self.store.put("tokens", tokens.pack(ids)))
        covered, of = manifests.pairs(chunks), manifests.rows_of(groups)
        manifest = manifests.Manifest(
            context=context_id(FINGERPRINT, ids),
            form=form,
            model=manifests.Model(MODEL, FINGERPRINT, alike(GEOMETRY)),
            tokens=manifests.Tokens(len(ids), packed.id, packed.size_bytes),
            chunks=covered,
            groups=of,
            parts=manifests.all_parts(of, covered),
            rungs=rungs,
            origin=manifests.Origin("random", "preread test", 1),
        )
        stored = _sized(await self.store.put("manifests", manifests.dumps(manifest)))
        return Entry(name, manifest.context, form, FINGERPRINT, FINGERPRINT, MODEL, len(ids), stored, packed)


@dataclass(frozen=True, slots=True)
class RandomModel:
    """What a replica loads that is to publish so; `where`: a file that names the store at the time of each call."""

    where: str

    def open(self, store: Objects) -> Opened:
        async def make(ask: Request, progress: Report, owner: Owner) -> Published:
            return await RandomPublisher(open_store(Path(self.where).read_text())).make(ask, progress, owner)

        counted = RandomPublisher(store).counted
        return Opened(make, counted, FINGERPRINT, lambda: None)


def _ids(ask: Request) -> npt.NDArray[np.int32]:
    """Every letter is a token."""
    return np.array(ask.tokens if ask.tokens is not None else [ord(letter) for letter in ask.text or ""], np.int32)


@contextmanager
def serving(app: ASGIApp, **options: Any) -> Iterator[str]:
    """Serve `app` from a thread of its own on a free port of 127.0.0.1, or at `uds`; gives its URL.

    `options`: of uvicorn.
    """
    chosen = {"port": 0, "log_level": "error", "timeout_graceful_shutdown": 1, **options}
    config = uvicorn.Config(app, host="127.0.0.1", **chosen)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.005)  # uvicorn has no event for this
    try:
        name = server.servers[0].sockets[0].getsockname()
        yield f"unix:{name}" if isinstance(name, str) else f"http://127.0.0.1:{name[1]}"
    finally:
        server.should_exit = True
        thread.join()


def _block(ids: npt.NDArray[np.int32], chunk: Span, group: Span) -> KVBlock:
    source = np.random.default_rng([group.start, *ids[: chunk.stop].tolist()])
    shape = (len(group), GEOMETRY.kv_heads, len(chunk), GEOMETRY.head_dim)
    k, v = (source.normal(size=shape).astype(np.float16) for _ in "kv")
    return KVBlock(chunk, group, k, v)


def _frame(context: ContextId, rung: str, block: KVBlock) -> bytes:
    header = segment.SegmentHeader(context, rung, block.tokens, block.layers, block.shape)
    return segment.pack(header, codec(rung).encode(block))


def _sized(ref: ObjectRef) -> SizedId:
    return SizedId(ref.id, ref.size_bytes)
