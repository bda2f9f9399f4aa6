"""The one way out: everything that an edge ever says to the outside is said in this module.

It can ask a cloud for the catalogue, and for manifests, tokens, profiles, segments and fits by id, and a neighbouring
edge for segments and for who it is: GET, fixed paths, constant headers, which contexts are of interest, which version
of the catalogue is known, and how much of an object has come before. So nothing that derives from a prompt has a place
to be; of a name that somebody asked for, three digits of its digest do (`wire/selection.py`). It knows how objects are
named and verified; it must not know prompts, what objects mean, or which of them to ask for. (What an edge announces on
the local network, when it is told to, is in `mdns.py`.)
"""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Final, Self, get_args

from preread.errors import Absent, CorruptData, PrereadError, RemoteError, TransportError, UsageError
from preread.store.elsewhere import Elsewhere
from preread.store.http11 import Answer, Headers, Patience, Pool, Wanted
from preread.store.origin import Route, parse_origin
from preread.values import Kind, ObjectId, ObjectRef
from preread.via import DIRECT, Via
from preread.wire import origins
from preread.wire.digest import is_id, object_id
from preread.wire.fields import MAX_CATALOGUE_BYTES
from preread.wire.neighbour import (
    MAX_INTRODUCTION_BYTES,
    NONCE_BYTES,
    Claim,
    Introduction,
    SiteKey,
    address,
    introduction,
    same,
)
from preread.wire.pages import PAGE_ENTRIES, Pages
from preread.wire.pages import PATH as CATALOGUE
from preread.wire.selection import EVERYTHING, Selection
from preread.wire.told import MEDIA, Events, Told

INTRODUCTION: Final = "/v1/edge"
CONNECTIONS: Final = 48
"""Of segments of 20 KB that is a megabyte under way: 100 Mbit/s over 80 ms. Many also make up for TCP's slow start."""
MOST_BEGUN_BYTES: Final = 16 * 2**20
"""Of objects that broke off, what came is kept up to so many bytes in all; a profile has 7 MB."""

_KINDS: Final = frozenset(get_args(Kind))
_ETAG: Final = re.compile(r'(?:W/)?"([0-9a-f]{64})"')
_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")
_PATIENCE: Final = Patience()
_NEAR: Final = Patience(connect_s=0.5, stall_s=5.0, grace_s=15.0)
_NAMED_S: Final = 3600.0
"""So often a cloud is asked where segments can be had besides, when its catalogue is."""
_log = logging.getLogger(__name__)
_IF_HELD: Final[Headers] = (("Cache-Control", "only-if-cached"),)


class CloudLink:
    """A link to one cloud, or to a cache that speaks like one.

    Args:
        url: `http(s)://host[:port][/prefix]`, or `unix:/path`.
        api_key: sent as a bearer token with every request.
        via: how it is reached.
        patience: how long to wait.
        connections: how many requests may be in flight at once, each on a connection of its own.
        elsewhere: fetch segments from the bucket or cache that the cloud names, if it names one.

    Raises:
        UsageError: `url` or `api_key` cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        via: Via = DIRECT,
        patience: Patience = _PATIENCE,
        connections: int = CONNECTIONS,
        elsewhere: bool = True,
    ) -> None:
        if api_key is not None and not _KEY.fullmatch(api_key):
            raise UsageError("API key must be 1 to 512 printable ASCII characters without spaces")
        self._origin = parse_origin(url)
        self._route = Route.to(self._origin, via)
        self._headers: Headers = (("User-Agent", "preread"), ("Accept-Encoding", "identity"))
        if api_key is not None:
            self._headers += (("Authorization", f"Bearer {api_key}"),)
        self._pool = Pool(self._route, patience, connections, via.identity)
        near = self._origin.near
        self._elsewhere = (
            Elsewhere(near=near, via=via, patience=patience, connections=connections) if elsewhere else None
        )
        self._named_s = -math.inf
        self._begun: dict[ObjectId, bytearray] = {}
        self._under_way: list[tuple[bytearray, int]] = []
        self._ended_bytes = 0

    @property
    def exposed(self) -> bool:
        """Whether what is said over this link leaves the machine without TLS."""
        return self._origin.exposed

    async def catalogue(self, version: str = "", selection: Selection = EVERYTHING) -> tuple[bytes, str] | None:
        """The catalogue's bytes, unverified, and its version, or "" where it has none; None if `version` is current.

        It is asked for in pages. Where it changes between them it has no version: what is there is right, but not all.
        Where it says `since`, it has only what has changed since `version`. A cloud may send more than was selected.

        Raises:
            TransportError, RemoteError, UsageError: as for `get`.
            CorruptData: "length", a page is empty or over 16 MiB, or there are too many; "json", "schema" or "name".
        """
        version = version if is_id(version) else ""
        condition: Headers = (("If-None-Match", f'"{version}"'),) if version else ()
        pages, found = Pages(selection, version), set[str]()
        while (target := pages.target) is not None:
            answer = await self._pool.get(Wanted(target, self._headers + condition, 1, MAX_CATALOGUE_BYTES))
            if answer.status == 304 and condition:
                return None
            self._check(answer, "a catalogue")
            pages.take(answer.body)
            tag = _ETAG.fullmatch(answer.headers.get(b"etag", b"").decode("latin-1"))
            found.add(tag[1] if tag else "")
            condition = ()
        return pages.whole(), found.pop() if len(found) == 1 else ""

    async def changes(self, version: str, selection: Selection, silence_s: float) -> AsyncGenerator[Told, None]:
        """What the cloud tells of its catalogue, as it comes, over a connection of its own, until that ends.

        Args:
            version: of the catalogue, that is known; "": none is.
            selection: of what to be told.
            silence_s: the connection is dead after so much of it.

        Raises:
            TransportError, RemoteError, UsageError: as for `get`.
            Absent: this cloud does not tell, or what is between us does not let it.
            CorruptData: "length", "schema": it says what no cloud may.
        """
        query = selection.query()
        target = f"{CATALOGUE}?limit={PAGE_ENTRIES}" + (f"&{query}" if query else "")
        version = version if is_id(version) else ""
        known: Headers = (("Last-Event-ID", version), ("If-None-Match", f'"{version}"')) if version else ()
        headers = (*self._headers, ("Accept", MEDIA), *known)
        async with self._pool.stream(Wanted(target, headers, 0, 0), silence_s) as (answer, body):
            if answer.status != 304:
                self._check(answer, "changes of its catalogue")
            if not answer.headers.get(b"content-type", b"").startswith(MEDIA.encode()):
                raise Absent(f"{self._route} does not tell of changes: it is asked now and then")
            events = Events()
            async with aclosing(body):
                async for data in body:
                    for told in events.feed(data):
                        yield told

    async def get(self, ref: ObjectRef) -> bytes:
        """An object's bytes, of the stated size and with the digest that is its name.

        Raises:
            UsageError: `ref` is not a reference, or the cloud asks for another API key.
            TransportError: the cloud cannot be reached, or stopped answering.
            RemoteError: the cloud does not have it, or answers with any other error or redirect.
            CorruptData: "length" or "digest"; the bytes were thrown away.
        """
        return await self._object(ref, self._headers)

    async def _object(self, ref: ObjectRef, headers: Headers) -> bytes:
        if ref.kind not in _KINDS or not is_id(ref.id):
            raise UsageError(f"{ref.kind!r}, {ref.id!r} does not name an object")
        path, body = f"/v1/{ref.kind}/{ref.id}", self._begun.pop(ref.id, bytearray())
        try:
            with self._counting(ref, body):
                elsewhere = await self._from_elsewhere(ref, body)
                if elsewhere is not None:
                    return elsewhere
                answer = await self._pool.get(self._wanted(path, headers, ref.size_bytes), body)
        except (TransportError, asyncio.CancelledError):
            self._keep_begun(ref, body)
            raise
        self._check(answer, f"{ref.kind}/{ref.id[:12]}…")
        if object_id(answer.body) != ref.id:
            raise CorruptData("digest", f"{path} from {self._origin} is not the object of that name")
        return answer.body

    async def learn_origins(self) -> None:
        """Ask the cloud where segments can be had besides, unless it was asked lately. What goes wrong costs only that.

        Clouds of before know of no such place.
        """
        if self._elsewhere is None or time.monotonic() - self._named_s < _NAMED_S:
            return
        try:
            answer = await self._pool.get(Wanted(origins.PATH, self._headers, 1, origins.MAX_ORIGINS_BYTES))
            named = origins.loads(answer.body) if answer.status == 200 else origins.NONE
        except PrereadError as error:
            _log.info("where segments can be had besides the cloud is not known: %s", error)
            return
        self._named_s = time.monotonic()
        await self._elsewhere.name(named)

    async def _from_elsewhere(self, ref: ObjectRef, body: bytearray) -> bytes | None:
        """A segment from where the cloud names; None: it is to be asked itself."""
        if self._elsewhere is None or ref.kind != "segments":
            return None
        if not self._elsewhere.signed:
            return await self._elsewhere.get(ref, body)
        headers = (*self._headers, (origins.REDIRECT, "1"))
        answer = await self._pool.get(self._wanted(f"/v1/{ref.kind}/{ref.id}", headers, ref.size_bytes), body)
        if answer.status == 200 and object_id(answer.body) == ref.id:
            return answer.body  # a cache between us had it
        if answer.status != 307:
            body.clear()
            return None
        return await self._elsewhere.get(ref, body, answer.headers.get(b"location", b"").decode("latin-1"))

    def _wanted(self, path: str, headers: Headers, size_bytes: int) -> Wanted:
        """The request for an object."""
        return Wanted(path, headers, size_bytes, size_bytes)

    def _keep_begun(self, ref: ObjectRef, body: bytearray) -> None:
        """What broke off is gone on from when it is asked for again, if it is among the last few."""
        if 0 < len(body) < ref.size_bytes:
            self._begun[ref.id] = body
        while sum(map(len, self._begun.values())) > MOST_BEGUN_BYTES:
            del self._begun[next(iter(self._begun))]

    @contextmanager
    def _counting(self, ref: ObjectRef, body: bytearray) -> Iterator[None]:
        """While this lasts, what is added to a segment's body counts as progress."""
        if ref.kind != "segments":
            yield
            return
        under_way = (body, len(body))
        self._under_way.append(under_way)
        try:
            yield
        finally:
            self._under_way = [other for other in self._under_way if other is not under_way]
            self._ended_bytes += max(0, len(body) - under_way[1])

    @property
    def received_bytes(self) -> int:
        """Bytes of segments that ever arrived over this link, unfinished ones included, and of nothing else.

        Heads, errors and other objects are not what anybody waits for: whoever sends only those sends nothing.
        """
        return self._ended_bytes + sum(max(0, len(body) - before) for body, before in self._under_way)

    async def warm(self, connections: int) -> None:
        """Open connections ahead of need, so that no handshake is waited for later.

        Each asks once for the catalogue under a condition that is never met, so that nothing is transferred.

        Raises:
            As for `catalogue`.
        """
        outcomes = await asyncio.gather(*[self._touch() for _ in range(connections)], return_exceptions=True)
        for failure in filter(None, outcomes):
            raise failure

    async def aclose(self) -> None:
        """Close all connections at once; requests in flight fail with TransportError."""
        await self._pool.aclose()
        if self._elsewhere is not None:
            await self._elsewhere.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _touch(self) -> None:
        """One conditional GET that transfers nothing: `*` matches whatever catalogue there is (RFC 9110, 13.1.2)."""
        headers = (*self._headers, ("If-None-Match", "*"))
        answer = await self._pool.get(Wanted(CATALOGUE, headers, 1, MAX_CATALOGUE_BYTES))
        if answer.status != 304:
            self._check(answer, "a catalogue")

    def _check(self, answer: Answer, what: str) -> None:
        status = answer.status
        if status == 401:
            raise UsageError(f"{self._route} refuses this API key (401): ask its operator for one")
        if status == 403:
            raise UsageError(f"{self._route} does not let this API key read (403): ask its operator for the scope read")
        if status == 421:
            raise UsageError(f"{self._route} does not know itself by this name (421): see --allow-host there")
        if status == 404:
            raise Absent(f"{self._route} does not have {what}: it was removed, or this is not a preread cloud")
        if 300 <= status < 400:
            raise RemoteError(f"{self._route} answers {what} with redirect {status}, which is not followed")
        if status != 200:
            raise RemoteError(f"{self._route} answers {what} with status {status}: look at its log")
        if answer.headers.get(b"content-encoding", b"identity") != b"identity":
            raise RemoteError(f"{self._route} encodes {what} although that was not asked for: look at caches between")


class NeighbourLink(CloudLink):
    """A link to a neighbouring edge, which serves segments and nothing else.

    It is never given the cloud's API key: a neighbour is whoever answers. Nor is it given the site's key: where there
    is one, both sides prove that they have it, and until the neighbour has, it is asked for nothing but who it is.

    Args:
        url: where it shares.
        edge: id of the edge that asks.
        site_key: secret that the edges of the site share, if they do.
    """

    def __init__(self, url: str, edge: str, site_key: SiteKey | None = None) -> None:
        super().__init__(url, patience=_NEAR, connections=8, elsewhere=False)
        if self._origin.socket is not None:
            raise UsageError(f"{url!r} is no neighbour's address: edges reach each other at http://HOST:PORT")
        self.url, self.host = str(self._origin), self._origin.host
        self._edge, self._site_key = edge, site_key
        self._met: tuple[Claim, Introduction] | None = None

    async def get_held(self, ref: ObjectRef) -> bytes:
        """As `get`, but the neighbour is not to fetch what it does not hold: RemoteError then (RFC 9111, 5.2.1.7)."""
        return await self._object(ref, self._headers + _IF_HELD)

    async def introduction(self) -> Introduction:
        """What the neighbour says about itself; where the site has a key, it has proved to have it too.

        Raises:
            TransportError, RemoteError: as for `get`.
            CorruptData: "length", "json", "schema", or "proof": it does not have the site's key.
        """
        claim, dialled = Claim(self._edge, secrets.token_hex(NONCE_BYTES)), [""]

        def introduce(host: str, port: int) -> Headers:
            dialled[0] = address(host, port)
            return (("Authorization", str(claim)),)

        prove = None if self._site_key is None else introduce
        answer = await self._pool.get(Wanted(INTRODUCTION, self._headers, 1, MAX_INTRODUCTION_BYTES, prove))
        self._check(answer, "an introduction")
        said, self._met = introduction(answer.body), None
        if self._site_key is None and said.nonce:
            raise RemoteError(f"{self._origin} shares with those who have its site's key: give --site-key")
        if self._site_key is not None:
            if not same(said.proof, self._site_key.answer(claim, said, dialled[0])):
                raise CorruptData("proof", f"{self._origin} does not prove to have this site's key: it is not asked")
            self._met = claim, said
        return said

    def _wanted(self, path: str, headers: Headers, size_bytes: int) -> Wanted:
        if self._site_key is None:
            return super()._wanted(path, headers, size_bytes)
        key, met = self._site_key, self._met
        if met is None:
            raise RemoteError(f"{self._origin} has not proved to have this site's key")
        claim, said = met

        def prove(host: str, port: int) -> Headers:
            proof = key.request(claim, said.edge, said.nonce, address(host, port), self._origin.prefix + path)
            return (("Authorization", str(Claim(claim.edge, claim.nonce, proof))),)

        return Wanted(path, headers, size_bytes, size_bytes, prove)
