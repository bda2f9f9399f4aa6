"""The asyncio side of the fault proxy: sockets, pairs of them, and the listener. Knows no processes and no JSON."""

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, cast

from preread.errors import UsageError
from preread.testing.lane import Flow, Lane, finish
from preread.testing.toxics import Blackout, Ending, Fault, HalfOpen, Link, Refuse, Stats
from preread.testing.traces import Trace

_LOG = logging.getLogger(__name__)
_SCRATCH_BYTES = 262_144
_BACKLOG = 512


class End(asyncio.BufferedProtocol):
    """One socket of a connection. Reading is off until the connection is open, that is, until `outgoing` is set.

    One that is half-open, `forgets`, reads without an `outgoing`, so as to see its client leave.
    `scratch` is shared by all sockets of a loop: asyncio fills it and hands it over without a turn in between.
    """

    transport: asyncio.Transport

    def __init__(self, scratch: memoryview, on_made: Callable[["End"], None], on_lost: Callable[["End"], None]) -> None:
        self._scratch, self._on_made, self._on_lost = scratch, on_made, on_lost
        self.connection: Connection | None = None
        self.outgoing: Flow | None = None
        self.forgets = False
        self.incoming: Flow | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # High water 0: `blocked` then means that the kernel has not taken all bytes, so an ending never cuts any off.
        self.transport.set_write_buffer_limits(high=0)
        # Not here: Python 3.11.2 begins to read after this, paused or not. Nothing is read before the next turn.
        asyncio.get_running_loop().call_soon(self._wait)
        self._on_made(self)

    def _wait(self) -> None:
        if self.outgoing is None and not self.forgets:
            self.transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch if self.outgoing is None else self._scratch[: self.outgoing.room_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        if self.outgoing is not None:
            self.outgoing.accept(bytes(self._scratch[:nbytes]))

    def eof_received(self) -> bool:
        if self.outgoing is not None:
            self.outgoing.accept(Ending.HALF_CLOSE)
        return self.outgoing is not None

    def pause_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked = True

    def resume_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked = False
            self.incoming.deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if self.connection is not None:
            self.connection.lost(self)
        self._on_lost(self)


class Connection:
    """Both sockets of one relayed connection and the two flows between them; `on_done` is called when both are gone."""

    def __init__(self, client: End, target: End, up: Lane, down: Lane, on_done: Callable[["Connection"], None]) -> None:
        self._client, self._target, self._on_done = client, target, on_done
        self._alive = {client, target}
        self.up = Flow(up, client.transport, target.transport, self._close_if_ended)
        self.down = Flow(down, target.transport, client.transport, self._close_if_ended)
        client.connection = target.connection = self
        client.outgoing = target.incoming = self.up
        client.incoming = target.outgoing = self.down

    def open(self) -> None:
        """Begin to read at both ends."""
        self._client.transport.resume_reading()
        self._target.transport.resume_reading()

    def _close_if_ended(self) -> None:
        if self.up.ended and self.down.ended:
            finish(self._client.transport, Ending.CLOSE)
            finish(self._target.transport, Ending.CLOSE)

    def lost(self, end: End) -> None:
        """One socket is gone: the news crosses the link like any byte, unless both directions had ended anyway."""
        self._alive.discard(end)
        if not self._alive:
            self.up.leave()
            self.down.leave()
            self._on_done(self)
        elif not (self.up.ended and self.down.ended):
            (self.up if end is self._client else self.down).accept(Ending.RESET)


class Proxy:
    """Relays TCP connections to `target` over an emulated link. All members belong to the loop it was entered on."""

    def __init__(
        self, target: tuple[str, int], link: Link | None = None, *, listen: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        self._target, self._listen = target, listen
        self._link = link or Link()
        self._faults: tuple[Fault, ...] = ()
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._accepted = 0
        self._leaving = False
        self._connections: set[Connection] = set()
        self._ends: set[End] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._expiries: list[asyncio.TimerHandle] = []
        self._next_step: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Raises UsageError if the address to listen on cannot be had."""
        self._loop = asyncio.get_running_loop()
        random_s = random.Random(0).random  # the same jitter in every run
        self._up, self._down = (Lane(self._link, self._loop, random_s) for _ in range(2))
        self._no_ends = asyncio.Event()
        self._no_ends.set()
        try:
            self._server = await self._loop.create_server(self._client_end, *self._listen, backlog=_BACKLOG)
        except OSError as error:
            raise UsageError(f"cannot listen on {self._listen[0]}:{self._listen[1]}: {error}") from error
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{self._listen[0]}:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        self._server.close()
        self._stand_still()
        for timer in self._expiries:
            timer.cancel()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for end in self._ends:
            finish(end.transport, Ending.RESET)
        await self._no_ends.wait()

    @property
    def link(self) -> Link:
        """The link as it is now. Assigning changes it for all that has not yet left the bottleneck.

        It also ends a trace.
        """
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        self._stand_still()
        self._link = link
        self._change()

    def follow(self, trace: Trace) -> None:
        """From now on the link changes as the trace says; after its last step it stays as that was."""
        self._stand_still()
        self._step(trace, 0, self._loop.time())

    def _step(self, trace: Trace, number: int, began: float) -> None:
        self._link = trace[number].link
        self._change()
        ends = began + trace[number].seconds
        self._next_step = None
        if number + 1 < len(trace):
            self._next_step = self._loop.call_at(ends, self._step, trace, number + 1, ends)

    def _stand_still(self) -> None:
        if self._next_step is not None:
            self._next_step.cancel()
            self._next_step = None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Faults in force; a blackout that is over is no longer among them. Assigning counts byte offsets from now."""
        return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)
        for timer in self._expiries:
            timer.cancel()
        self._expiries = [
            self._loop.call_later(fault.for_s, self._expire, fault)
            for fault in self._faults
            if isinstance(fault, Blackout) and fault.for_s is not None
        ]
        for connection in self._connections:
            connection.down.set_faults(self._faults)
        self._change()

    @property
    def stats(self) -> Stats:
        return Stats(self._accepted, self._up.total_bytes, self._down.total_bytes)

    def _expire(self, over: Fault) -> None:
        self._faults = tuple(fault for fault in self._faults if fault is not over)
        self._change()

    def _change(self) -> None:
        blackout = any(isinstance(fault, Blackout) for fault in self._faults)
        self._up.change(self._link, blackout=blackout)
        self._down.change(self._link, blackout=blackout)

    def _client_end(self) -> End:
        return End(self._scratch, self._accept, self._lost)

    def _made(self, end: End) -> None:
        self._ends.add(end)
        self._no_ends.clear()

    def _lost(self, end: End) -> None:
        self._ends.discard(end)
        if not self._ends:
            self._no_ends.set()

    def _accept(self, client: End) -> None:
        self._made(client)
        self._accepted += 1
        if self._leaving or any(isinstance(fault, Refuse) for fault in self._faults):
            finish(client.transport, Ending.RESET)
            return
        if any(isinstance(fault, HalfOpen) for fault in self._faults):
            client.forgets = True
            return
        task = self._loop.create_task(self._open(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, client: End) -> None:
        opens_at = self._loop.time() + self._link.rtt_ms / 1_000
        try:
            _, target = await self._loop.create_connection(
                lambda: End(self._scratch, self._made, self._lost), *self._target
            )
        except OSError as error:
            _LOG.warning("target %s:%d does not answer, client reset: %s", *self._target, error)
            finish(client.transport, Ending.RESET)
            return
        await asyncio.sleep(opens_at - self._loop.time())
        connection = Connection(client, target, self._up, self._down, self._connections.discard)
        connection.down.set_faults(self._faults)
        self._connections.add(connection)
        connection.open()
