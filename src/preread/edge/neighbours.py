"""The other edges of the site: who they are, which of them are well, and which one fetches a segment for all.

They are untrusted. What they send is checked against digests that come from the cloud, they are never sent the cloud's
key, and one that fails, lies or stays silent is left alone for a while. It knows introductions and failures; it must
not know discovery (somebody calls `add` and `remove`), or what segments are.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from preread.errors import CorruptData, PrereadError, RemoteError
from preread.plan.owner import ranked
from preread.plan.usual import Usual
from preread.store.collapse import Collapsed
from preread.store.egress import NeighbourLink
from preread.store.fetch import Source
from preread.store.hosts import is_loopback
from preread.values import Fingerprint, ObjectId, ObjectRef
from preread.wire.neighbour import SiteKey

MOST_NEIGHBOURS: Final = 64
"""More are not listened to: on a local network anybody can announce anything."""

_MOST_PENALTIES: Final = 256

PROBE_S: Final = 5.0
_REST_S: Final = 0.5
"""Between two rounds, however much news there is."""
_PROBE_LIMIT_S: Final = 2.0
_ALONE_S: Final = 5.0
_LONGEST_ALONE_S: Final = 600.0
_log = logging.getLogger(__name__)


class Penalty:
    """For how long an address is left alone, whatever names or ids are used there."""

    def __init__(self) -> None:
        self._failures, self._until_s = 0, 0.0

    @property
    def lasts(self) -> bool:
        """Whether it is not over."""
        return time.monotonic() < self._until_s

    def add(self, *, lied: bool) -> float:
        """5 seconds, each time twice as long, and at once ten minutes for a lie; so many seconds."""
        self._failures += 1
        alone_s = _LONGEST_ALONE_S if lied else min(_LONGEST_ALONE_S, _ALONE_S * 2.0 ** min(self._failures - 1, 10))
        self._until_s = time.monotonic() + alone_s
        return alone_s

    def forget(self) -> None:
        """It did as it should: the next failure is the first."""
        self._failures = 0


class _OnlyHeld:
    def __init__(self, link: NeighbourLink) -> None:
        self._link = link

    async def get(self, ref: ObjectRef) -> bytes:
        return await self._link.get_held(ref)


class Neighbour:
    """One other edge, as a source of segments.

    Attributes:
        edge: its id; "" until it has introduced itself as an edge of the same model.
        well: whether it answered when it was asked last.
    """

    def __init__(self, link: NeighbourLink, penalty: Penalty) -> None:
        self._link, self._collapsed, self._held, self._penalty = link, Collapsed(link), _OnlyHeld(link), penalty
        self.edge, self.well, self._said, self._usual = "", False, "", Usual()

    @property
    def url(self) -> str:
        """Where it is."""
        return self._link.url

    @property
    def host(self) -> str:
        """The name or address of the machine that it is on."""
        return self._link.host

    @property
    def received_bytes(self) -> int:
        """Bytes of segments that ever came from it, unfinished ones included."""
        return self._link.received_bytes

    @property
    def usable(self) -> bool:
        """Whether it is there, of the same model, and nothing failed at its address lately."""
        return self.known and not self._penalty.lasts

    @property
    def known(self) -> bool:
        """Whether it has introduced itself as an edge of this site, and is there."""
        return self.well and bool(self.edge)

    async def get(self, ref: ObjectRef) -> bytes:
        """An object that it holds, or fetches from the cloud.

        Raises:
            PrereadError: as `CloudLink.get` does. All but RemoteError leave it alone for a while.
        """
        return await self._get(self._collapsed, ref)

    async def get_held(self, ref: ObjectRef) -> bytes:
        """As `get`, but only if it holds the object: RemoteError if not."""
        return await self._get(self._held, ref)

    async def _get(self, source: Source[ObjectRef, bytes], ref: ObjectRef) -> bytes:
        began_s = time.monotonic()
        try:
            data = await source.get(ref)
        except RemoteError:
            raise  # it does not know the object, has much to do, or its cloud fails: that is not its fault
        except PrereadError as error:
            self.failed(error, lied=isinstance(error, CorruptData))
            raise
        self._penalty.forget()
        self._usual.note(time.monotonic() - began_s)
        return data

    def late_s(self, longest_s: float) -> float:
        """After how long an answer is later than is usual here, at most `longest_s`."""
        return self._usual.late_s(longest_s)

    async def probe(self, fingerprint: Fingerprint) -> None:
        """Ask who it is; afterwards `edge` and `well` are right."""
        try:
            async with asyncio.timeout(_PROBE_LIMIT_S):
                said = await self._link.introduction()
        except (PrereadError, TimeoutError) as error:
            self._is(f"is not asked: {error or 'no answer in time'}")
            self.well = False
            return
        self.edge = said.edge if said.model == fingerprint else ""
        self._is("is there" if self.edge else "runs another model: it is not asked")
        self.well = True

    async def aclose(self) -> None:
        """Close all connections to it."""
        await self._link.aclose()

    def _is(self, what: str) -> None:
        """Said once, until it changes."""
        if what != self._said:
            _log.info("neighbour %s %s", self.url, what)
        self._said = what

    def failed(self, why: object, *, lied: bool = False) -> None:
        """Leave its address alone for a while."""
        _log.info("neighbour %s is left alone for %.0f s: %s", self.url, self._penalty.add(lied=lied), why)


class Neighbours:
    """All other edges that are known, as `add` and `remove` tell.

    Args:
        edge: this edge's own id.
        fingerprint: of its model; edges of other models are ignored.
        site_key: secret that the edges of this site share, if they do; whoever does not prove to have it is not asked.
        sharing: whether this edge serves segments itself, so that some are its own to fetch.
        urls: edges that are known from the start.
    """

    def __init__(
        self, edge: str, fingerprint: Fingerprint, *, site_key: SiteKey | None, sharing: bool, urls: Iterable[str] = ()
    ) -> None:
        self._edge, self._fingerprint, self._site_key, self._sharing = edge, fingerprint, site_key, sharing
        self._known: dict[str, Neighbour] = {}
        self._named = frozenset(urls)
        self._penalties: dict[str, Penalty] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        for url in self._named:
            self.add(url, url)

    def add(self, name: str, url: str) -> None:
        """There is an edge at `url`, known as `name` to whoever found it.

        Where there are too many, one goes that was found rather than named at the start: one that has not proved to be
        an edge of this site, or else one of those that share an address with others. Failing that, this one does.

        Raises:
            UsageError: that is no address.
        """
        known = self._known.get(name)
        if known is not None and known.url == url:
            return
        link = NeighbourLink(url, self._edge, self._site_key)
        added = Neighbour(link, self._penalty(link))
        if known is None and len(self._known) >= MOST_NEIGHBOURS:
            leaving = self._least()
            if leaving is None:
                _log.warning("%s is not used as neighbour: there are %d already", url, MOST_NEIGHBOURS)
                return
            self.remove(leaving)
        self.remove(name)
        self._known[name] = added
        self._news.set()

    def remove(self, name: str) -> None:
        """The edge of this name is gone."""
        known = self._known.pop(name, None)
        if known is not None:
            task = asyncio.create_task(known.aclose())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _least(self) -> str | None:
        """Whose place another may have: the one that is worth least, if there is one."""
        hosts = Counter(one.host for one in self._known.values())
        ranked = [
            ((one.known, -hosts[one.host]), name)
            for name, one in self._known.items()
            if name not in self._named and not (one.known and hosts[one.host] == 1)
        ]
        return min(ranked)[1] if ranked else None

    def _penalty(self, link: NeighbourLink) -> Penalty:
        """That of an address. On the loopback each port is somebody else; elsewhere ports are free to choose."""
        place = link.url if is_loopback(link.host) else link.host
        penalty = self._penalties.pop(place, None) or Penalty()
        self._penalties[place] = penalty  # used last
        for other in [other for other, one in self._penalties.items() if not one.lasts and other != place]:
            if len(self._penalties) > _MOST_PENALTIES:
                del self._penalties[other]
        return penalty

    def all(self) -> list[Neighbour]:
        """Every one that is known, however it is."""
        return list(self._known.values())

    def usable(self) -> list[Neighbour]:
        """Those that can be asked now; one that goes by several addresses is there once, and this edge never."""
        found: dict[str, Neighbour] = {}
        for one in self._known.values():
            if one.usable and one.edge != self._edge:
                found.setdefault(one.edge, one)
        return list(found.values())

    def candidates(self, id: ObjectId) -> list[Neighbour | None]:
        """Who fetches a segment for the site, then who would if that one were not there, …; None: this edge itself."""
        found = {one.edge: one for one in self.usable()}
        edges = [*found, self._edge] if self._sharing else list(found)
        return [found.get(edge) for edge in ranked(id, edges)]

    def owner(self) -> Callable[[ObjectId], str]:
        """What tells which edge fetches a segment for the site, as things are now."""
        edges = [one.edge for one in self.usable()] + [self._edge] * self._sharing
        return lambda id: ranked(id, edges)[0] if edges else ""

    async def probe(self) -> None:
        """Ask all of them who they are."""
        await asyncio.gather(*[one.probe(self._fingerprint) for one in list(self._known.values())])

    async def keep_probing(self, every_s: float = PROBE_S) -> None:
        """Probe for ever, and at once when somebody was added."""
        while True:
            self._news.clear()
            await self.probe()
            await asyncio.sleep(min(_REST_S, every_s))
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._news.wait()

    async def aclose(self) -> None:
        """Close all connections."""
        for name in list(self._known):
            self.remove(name)
        await asyncio.gather(*self._leaving)
