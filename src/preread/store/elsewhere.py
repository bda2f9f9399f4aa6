"""Segments from a bucket or a cache that the cloud names, instead of through the cloud.

They are never asked with the cloud's API key. They follow the same limits of time and size as a cloud, no redirects,
and whatever goes wrong with one costs only that the cloud is asked after all.
"""

import logging
import time
from typing import Final
from urllib.parse import urlsplit

from preread import tls
from preread.errors import Absent, CorruptData, PrereadError, RemoteError, UsageError
from preread.store.http11 import Headers, Patience, Pool, Wanted
from preread.store.origin import Route, parse_origin
from preread.values import ObjectRef
from preread.via import Via
from preread.wire import origins as wire
from preread.wire.digest import object_id
from preread.wire.origins import Origins

_HEADERS: Final[Headers] = (("User-Agent", "preread"), ("Accept-Encoding", "identity"))
_REST_S: Final = 30.0
"""An origin that failed is left alone for so long."""

_log = logging.getLogger(__name__)


class Elsewhere:
    """The origins of one cloud.

    Args:
        near: whether the cloud is on this machine.
        via: how others are reached.
        patience: how long to wait.
        connections: to each origin.
    """

    def __init__(self, *, near: bool, via: Via, patience: Patience, connections: int) -> None:
        self._near, self._via, self._patience, self._connections = near, via, patience, connections
        self._named = wire.NONE
        self._pools: dict[str, tuple[Route, Pool]] = {}
        self._rest_until_s = 0.0

    @property
    def signed(self) -> bool:
        """Whether the cloud is to be asked for each segment's address."""
        return self._named.signed and self._awake()

    async def name(self, origins: Origins) -> None:
        """Take over what the cloud names; addresses that no edge goes to are left out."""
        allowed = list[str]()
        for address in origins.origins:
            why = wire.why_not(address, near=self._near)
            if why is None:
                allowed.append(address.rstrip("/"))
            elif origins != self._named:
                _log.warning("segments are not fetched from %s, which the cloud names: %s", address, why)
        self._named = Origins(tuple(allowed), origins.signed)
        for address in [one for one in self._pools if one not in allowed]:
            await self._pools.pop(address)[1].aclose()

    async def get(self, ref: ObjectRef, body: bytearray, location: str = "") -> bytes | None:
        """A segment from the first origin that has it; None: ask the cloud. `body` has what has come of it so far.

        Args:
            ref: the segment.
            body: is added to as bytes come.
            location: where it is, if the cloud signed an address.
        """
        if not self._awake() or (self._named.signed and not wire.within(location, self._named)):
            return None
        before = bytes(body)
        for address in self._named.origins:
            if location and not location.startswith(f"{address}/"):
                continue
            try:
                return await self._from(address, ref, body, location)
            except PrereadError as error:
                body[:] = before  # who is asked next would only send what comes after, and all of it be thrown away
                _log.info("segment %s… does not come from %s: %s", ref.id[:12], address, error)
                if not isinstance(error, Absent):  # one that has not everything may have the next one
                    self._rest_until_s = time.monotonic() + _REST_S
        return None

    async def aclose(self) -> None:
        """Close all connections at once."""
        for _, pool in self._pools.values():
            await pool.aclose()

    def _awake(self) -> bool:
        return bool(self._named.origins) and time.monotonic() >= self._rest_until_s

    async def _from(self, address: str, ref: ObjectRef, body: bytearray, location: str) -> bytes:
        route, pool = self._pool(address)
        path = wire.segment_path(ref.id)
        if location:
            parts = urlsplit(location)
            path = f"{parts.path}?{parts.query}".removeprefix(route.origin.prefix)
        answer = await pool.get(Wanted(path, _HEADERS, ref.size_bytes, ref.size_bytes), body)
        if answer.status == 404:
            raise Absent(f"{route} does not have it")
        if answer.status != 200:
            raise RemoteError(f"{route} answers with status {answer.status}")
        if object_id(answer.body) != ref.id:
            raise CorruptData("digest", f"{path} from {route} is not the object of that name")
        return answer.body

    def _pool(self, address: str) -> tuple[Route, Pool]:
        if address not in self._pools:
            route = Route.to(parse_origin(address), self._via)
            if route.origin.socket is not None:
                raise UsageError(f"{address} is no address of an origin")
            identity: tls.Identity | None = None  # who this edge is, only its own cloud is shown
            self._pools[address] = route, Pool(route, self._patience, self._connections, identity)
        return self._pools[address]
