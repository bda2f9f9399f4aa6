"""GET over HTTP/1.1 keep-alive connections to one origin: h11 says what the bytes mean, asyncio moves them.

An origin is reached over TCP, with TLS or without, over a unix socket, or through an HTTP proxy when one was named.

It exists beside the HTTP client library because segments are the hot path of a machine that also runs inference: for
140 KB objects it takes a quarter of that library's CPU time. It knows HTTP and how long to wait; it must not know what
is asked for or what the bytes mean. It follows no redirect, keeps no cookie, reads no environment variable, and never
holds more of an answer than its caller allows.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import h11

from preread import tls
from preread.errors import CorruptData, RemoteError, TransportError
from preread.store.dial import READ_BYTES, cause, credentials_refused, dial
from preread.store.origin import Route

Headers = tuple[tuple[str, str], ...]

_HEAD_BYTES = 16 * 1024
_MOST_HINTS = 5
"""Answers before the answer (RFC 9110, 15.2) that are read over, as many as Go's client takes."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait before the link is called dead.

    Attributes:
        connect_s: for a connection, TLS included.
        stall_s: without a single byte while an answer is due.
        grace_s, slowest_bytes_s: the first n bytes of a body may take `grace_s + n / slowest_bytes_s` in all, however
            steadily they drip.
    """

    connect_s: float = 2.0
    stall_s: float = 5.0
    grace_s: float = 30.0
    slowest_bytes_s: float = 8_000.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, and how long its body must be: `least_bytes` to `most_bytes`, both inclusive.

    `prove`, if given, makes further headers for the address (host, port) that the connection is to in the end.
    """

    target: str
    headers: Headers
    least_bytes: int
    most_bytes: int
    prove: Callable[[str, int], Headers] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in lower case), and the body: that of 200, otherwise empty.

    A part that was asked for and makes a body whole is told as 200.
    """

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Pool:
    """Up to `connections` keep-alive connections, each opened when it is first needed; over TLS `identity` is shown."""

    def __init__(self, route: Route, patience: Patience, connections: int, identity: tls.Identity | None) -> None:
        self._route, self._patience = route, patience
        self._places = asyncio.Semaphore(connections)
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._identity = identity
        self._tls: tls.Renewed | None = None

    async def get(self, wanted: Wanted, begun: bytearray | None = None) -> Answer:
        """Ask once; an idle connection that the other side had closed meanwhile is replaced by another.

        Args:
            wanted: what to ask for.
            begun: what has come of the body before. Only the rest is asked for then (RFC 9110, 14.2), and all of it
                taken where that is what comes. It is added to as bytes come, so that a slow link shows early and a
                failure can be gone on from.

        Raises:
            TransportError: no connection, no answer in time, or the connection broke before the answer's end.
            UsageError: SSL_CERT_FILE names no certificates.
            RemoteError: the answer is not HTTP/1.1, its head is over 16 KiB, or it never gets to the point.
            CorruptData: "length", the body is shorter or longer than wanted.
        """
        body = bytearray() if begun is None else begun
        async with self._places:
            while self._idle:
                with suppress(_Stale):
                    return await self._ask(self._idle.pop(), wanted, body)
            return await self._ask(await self._connect(), wanted, body)

    @asynccontextmanager
    async def stream(
        self, wanted: Wanted, silence_s: float
    ) -> AsyncGenerator[tuple[Answer, AsyncGenerator[bytes, None]], None]:
        """Ask once, over a connection of its own that is none of the pool's places, and that is closed in the end.

        Gives the answer without its body, and the body as it comes, however long that takes.

        Args:
            wanted: what to ask for; its sizes do not count.
            silence_s: without a single byte after the answer's head; then the link is called dead.

        Raises:
            As for `get`, also where the body is read.
        """
        connection = await self._connect()
        try:
            answer = await connection.begin(wanted, self._patience.stall_s)
            yield answer, connection.rest(silence_s)
        except OSError as error:
            raise TransportError(f"connection to {self._route} broke: {cause(error)}{connection.silence}") from error
        finally:
            self._open.discard(connection)
            connection.abort()

    async def aclose(self) -> None:
        """Close every connection at once; requests in flight fail with TransportError."""
        self._idle.clear()
        closing = [connection.aclose() for connection in self._open]
        self._open.clear()
        await asyncio.gather(*closing)

    async def _ask(self, connection: "_Connection", wanted: Wanted, body: bytearray) -> Answer:
        reusable = False
        try:
            answer = await connection.exchange(wanted, self._patience, body)
            if answer.status == 407 and self._route.proxy is not None:
                raise credentials_refused(self._route.proxy)
            reusable = connection.rewind()
            return answer
        except OSError as error:
            raise TransportError(f"connection to {self._route} broke: {cause(error)}{connection.silence}") from error
        finally:
            if reusable and connection in self._open:
                self._idle.append(connection)
            else:
                self._open.discard(connection)
                connection.abort()

    async def _connect(self) -> "_Connection":
        route, limit_s = self._route, self._patience.connect_s
        if route.origin.scheme == "https" and self._tls is None:
            self._tls = tls.renewed_context(self._identity)
        try:
            async with asyncio.timeout(limit_s):
                reader, writer = await dial(route, None if self._tls is None else self._tls.current())
        except TimeoutError as error:
            raise TransportError(
                f"{route} cannot be reached: no connection within {limit_s:g} s; check the address and the network"
            ) from error
        except OSError as error:
            why = tls.cause(error) or f"{cause(error)}; is `preread cloud` running there?"
            raise TransportError(f"{route} cannot be reached: {why}") from error
        silence = "" if self._tls is None else tls.silence(self._identity)
        connection = _Connection(route, silence, reader, writer)
        self._open.add(connection)
        return connection


class _Stale(Exception):
    """An idle connection turned out to be closed; nothing of the answer had arrived."""


class _Connection:
    """One connection; one request at a time. `silence`: what to say where it ends before anything came over it."""

    def __init__(self, route: Route, silence: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._route, self.silence, self._reader, self._writer = route, silence, reader, writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        self._used = False

    async def exchange(self, wanted: Wanted, patience: Patience, body: bytearray) -> Answer:
        """Send the request, read the whole answer into `body`. Any exception leaves the connection unusable."""
        before = len(body)
        target = self._send(wanted, before)
        answer, heard, hints, refused = Answer(0, {}, b""), False, 0, False
        grace_until = time.monotonic() + patience.grace_s
        while True:
            event = self._next_event(len(body))
            if event is h11.NEED_DATA:
                left_s = grace_until + (len(body) - before) / patience.slowest_bytes_s - time.monotonic()
                data = await self._read(min(patience.stall_s, left_s), len(body), retry=self._used and not heard)
                heard = True
                if data:
                    self.silence = ""
                self._http.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                hints += 1
                if hints > _MOST_HINTS:
                    raise RemoteError(f"{self._route} announces an answer again and again, and gives none")
            elif isinstance(event, h11.Response):
                answer = Answer(event.status_code, dict(event.headers), b"")
                if answer.status == 200:
                    body.clear()  # all of it comes, whatever was asked for
                    before = 0
                elif answer.status != 304 and not (before and answer.status == 206):
                    if answer.headers.get(b"content-length") != b"0":
                        return answer
                    refused = True  # there is nothing to read, and the connection can be used again
                    continue
                _check_declared(answer, wanted, before)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > wanted.most_bytes:
                    raise CorruptData("length", f"{target} is longer than the {wanted.most_bytes} bytes it may have")
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise TransportError(f"{self._route} closed the connection without an answer{self.silence}")
        if refused or answer.status == 304:
            return answer
        if len(body) < wanted.least_bytes:
            raise CorruptData("length", f"{target} has {len(body)} bytes, expected {wanted.least_bytes}")
        return Answer(200, answer.headers, bytes(body))

    async def begin(self, wanted: Wanted, limit_s: float) -> Answer:
        """Send the request, and read the head of its answer: that of a body which `rest` gives."""
        self._send(wanted, 0)
        hints = 0
        while True:
            event = self._next_event(0)
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._read(limit_s, 0, retry=False))
            elif isinstance(event, h11.InformationalResponse):
                hints += 1
                if hints > _MOST_HINTS:
                    raise RemoteError(f"{self._route} announces an answer again and again, and gives none")
            elif isinstance(event, h11.Response):
                return Answer(event.status_code, dict(event.headers), b"")
            else:
                raise TransportError(f"{self._route} closed the connection without an answer{self.silence}")

    async def rest(self, silence_s: float) -> AsyncGenerator[bytes, None]:
        """The body as it comes, to its end. Each part must come within so many seconds after the one before."""
        came_bytes = 0
        while True:
            event = self._next_event(came_bytes)
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._read(silence_s, came_bytes, retry=False))
            elif isinstance(event, h11.Data):
                came_bytes += len(event.data)
                yield bytes(event.data)
            else:
                return

    def _send(self, wanted: Wanted, before: int) -> str:
        """Send the request, for what comes after so many bytes; its target."""
        target = self._route.target(wanted.target)
        headers = [*self._route.headers, *wanted.headers]
        if wanted.prove is not None:
            headers += wanted.prove(*self._writer.get_extra_info("peername")[:2])
        if before:
            headers.append(("Range", f"bytes={before}-"))
        head = self._http.send(h11.Request(method="GET", target=target, headers=headers))
        self._writer.write((head or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        return target

    def rewind(self) -> bool:
        """Make ready for another request; False where the connection must be closed instead."""
        done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if not done or self._http.trailing_data[0]:
            return False
        self._http.start_next_cycle()
        self._used = True
        return True

    def abort(self) -> None:
        """Close without a farewell; what is still on its way is thrown away."""
        self._writer.transport.abort()

    async def aclose(self) -> None:
        """Close and wait until the socket is gone."""
        self.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    def _next_event(self, body_bytes: int) -> object:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            if self._reader.at_eof():
                message = f"{self._route} closed the connection after {body_bytes} bytes{self.silence}"
                raise TransportError(message) from error
            raise RemoteError(f"{self._route} does not speak proper HTTP/1.1: {error}") from error

    async def _read(self, limit_s: float, body_bytes: int, *, retry: bool) -> bytes:
        """Some bytes, or none at the end of the stream. _Stale where there are none and `retry` says to try again."""
        try:
            async with asyncio.timeout(limit_s):
                data = await self._reader.read(READ_BYTES)
        except TimeoutError as error:
            message = f"{self._route} stalls or is too slow: nothing more for {max(0, limit_s):.1f} s"
            raise TransportError(f"{message} after {body_bytes} bytes of an answer") from error
        except OSError as error:
            if retry:
                raise _Stale from error
            raise
        if retry and not data:
            raise _Stale
        return data


def _check_declared(answer: Answer, wanted: Wanted, before: int) -> None:
    """Refuse a body of the wrong length, or another part, before reading it; `before`: bytes that are here already.

    h11 has already refused lengths that are no numbers.
    """
    if answer.status == 304:
        return
    declared = answer.headers.get(b"content-length")
    if declared is not None and not wanted.least_bytes <= before + int(declared) <= wanted.most_bytes:
        raise CorruptData("length", f"{wanted.target} is announced with {int(declared)} bytes: not what it must have")
    part = answer.headers.get(b"content-range", b"")
    if answer.status == 206 and not part.startswith(b"bytes %d-" % before):
        raise CorruptData("length", f"{wanted.target} was asked for from byte {before} on, and another part came")
