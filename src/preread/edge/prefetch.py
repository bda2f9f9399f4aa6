"""Fetching contexts to the disk before anyone asks, while the edge has nothing else to do.

What is worth holding is `plan.place`'s to say; here are the catalogue, the disk and the clock. A load of a context that
somebody asked for by name interrupts it at once, and what was being fetched is fetched again later.
"""

import asyncio
import logging
import time
from contextlib import aclosing, suppress
from typing import Final

from preread.edge.choice import chosen
from preread.edge.known import Known
from preread.edge.node import Node
from preread.edge.options import Wishes
from preread.edge.rungs import Streamable
from preread.edge.sources import Sources
from preread.edge.uses import Uses
from preread.errors import Absent, CorruptData, PrereadError
from preread.plan.place import Candidate, Placement, place
from preread.store.fetch import fetch_all
from preread.store.held import Held
from preread.values import ContextId, ObjectId, ObjectRef

EVERY_S: Final = 10.0
_AFTER_FAILURE_S: Final = 60.0
_NOT_KEPT_S: Final = 600.0
_IN_FLIGHT, _IN_FLIGHT_BYTES = 2, 2**21
_log = logging.getLogger(__name__)


class Prefetch:
    """Brings what is on the disk near to what should be there. It belongs to the event loop.

    Nothing that is fetched here, and no moment of it, follows from what prompts say: see `at_hand.py`.
    """

    def __init__(self, node: Node, sources: Sources, held: Held, uses: Uses, wishes: Wishes) -> None:
        self._node, self._sources, self._held, self._uses, self._wishes = node, sources, held, uses, wishes
        self._chosen: dict[ObjectId, Streamable] = {}
        self._failing = False

    async def keep_going(self, every_s: float = EVERY_S) -> None:
        """Look for ever, and fetch while nobody loads what was asked for by name."""
        await self._node.contexts.asked_cloud.wait()
        while True:
            pause_s = every_s
            try:
                await self._node.idle.wait()
                await self.save()
                if not await self._fetch(await self.look()):
                    pause_s = _NOT_KEPT_S
                self._failing = False
            except PrereadError as error:
                if not self._failing:
                    _log.info("contexts are not fetched ahead of need for now: %s", error)
                self._failing, pause_s = True, _AFTER_FAILURE_S
            except Exception:
                _log.exception("fetching ahead of need failed in a way that nobody foresaw")
                pause_s = _NOT_KEPT_S
            await asyncio.sleep(pause_s)

    async def look(self) -> list[list[ObjectRef]]:
        """Decide what to hold, make room for it, and tell which segments each context lacks, the most wanted first."""
        found = self._streamable()
        placement = place(
            [self._candidate(known, what) for known, what in found.values()],
            self._held.room_bytes,
            self._wishes.policy,
            time.time(),
        )
        wanted = {id: [ref for piece in found[id][1].places for ref in piece.refs] for id in placement.hold}
        self._held.protect(ref.id for refs in wanted.values() for ref in refs)
        await asyncio.to_thread(self._held.drop, self._superfluous(placement, found))
        lacking = ([ref for ref in refs if ref.id not in self._held] for refs in wanted.values())
        return [refs for refs in lacking if refs]

    async def save(self) -> None:
        """Keep the counts of uses."""
        write = self._uses.saving(time.time())
        if write is not None:
            await asyncio.to_thread(write)

    async def _fetch(self, lacking: list[list[ObjectRef]]) -> bool:
        """Fetch until somebody loads by name; False if the disk keeps nothing, so that trying again soon is in vain."""
        if not lacking:
            return True
        fetching = asyncio.ensure_future(self._fetch_each(lacking))
        busy = asyncio.ensure_future(self._node.busy.wait())
        try:
            await asyncio.wait([fetching, busy], return_when=asyncio.FIRST_COMPLETED)
            return fetching.result() if fetching.done() else True
        finally:
            for task in (fetching, busy):
                task.cancel()
            await asyncio.wait([fetching, busy])

    async def _fetch_each(self, lacking: list[list[ObjectRef]]) -> bool:
        """Context after context: one whose segments the cloud lacks or has damaged keeps no other from coming."""
        failure: PrereadError | None = None
        for refs in lacking:
            try:
                if not await self._fetch_all(refs):
                    return False
            except (Absent, CorruptData) as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return True

    async def _fetch_all(self, refs: list[ObjectRef]) -> bool:
        flight = fetch_all(self._sources, refs, in_flight=_IN_FLIGHT, in_flight_bytes=_IN_FLIGHT_BYTES)
        async with aclosing(flight) as frames:
            async for index, _ in frames:
                await self._sources.flush()
                if refs[index].id not in self._held:
                    return False
        return True

    def _streamable(self) -> dict[ContextId, tuple[Known, Streamable]]:
        """The contexts that this edge could stream, at the rung that it would."""
        node, found = self._node, dict[ContextId, tuple[Known, Streamable]]()
        if node.engine.no_injection:
            return found
        for known in node.contexts.own():
            if known.manifest is None:
                continue
            with suppress(PrereadError):
                found[known.entry.context] = known, self._rung(known)
        self._chosen = {known.entry.manifest.id: what for known, what in found.values()}
        return found

    def _rung(self, known: Known) -> Streamable:
        what = self._chosen.get(known.entry.manifest.id)
        return chosen(known, self._node.terms()) if what is None else what

    def _candidate(self, known: Known, what: Streamable) -> Candidate:
        context = known.entry.context
        held_bytes = sum(ref.size_bytes for piece in what.places for ref in piece.refs if ref.id in self._held)
        return Candidate(context, what.size_bytes, held_bytes, self._uses.of(context), context in self._pinned())

    def _pinned(self) -> set[ContextId]:
        pinned = set()
        for name in self._wishes.pins:
            entry = self._node.contexts.entry(name)
            if entry is not None:
                pinned.add(entry.context)
        return pinned

    def _superfluous(self, placement: Placement, found: dict[ContextId, tuple[Known, Streamable]]) -> list[ObjectId]:
        """What makes room, and what the cloud has taken back."""
        gone = {ref.id for context in placement.drop for piece in found[context][1].places for ref in piece.refs}
        wanted = {ref.id for context in placement.hold for piece in found[context][1].places for ref in piece.refs}
        contexts = self._node.contexts
        of_nobody = set(self._held.ids()) if contexts.complete else set(contexts.gone)
        contexts.gone.clear()
        gone |= {id for id in of_nobody if contexts.segment(id) is None}
        return [id for id in gone - wanted if id in self._held]
