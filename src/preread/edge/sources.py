"""Where an edge gets segments: its own disk, the other edges of its site, the cloud. One seam for all of them.

It knows who has what and in which order to ask; it must not know what segments mean, or why one is wanted. Whatever
comes from outside is verified by then, and is put on disk behind the caller's back.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Final, Protocol

from preread.edge.neighbours import Neighbour, Neighbours
from preread.errors import PrereadError, RemoteError, TransportError
from preread.plan.beliefs import CLOUD, DISK
from preread.store.collapse import Collapsed
from preread.store.egress import CloudLink
from preread.store.held import Held
from preread.values import ObjectId, ObjectRef
from preread.wire.manifest import SegmentPlace

MOST_PENDING_BYTES: Final = 16 * 2**20
"""Segments that wait for the disk; when it is slower than the link by so much, some are not kept."""

MOST_REST_S: Final = 1.0
"""What has arrived is on disk this much later than it could be, at most, so that little is lost with a process."""

_SILENCE_S: Final = 3.0
"""A neighbour that has sent next to nothing for so long, or for longer than is usual, is no longer waited for alone."""

_NEXT_TO_NOTHING_BYTES: Final = 16_384

_log = logging.getLogger(__name__)


class Arrived(Protocol):
    """Told what has come; `guest`: only others want it."""

    def __call__(self, ref: ObjectRef, data: bytes, *, guest: bool = False) -> None: ...


class NotHeld(RemoteError):
    """A source does not have the object: nothing is wrong with it."""


class Supply(Protocol):
    """One place that segments come from.

    Attributes:
        name: "disk", "cloud" or "near:" and an edge's id.
    """

    name: str

    async def get(self, ref: ObjectRef) -> bytes:
        """The object, verified; PrereadError if it cannot be had here. Concurrent calls for one are one request."""
        ...

    def holds(self, ref: ObjectRef) -> bool | None:
        """Whether it has the object. None: it can get it, at its own pace. Never waits."""
        ...

    @property
    def received_bytes(self) -> int:
        """Bytes of segments that ever came from there, unfinished ones included: nothing else is progress."""
        ...


def holder(place: SegmentPlace, supplies: Sequence[Supply]) -> int:
    """The first that has a place's objects, or can get them; the last if none says so."""
    able = (index for index, supply in enumerate(supplies) if all(supply.holds(ref) is not False for ref in place.refs))
    return next(able, len(supplies) - 1)


class Disk:
    """What this edge holds itself, and what is on its way to the disk."""

    name = DISK

    def __init__(self, held: Held | None) -> None:
        self._held = held
        self._pending: dict[ObjectId, tuple[bytes, bool]] = {}  # and whether it is a guest
        self._pending_bytes = self._resting = 0
        self._work: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.received_bytes = 0

    def holds(self, ref: ObjectRef) -> bool:
        return ref.id in self._pending or (self._held is not None and ref.id in self._held)

    async def get(self, ref: ObjectRef, *, guest: bool = False) -> bytes:
        """What this disk holds. `guest`: it is for somebody else, and stays what it is."""
        data, is_guest = self._pending.get(ref.id, (None, False))
        if data is not None:
            self._pending[ref.id] = data, is_guest and guest
        elif self._held is not None and ref.id in self._held:
            data = await asyncio.to_thread(partial(self._held.read, ref, guest=guest))
        if data is None:
            raise NotHeld(f"segment {ref.id[:12]}… is not on this disk")
        self.received_bytes += len(data)
        return data

    def keep(self, ref: ObjectRef, data: bytes, *, guest: bool = False) -> None:
        """Have it written soon, unless too much waits for that already. `guest`: only others want it."""
        held = self._held
        if held is None or ref.kind != "segments" or ref.id in self._pending or ref.id in held:
            return
        if self._pending_bytes + len(data) > MOST_PENDING_BYTES:
            _log.debug("the disk is too slow to keep segment %s…", ref.id[:12])
            return
        self._pending[ref.id] = data, guest
        self._pending_bytes += len(data)
        self._changed.set()
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._write(held))

    @contextmanager
    def resting(self) -> Iterator[None]:
        """While this lasts the processors have better to do: what is to be kept waits, within limits.

        Writing 48 segments while they are streamed and a prompt is computed took 6 % of the time to the first token.
        """
        self._resting += 1
        try:
            yield
        finally:
            self._resting -= 1
            self._changed.set()

    async def flush(self) -> None:
        """Wait until everything that is to be kept has been written."""
        while self._work is not None and not self._work.done():
            await asyncio.wait([self._work])

    async def _rested(self) -> None:
        """Wait for the end of a rest that is not too long; over a slow link a load may take minutes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MOST_REST_S):
                while self._resting and self._pending_bytes <= MOST_PENDING_BYTES // 2:
                    self._changed.clear()
                    await self._changed.wait()

    async def _write(self, held: Held) -> None:
        await self._rested()
        while self._pending:
            id, (data, guest) = next(iter(self._pending.items()))
            ref = ObjectRef("segments", id, len(data))
            try:
                await asyncio.to_thread(partial(held.keep, ref, data, guest=guest))
            except Exception:
                _log.exception("keeping a segment failed in a way that nobody foresaw")
            del self._pending[id]
            self._pending_bytes -= len(data)


class Glance:
    """The same disk, read without a trace: what goes first when room is needed follows from no such reading."""

    name = Disk.name

    def __init__(self, disk: Disk, held: Held | None) -> None:
        self._disk, self._held = disk, held
        self.received_bytes = 0

    def holds(self, ref: ObjectRef) -> bool:
        return self._disk.holds(ref)

    async def get(self, ref: ObjectRef) -> bytes:
        held = self._held
        data = None if held is None else await asyncio.to_thread(lambda: held.read(ref, used=False))
        if data is None:
            raise NotHeld(f"segment {ref.id[:12]}… is not on this disk")
        self.received_bytes += len(data)
        return data


class _Keeping:
    """The link to the cloud; what comes over it is told before anybody who waits for it goes on.

    So at every moment a segment is under way, or known to be here: a neighbour that asks in between fetches no copy.
    """

    def __init__(self, link: CloudLink, arrived: Arrived) -> None:
        self._link, self._arrived = link, arrived
        self.own: Counter[ObjectId] = Counter()

    async def get(self, ref: ObjectRef) -> bytes:
        data = await self._link.get(ref)
        self._arrived(ref, data, guest=not self.own[ref.id])
        return data


class Cloud:
    """The cloud that everything comes from in the end."""

    name = CLOUD

    def __init__(self, link: CloudLink, arrived: Arrived) -> None:
        self._link, self._keeping = link, _Keeping(link, arrived)
        self._collapsed = Collapsed(self._keeping)

    @property
    def received_bytes(self) -> int:
        return self._link.received_bytes

    def holds(self, ref: ObjectRef) -> bool:
        return True

    async def get(self, ref: ObjectRef) -> bytes:
        own = self._keeping.own
        own[ref.id] += 1
        try:
            return await self._collapsed.get(ref)
        finally:
            own[ref.id] -= 1
            if not own[ref.id]:
                del own[ref.id]

    async def get_for_guest(self, ref: ObjectRef) -> bytes:
        """As `get`, for somebody else: what is kept of it gives way to all that this edge uses itself."""
        return await self._collapsed.get(ref)


class Near:
    """One other edge of the site, seen by the segments that are its to fetch."""

    def __init__(self, neighbour: Neighbour, owner: Callable[[ObjectId], str], arrived: Arrived) -> None:
        self.name, self._edge = f"near:{neighbour.edge}", neighbour.edge
        self._neighbour, self._owner, self._arrived = neighbour, owner, arrived

    @property
    def received_bytes(self) -> int:
        return self._neighbour.received_bytes

    def holds(self, ref: ObjectRef) -> bool | None:
        return None if self._neighbour.usable and self._owner(ref.id) == self._edge else False

    async def get(self, ref: ObjectRef) -> bytes:
        data = await self._neighbour.get(ref)
        self._arrived(ref, data)
        return data


class Sources:
    """All of them. `get` asks one after the other; whoever plans by itself takes `supplies`.

    Args:
        link: to the cloud, if there is one; whoever made it closes it.
        held: segments on disk, if any are kept.
        neighbours: other edges of the site, if any are known; closed with the site's.
    """

    def __init__(self, link: CloudLink | None, held: Held | None = None, neighbours: Neighbours | None = None) -> None:
        self.disk = Disk(held)
        self.cloud = None if link is None else Cloud(link, self.disk.keep)
        self.held, self.neighbours = held, neighbours

    def supplies(self) -> tuple[Supply, ...]:
        """What can be asked now, the most preferred first: the disk, neighbours, the cloud.

        For each segment at most one neighbour says that it can get it: the one that fetches it for the site.
        """
        found: list[Supply] = [] if self.held is None else [self.disk]
        if self.neighbours is not None:
            owner = lru_cache(maxsize=None)(self.neighbours.owner())
            found += [Near(one, owner, self.disk.keep) for one in self.neighbours.usable()]
        return (*found, *([] if self.cloud is None else [self.cloud]))

    def here(self) -> tuple[Supply, ...]:
        """What can be asked without anybody noticing."""
        return (Glance(self.disk, self.held),)

    async def get(self, ref: ObjectRef) -> bytes:
        """An object from wherever it can be had soonest: disk, neighbours, cloud.

        Raises:
            PrereadError: why the last of them did not have it.
        """
        if self.disk.holds(ref):
            try:
                return await self.disk.get(ref)
            except NotHeld:
                pass  # it was damaged, or another process removed it
        near, only_held = self._nearest(ref)
        if near is None:
            return await self._from_cloud(ref)
        data = await (self._if_held(near, ref) if only_held else self._unless_silent(near, ref))
        self.disk.keep(ref, data)
        return data

    def without_cloud(self, places: Sequence[SegmentPlace]) -> bool:
        """Whether this edge holds all of these itself."""
        return all(self.disk.holds(ref) for place in places for ref in place.refs)

    async def flush(self) -> None:
        """Wait until everything that is to be kept has been written."""
        await self.disk.flush()

    def _nearest(self, ref: ObjectRef) -> tuple[Neighbour | None, bool]:
        """The neighbour to ask, and whether only for what it holds.

        That is so where this edge is to fetch the segment: who did so before it joined may have it.
        """
        ranking = [] if self.neighbours is None else self.neighbours.candidates(ref.id)
        if not ranking or ranking == [None]:
            return None, False
        return (ranking[0], False) if ranking[0] is not None else (ranking[1], True)

    async def _from_cloud(self, ref: ObjectRef) -> bytes:
        if self.cloud is None:
            raise TransportError("this edge has no cloud")
        return await self.cloud.get(ref)

    async def _if_held(self, near: Neighbour, ref: ObjectRef) -> bytes:
        """From a neighbour if it holds the object, or else from the cloud."""
        try:
            async with asyncio.timeout(near.late_s(_SILENCE_S)):
                return await near.get_held(ref)
        except (PrereadError, TimeoutError) as error:
            _log.debug("segment %s… does not come from %s: %s", ref.id[:12], near.url, error)
        return await self._from_cloud(ref)

    async def _unless_silent(self, near: Neighbour, ref: ObjectRef) -> bytes:
        """From a neighbour; when that fails, from the cloud; when it is silent for long, from whoever is first."""
        asked, cloud = asyncio.ensure_future(near.get(ref)), None
        try:
            before = near.received_bytes
            while not (await asyncio.wait([asked], timeout=near.late_s(_SILENCE_S)))[0]:
                if near.received_bytes - before < _NEXT_TO_NOTHING_BYTES:
                    break
                before = near.received_bytes
            if not asked.done():
                cloud = asyncio.ensure_future(self._from_cloud(ref))
                await asyncio.wait([asked, cloud], return_when=asyncio.FIRST_COMPLETED)
                if not asked.done() and cloud.exception() is None:
                    near.failed("it was slower than the cloud")
                    return cloud.result()
                await asyncio.wait([asked])
            try:
                return asked.result()
            except PrereadError as error:
                _log.debug("segment %s… does not come from %s: %s", ref.id[:12], near.url, error)
            return await (cloud or self._from_cloud(ref))
        finally:
            under_way = [task for task in (asked, cloud) if task is not None]
            for task in under_way:
                task.cancel()
            await asyncio.wait(under_way)
            for task in under_way:
                if not task.cancelled():
                    task.exception()  # taken, so that asyncio does not report it
