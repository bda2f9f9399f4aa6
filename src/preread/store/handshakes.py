"""Connections that begin with TLS: each has a place while it shakes hands, and as long as for a request's head.

asyncio's own servers let connections that never shake hands be as many as there are files, for a minute each. It knows
sockets and TLS; it must not know what is said then.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from preread.store.connections import Connections

_BACKLOG: Final = 2048
_AT_ONCE: Final = 64
"""So many connections are taken before others have their turn."""

_REST_S: Final = 1.0
"""When there are no files left, as asyncio waits."""


class Door:
    """Accepts connections at one bound socket; whoever has shaken hands is handed on to a protocol of `make`."""

    def __init__(
        self, all: Connections, sock: socket.socket, secured: ssl.SSLContext, make: Callable[[], asyncio.Protocol]
    ) -> None:
        self._all, self._sock, self._secured, self._make = all, sock, secured, make
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()
        self._closed = False

    def open(self) -> None:
        """Listen.

        Raises:
            OSError: another process took the address meanwhile.
        """
        self._sock.setblocking(False)
        self._sock.listen(_BACKLOG)
        self._watch()

    async def aclose(self) -> None:
        """Listen no more; who is shaking hands is sent away. The socket stays open."""
        self._closed = True
        self._loop.remove_reader(self._sock)
        for task in self._shaking:
            task.cancel()
        await asyncio.gather(*self._shaking, return_exceptions=True)

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._loop.remove_reader(self._sock)
                self._loop.call_later(_REST_S, self._watch)
                return
            accepted.setblocking(False)
            task = self._loop.create_task(self._shake(accepted, str(peer[0])))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    async def _shake(self, accepted: socket.socket, address: str) -> None:
        handshake = Handshake(self._all, address, self._make())
        if not self._all.enter(handshake):
            accepted.close()
            return
        self._all.asks_nothing(handshake)
        handshake.task = asyncio.current_task()
        try:
            await self._loop.connect_accepted_socket(
                lambda: handshake, accepted, ssl=self._secured, ssl_handshake_timeout=self._all.limits.head_s
            )
        except OSError:  # ssl.SSLError is one, and so is a connection that broke or was too slow
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            if not handshake.leaving:
                raise
        finally:
            self._all.leave(handshake)


class Handshake(asyncio.Protocol):
    """Has a place until it is over; `next` is what has one then."""

    def __init__(self, all: Connections, address: str, next: asyncio.Protocol) -> None:
        self._all, self.address, self._next = all, address, next
        self.counted = self.leaving = False
        self.task: asyncio.Task[None] | None = None

    def make_room(self) -> None:
        """Close this connection for another one."""
        self._all.tell("all places were taken, and TLS had not begun", self.address)
        self.leaving = True
        if self.task is not None:
            self.task.cancel()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._all.leave(self)
        transport.set_protocol(self._next)
        self._next.connection_made(transport)
