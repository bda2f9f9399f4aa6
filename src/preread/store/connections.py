"""Who may hold a connection to a server of ours, and for how long: slow heads and bodies end, and nobody has them all.

uvicorn waits for ever for a request's head and body and takes any number of connections. This is its protocol with
limits around it. When all places are taken, whoever asks for nothing makes room: the connection that has been idle, or
at its request's head, for longest. As Apache's mod_reqtimeout, bodies have a time in which to end or to come at a rate.

It knows connections and bytes; it must not know requests' meaning, keys or routes.
"""

import asyncio
import logging
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from preread.store.routes import error_body

_TELL_EVERY_S: Final = 60.0
_REASONS: Final = {
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take.

    Attributes:
        connections: open at a time.
        per_address: of them from one address.
        head_s: until a request's line and headers are whole.
        head_bytes: of them.
        body_s: so long, time and again, a body may take to bring `body_bytes`, if it does not end.
        body_bytes: see there.
    """

    connections: int = 1024
    per_address: int = 512
    head_s: float = 10.0
    head_bytes: int = 32 * 1024
    body_s: float = 20.0
    body_bytes: int = 200_000


class Place(Protocol):
    """A connection that has a place, or wants one."""

    address: str
    counted: bool

    def make_room(self) -> None: ...


class Connections:
    """The open connections of one server."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._addresses: Counter[str] = Counter()
        self._asking_nothing: dict[Place, None] = {}  # in the order in which they became so
        self._ended, self._told_s = 0, -_TELL_EVERY_S

    def protocol(self, **uvicorns: Any) -> "Limited":
        """What uvicorn is to make for each connection."""
        return Limited(self, **uvicorns)

    def enter(self, one: Place) -> bool:
        """Whether there is room for `one`; whoever asks for nothing is sent away for it."""
        full = self._addresses.total() >= self.limits.connections
        if full or self._addresses[one.address] >= self.limits.per_address:
            leaving = next((other for other in self._asking_nothing if full or other.address == one.address), None)
            if leaving is None:
                return False
            leaving.make_room()
            self.leave(leaving)
        self._addresses[one.address] += 1
        one.counted = True
        return True

    def leave(self, one: Place) -> None:
        """It is closed, or about to be."""
        self.asks(one)
        if one.counted:
            one.counted = False
            self._addresses[one.address] -= 1
            if not self._addresses[one.address]:
                del self._addresses[one.address]

    def asks_nothing(self, one: Place) -> None:
        """It is idle, or its request's head is not whole, or TLS has not begun."""
        self._asking_nothing.setdefault(one)

    def asks(self, one: Place) -> None:
        """It has asked for something."""
        self._asking_nothing.pop(one, None)

    def tell(self, why: str, address: str) -> None:
        """Log that a connection was ended, or how many were since that was last said."""
        self._ended += 1
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_EVERY_S:
            _log.warning("connections ended by this server: %d; the last one from %s: %s", self._ended, address, why)
            self._ended, self._told_s = 0, now_s


class Limited(HttpToolsProtocol):
    """One connection, within limits."""

    def __init__(self, all: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._all, self._limits = all, all.limits
        self._phase: Literal["head", "body", "answer"] = "head"
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.address, self.counted = "", False

    def make_room(self) -> None:
        """Close this connection, which asks for nothing, for another one."""
        self._all.tell("all places were taken, and it asked for nothing", self.address)
        self.transport.close()

    # What uvicorn's event loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is None:
            self.client = (local_user(transport), 0)  # a unix socket's peer has no address
        self.address = self.client[0]
        if not self._all.enter(self):
            self._end(503, "too many connections: try again later")
            return
        self._all.asks_nothing(self)
        self._wait(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        self._all.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._phase == "answer" and self.cycle.response_complete:
            self._begin_head()
        self._bytes += len(data)
        super().data_received(data)
        if self._phase == "head" and self._bytes > self._limits.head_bytes and not self.transport.is_closing():
            self._end(431, f"a request's line and headers have at most {self._limits.head_bytes} bytes")

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._phase != "head":
            self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._phase, self._bytes = "body", 0
        self._all.asks(self)
        self._wait(self._limits.body_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._phase, self._bytes = "answer", 0
        self._wait(None)
        super().on_message_complete()
        if self.cycle.response_complete:  # before its request was whole: uvicorn waits no more for another one
            self._all.asks_nothing(self)
            self._wait(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase == "answer" and self.cycle.response_complete and not self.transport.is_closing():
            self._all.asks_nothing(self)

    def _begin_head(self) -> None:
        self._phase, self._bytes = "head", 0
        self._wait(self._limits.head_s)

    def _wait(self, for_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if for_s is None else self.loop.call_later(for_s, self._over)

    def _over(self) -> None:
        """The time for a head or a body, or for a part of one, is over. What we did not read ourselves is no delay."""
        if self.transport.is_closing():
            return
        answering = self._phase == "head" and self.cycle is not None and not self.cycle.response_complete
        if self._phase == "answer":
            self.transport.close()
        elif answering or self.flow.read_paused:
            self._wait(self._limits.head_s)
        elif self._phase == "head":
            self._end(408, f"a request's line and headers did not come within {self._limits.head_s:g} s")
        elif self._bytes < self._limits.body_bytes:
            self._end(408, f"a request's body came too slowly: {self._bytes} bytes in {self._limits.body_s:g} s")
        else:
            self._bytes = 0
            self._wait(self._limits.body_s)

    def _end(self, status: int, why: str) -> None:
        """Close the connection; where no answer has begun, after one that says why."""
        self._all.tell(why, self.address)
        self._wait(None)
        answered = self.cycle is not None and self.cycle.response_started
        if self._phase == "head" or not answered:
            reason = _REASONS[status]
            code = reason.lower().replace(" ", "_")
            body = msgspec.json.encode(error_body(status, f"{reason}: {why}", code))
            later = "Retry-After: 1\r\n" if status == 503 else ""
            head = (
                f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                f"{later}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def local_user(transport: asyncio.BaseTransport) -> str:
    """Who is at the other end of a unix socket, as the kernel says it (SO_PEERCRED, unix(7))."""
    sock = transport.get_extra_info("socket")
    try:
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except (OSError, AttributeError):
        return "a local socket"
    return f"user {struct.unpack('3i', peer)[1]}"
