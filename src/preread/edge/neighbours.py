"""The other edges of the site: who they are, which of them are well, and which one fetches a segment for all.

They are untrusted. What they send is checked against digests that come from the cloud, they are never sent the cloud's
key, and one that fails, lies or stays silent is left alone for a while. It knows introductions and failures; it must
not know discovery (somebody calls `add` and `remove`), or what segments are.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from preread.errors import CorruptData, PrereadError, RemoteError
from preread.plan.owner import ranked
from preread.store.collapse import Collapsed
from preread.store.egress import NeighbourLink
from preread.store.fetch import Source
from preread.values import Fingerprint, ObjectId, ObjectRef
from preread.wire.neighbour import SiteKey

MOST_NEIGHBOURS: Final = 64
"""More are not listened to: on a local network anybody can announce anything."""

PROBE_S: Final = 5.0
_PROBE_LIMIT_S: Final = 2.0
_ALONE_S: Final = 5.0
_LONGEST_ALONE_S: Final = 600.0
_log = logging.getLogger(__name__)


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

    def __init__(self, link: NeighbourLink) -> None:
        self._link, self._collapsed, self._held = link, Collapsed(link), _OnlyHeld(link)
        self.edge, self.well, self._said = "", False, ""
        self._failures, self._alone_until = 0, 0.0

    @property
    def url(self) -> str:
        """Where it is."""
        return self._link.url

    @property
    def received_bytes(self) -> int:
        """Bytes of segments that ever came from it, unfinished ones included."""
        return self._link.received_bytes

    @property
    def usable(self) -> bool:
        """Whether it is there, of the same model, and has not failed lately."""
        return self.well and bool(self.edge) and time.monotonic() >= self._alone_until

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
        try:
            data = await source.get(ref)
        except RemoteError:
            raise  # it does not know the object, has much to do, or its cloud fails: that is not its fault
        except PrereadError as error:
            self.failed(error, lied=isinstance(error, CorruptData))
            raise
        self._failures = 0
        return data

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
        """Leave it alone: 5 seconds, each time twice as long, and at once for ten minutes if it lied."""
        self._failures += 1
        alone_s = _LONGEST_ALONE_S if lied else min(_LONGEST_ALONE_S, _ALONE_S * 2.0 ** min(self._failures - 1, 10))
        self._alone_until = time.monotonic() + alone_s
        _log.info("neighbour %s is left alone for %.0f s: %s", self.url, alone_s, why)


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
        self._leaving: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        for url in urls:
            self.add(url, url)

    def add(self, name: str, url: str) -> None:
        """There is an edge at `url`, known as `name` to whoever found it.

        Raises:
            UsageError: that is no address.
        """
        known = self._known.get(name)
        if known is not None and known.url == url:
            return
        if known is None and len(self._known) >= MOST_NEIGHBOURS:
            _log.warning("%s is not used as neighbour: there are %d already", url, MOST_NEIGHBOURS)
            return
        self.remove(name)
        self._known[name] = Neighbour(NeighbourLink(url, self._edge, self._site_key))
        self._news.set()

    def remove(self, name: str) -> None:
        """The edge of this name is gone."""
        known = self._known.pop(name, None)
        if known is not None:
            task = asyncio.create_task(known.aclose())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

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
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._news.wait()

    async def aclose(self) -> None:
        """Close all connections."""
        for name in list(self._known):
            self.remove(name)
        await asyncio.gather(*self._leaving)
