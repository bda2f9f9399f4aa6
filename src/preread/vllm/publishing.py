"""A context that vLLM reads becomes published: its KV comes layer by layer and step by step, as prefill goes.

rows of a step → whole chunks of all layers → encoded and stored beside the model → when all is there: manifest, name.
It knows blocks and the store; it must not know vLLM.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from anyio.from_thread import BlockingPortal, start_blocking_portal

from preread import limits
from preread.cloud.encode import sized, stored
from preread.cloud.profiles import Stored
from preread.cloud.publish import codecs_for, entry_of, manifest_of, work_of
from preread.cloud.reading import Reading
from preread.cloud.resume import Record
from preread.codec.base import Codec
from preread.errors import EngineError, PrereadError
from preread.store.objects import Objects
from preread.values import ContextId, Form, Half, KVBlock, Span, alike
from preread.vllm.checkpoint import Identity
from preread.wire import manifest as manifests
from preread.wire import tokens as token_objects
from preread.wire.draft import Row, Work
from preread.wire.manifest import Model

Tokens = npt.NDArray[np.int32]
Embed = Callable[[Tokens], npt.NDArray[np.float32]]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Context:
    """One context on its way: what has come of it, in host memory, until it is stored.

    Attributes:
        name, tokens, work, codecs: what it is, and in which rungs it is to be.
        k, v: (layers, kv_heads, tokens, head_dim).
        read_tokens: how many tokens have come, of all layers.
        rows: chunks that are stored or being stored, in order.
    """

    name: str
    tokens: Tokens
    work: Work
    codecs: tuple[Codec, ...]
    k: Half
    v: Half
    read_tokens: int = 0
    rows: list[Future[Row]] = field(default_factory=list)

    def put(self, layer: int, start: int, k: Half, v: Half) -> None:
        """Rows (kv_heads, tokens, head_dim) of one layer, from a token on."""
        rows = slice(start, start + k.shape[1])
        self.k[layer, :, rows], self.v[layer, :, rows] = k, v


class Publisher:
    """Stores contexts in threads of its own. Use it in a `with` statement: leaving it waits for what is under way.

    Args:
        store: where to; names are put by whoever holds it, so it is held for a moment at the end of each context.
        identity, embed: of the model that reads, and its embeddings.
        rungs: in which qualities; None: lossless, and all that the profile knows.
        profile: of the model, if there is one.
        engine: name and version of what reads.
    """

    def __init__(
        self,
        store: Objects,
        identity: Identity,
        embed: Embed,
        rungs: tuple[str, ...] | None,
        profile: Stored | None,
        engine: str,
    ) -> None:
        self._store, self._identity, self._embed, self._engine = store, identity, embed, engine
        self._rungs, self._profile = rungs, profile
        self._pool = ThreadPoolExecutor(limits.cpus())
        self._opened = start_blocking_portal()
        self._portal: BlockingPortal | None = None
        self._ending: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._portal = self._opened.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._ending:
            future.exception()  # it was logged
        self._opened.__exit__(kind, error, trace)
        self._portal = None
        self._pool.shutdown()

    def context(self, tokens: Tokens) -> ContextId:
        """The id that a context of these tokens is going to have."""
        return self._work(tokens, "text", ()).context

    def begin(self, name: str, form: Form, tokens: Tokens) -> Context:
        """A context is going to be read.

        Raises:
            UsageError: the rungs are not known, or need a profile that is not there.
        """
        codecs = codecs_for(self._embed, tokens, self._rungs, self._profile)
        shape = self._identity.geometry
        room = (shape.layers, shape.kv_heads, len(tokens), shape.head_dim)
        work = self._work(tokens, form, codecs)
        return Context(name, tokens, work, codecs, np.empty(room, np.float16), np.empty(room, np.float16))

    def read(self, context: Context, tokens: int) -> None:
        """So many tokens of a context have come, of all layers: what is a whole chunk of these is stored.

        Raises:
            EngineError: the publisher is closed.
        """
        if self._portal is None:
            raise EngineError("the publisher is closed: this is a bug in preread")
        context.read_tokens = tokens
        for chunk in context.work.chunks[len(context.rows) :]:
            if chunk[1] <= tokens:
                context.rows.append(self._portal.start_task_soon(self._stored, context, Span(*chunk)))
        if tokens == len(context.tokens):
            self._ending = [future for future in self._ending if not future.done()]
            self._ending.append(self._portal.start_task_soon(self._ended, context))

    def _work(self, tokens: Tokens, form: Form, codecs: tuple[Codec, ...]) -> Work:
        one = self._identity
        return work_of(
            Model(one.name, one.fingerprint, alike(one.geometry)), tokens, form, codecs, self._profile, self._engine
        )

    async def _stored(self, context: Context, chunk: Span) -> Row:
        rows = slice(chunk.start, chunk.stop)
        blocks = [
            KVBlock(chunk, Span(*layers), context.k[slice(*layers), :, rows], context.v[slice(*layers), :, rows])
            for layers in (group.layers for group in context.work.groups)
        ]
        return await stored(self._store, self._pool, context.work.context, context.codecs, blocks)

    async def _ended(self, context: Context) -> None:
        """Name a context whose chunks are stored, or being stored."""
        try:
            record = Record(self._store, context.work)
            for future in context.rows:
                await record.add(await asyncio.wrap_future(future))
            tokens = await self._store.put("tokens", token_objects.pack(context.tokens))
            manifest = manifest_of(context.work, record.rows, tokens, self._profile, Reading())
            ref = sized(await self._store.put("manifests", manifests.dumps(manifest)))
            await record.finish(ref)
            async with self._store.held():
                await self._store.put_name(entry_of(context.name, manifest, ref, self._identity.vocabulary))
        except PrereadError as error:
            _log.error("%r was read, and is not published: %s", context.name, error)
            raise
        except Exception:
            _log.exception("%r was read, and is not published", context.name)
            raise
        _log.info("published %r, %d tokens", context.name, len(context.tokens))
