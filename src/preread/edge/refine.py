"""Bringing a context that the engine holds to a better rung, segment by segment, while it answers or idles.

It gives way to everything else: it fetches little at a time, decodes one segment at a time, and goes on only when the
engine has taken that one. Interrupting it costs nothing: every segment that was replaced is better than before. So
whatever goes wrong ends it, and changes nothing else.
"""

import asyncio
import logging
from contextlib import aclosing
from functools import partial

from preread.edge.core import Core
from preread.edge.load import LoadSpec, Segments, decoded
from preread.edge.threads import in_thread
from preread.engine.cache import Rows
from preread.errors import PrereadError
from preread.plan.events import Cell
from preread.store.fetch import Source, fetch_all
from preread.values import ContextId, KVBlock, ObjectRef
from preread.wire.manifest import SegmentPlace

_IN_FLIGHT, _IN_FLIGHT_BYTES = 2, 2**21

_log = logging.getLogger(__name__)


class Refinement:
    """One context on its way to a better rung. It belongs to the event loop.

    Args:
        what: the context at that rung.
        core: has the context in the engine's cache, in these rows.
        rows: its rows.
        source: where segments come from.
    """

    def __init__(self, what: LoadSpec, core: Core, rows: Rows, source: Source[ObjectRef, bytes]) -> None:
        self._what, self._core, self._rows, self._source = what, core, rows, source
        self._left = list(what.places)
        self._work: asyncio.Task[None] | None = None
        self._over = False

    @property
    def context(self) -> ContextId:
        """Which context."""
        return self._what.manifest.context

    @property
    def rung(self) -> str:
        """Where it leads."""
        return self._what.rung

    @property
    def share(self) -> float:
        """Share of the context's segments that are at that rung, 0 to 1."""
        return 1 - len(self._left) / len(self._what.places)

    @property
    def replaced(self) -> frozenset[Cell]:
        """Its segments that are at that rung."""
        left = {(place.chunk, place.group) for place in self._left}
        return frozenset((place.chunk, place.group) for place in self._what.places) - left

    @property
    def running(self) -> bool:
        """Whether it is at it."""
        return self._work is not None and not self._work.done()

    def go_on(self) -> None:
        """Begin, or go on after a pause. Nothing happens when all is done, or when something went wrong."""
        if self._left and not self._over and not self.running:
            self._work = asyncio.create_task(self._refine())

    def stop(self) -> None:
        """Leave the context as it is, for good."""
        self._over = True
        if self._work is not None:
            self._work.cancel()

    async def pause(self) -> None:
        """Stop, within the time of decoding one segment; the one that is under way is given up."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def _refine(self) -> None:
        try:
            await self._replace(tuple(self._left))
        except PrereadError as error:
            self._over = True
            _log.info("the context is not brought to %s, %.0f %% of it were: %s", self.rung, 100 * self.share, error)
        except Exception:
            self._over = True
            _log.exception("refining a context failed in a way that nobody foresaw")

    async def _replace(self, left: tuple[SegmentPlace, ...]) -> None:
        source = Segments(self._source)
        flight = fetch_all(source, left, in_flight=_IN_FLIGHT, in_flight_bytes=_IN_FLIGHT_BYTES)
        async with aclosing(flight) as arrivals:
            async for index, frames in arrivals:
                block = await in_thread(partial(decoded, self._what, left[index], frames))
                if not await self._written(block):
                    self._over = True  # the context has gone
                    return
                self._left.remove(left[index])

    async def _written(self, block: KVBlock) -> bool:
        """Hand a block to the engine, and wait until it is written, which it is between two steps, or when idle."""
        return await self._core.rewrite(self.context, self._rows, block)
