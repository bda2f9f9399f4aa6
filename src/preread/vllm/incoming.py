"""Published contexts on their way to vLLM's cache: asked for by name, fetched, verified and decoded into host memory.

What is published is synced ahead, and a context is fetched because a request names it: never because of what a prompt
says. It knows links and blocks; it must not know vLLM.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from anyio.from_thread import start_blocking_portal

from preread.edge.choice import Terms, chosen
from preread.edge.contexts import Contexts
from preread.edge.known import Known
from preread.edge.load import LoadSpec, Segments, decoded, load_spec
from preread.edge.profiles import Embed, Preparations
from preread.edge.published import OwnModel
from preread.edge.syncing import synced
from preread.errors import TransportError
from preread.plan.beliefs import Beliefs
from preread.plan.poll import SYNC_S, Tries
from preread.store.egress import CloudLink
from preread.store.fetch import fetch_all
from preread.vllm.plan import Arrived
from preread.wire.catalogue import Entry

PATIENCE_S: Final = 30.0
"""A context that has not come after so long is computed."""

_FIRST_SYNC_S: Final = 10.0
_AT_ONCE: Final = 4
"""So many contexts come at a time; others wait until one is there, or has not come."""

_KEPT: Final = 2 * _AT_ONCE
"""Contexts that came last are kept decoded, for the next request: so many, with those that are coming."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Coming:
    """`future`: the context, and what was published under its name when it was fetched."""

    since_s: float
    future: "Future[tuple[Entry | None, Arrived]]"


class Incoming:
    """What comes, in a thread of its own. Use it in a `with` statement.

    Args:
        link: to the cloud.
        folder: where what is published is kept.
        own, embed: the model that reads the KV, and its embeddings (tokens, width) of token ids.
        rung: which to fetch; None: the smallest that keeps `max_dloss`, nats a token.
    """

    def __init__(
        self, link: CloudLink, folder: Path, own: OwnModel, embed: Embed, rung: str | None, max_dloss: float
    ) -> None:
        self._link, self._contexts = link, Contexts(folder, own)
        self._preparations = Preparations(embed)
        self._terms = Terms(rung, max_dloss, None, Beliefs.of_machine(1000.0), 0.0, lambda ref: False)
        self._coming: OrderedDict[str, _Coming] = OrderedDict()
        self._opened = start_blocking_portal()

    def __enter__(self) -> Self:
        self._portal = self._opened.__enter__()
        self._contexts.restore()
        self._syncing = self._portal.start_task_soon(self._sync)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._syncing.cancel()
        for coming in self._coming.values():
            coming.future.cancel()
        self._portal.call(self._link.aclose)
        self._opened.__exit__(kind, error, trace)

    def ask(self, name: str) -> Arrived | str | None:
        """The context of this name; None: it is coming; a text: why it does not."""
        coming = self._coming.get(name)
        if coming is None:
            if sum(not other.future.done() for other in self._coming.values()) >= _AT_ONCE:
                return None
            coming = self._coming[name] = _Coming(time.monotonic(), self._portal.start_task_soon(self._brought, name))
            self._forget_one()
        self._coming.move_to_end(name)
        if not coming.future.done():
            if time.monotonic() - coming.since_s < PATIENCE_S:
                return None
            coming.future.cancel()
            del self._coming[name]
            return f"{name!r} did not come within {PATIENCE_S:g} s"
        if (error := coming.future.exception()) is not None:
            del self._coming[name]  # the next request may be luckier
            return str(error)
        entry, arrived = coming.future.result()
        if entry == self._contexts.entry(name):
            return arrived
        del self._coming[name]  # something else is published under its name by now
        return self.ask(name)

    def _forget_one(self) -> None:
        if len(self._coming) > _KEPT:
            del self._coming[next(name for name, coming in self._coming.items() if coming.future.done())]

    async def _sync(self) -> None:
        tries = Tries.none(time.monotonic())

        async def once() -> None:
            await self._contexts.sync(self._link)

        while True:
            tries = await synced(once, tries, "contexts are computed here")
            await asyncio.sleep(tries.pause_s(SYNC_S))

    async def _brought(self, name: str) -> tuple[Entry | None, Arrived]:
        """Fetch and decode a context; also its entry.

        Raises:
            PrereadError: it cannot be had, or not be read here, and why.
        """
        try:
            async with asyncio.timeout(_FIRST_SYNC_S):
                await self._contexts.asked_cloud.wait()
        except TimeoutError as error:
            raise TransportError("the cloud does not answer") from error
        if self._contexts.entry(name) is None:
            await self._contexts.look_up(name, self._link)
        entry = self._contexts.entry(name)
        await self._contexts.get(name, self._link)
        await self._contexts.fetch(self._link)  # the profile that its rungs may need
        known = self._contexts.named(name)
        what = load_spec(chosen(known, self._terms), known.tokens, self._preparations)
        return entry, await self._fetched(known, what)

    async def _fetched(self, known: Known, what: LoadSpec) -> Arrived:
        shape = what.manifest.model.geometry
        assert shape is not None  # or it would not fit this model
        room = (shape.layers, shape.kv_heads, len(known.tokens), shape.head_dim)
        k, v = np.empty(room, np.float16), np.empty(room, np.float16)
        arriving = fetch_all(Segments(self._link), what.places)
        async with aclosing(arriving):
            async for index, frames in arriving:
                block = await asyncio.to_thread(decoded, what, what.places[index], frames)
                layers, rows = (
                    slice(block.layers.start, block.layers.stop),
                    slice(block.tokens.start, block.tokens.stop),
                )
                k[layers, :, rows], v[layers, :, rows] = block.k, block.v
        _log.info("%r has come at rung %s, %d bytes", known.entry.name, what.rung, what.size_bytes)
        return Arrived(known.tokens, what.rung, k, v)
