"""How bytes cross the emulated link: a `Lane` is shared by all connections, a `Flow` is one connection's share of it.

Theory of operation. The link has two lanes, up and down, and each connection has one flow in either. A chunk that is
read at `arrival` gets, in virtual time,

    departs = max(arrival, lane.free_at) + size / rate        lane.free_at = departs
    due     = departs + rtt / 2 + jitter

and is written to the other socket at the first wake-up after `due`, behind the chunks ahead of it in its flow. Because
`free_at` advances by size / rate and not by when a timer happened to fire, late wake-ups delay bytes but do not lower
the rate, as long as a flow reads ahead: it holds up to `Lane.limit_bytes` and stops reading beyond, which is the
backpressure that the sender feels. Lanes serve first come, first served; connections with equal buffers hold equal
shares. When the link changes, what has not departed is admitted again, in its old order; what is past the bottleneck
arrives as it would have. A stalled lane (rate 0 or blackout) admits for never and delivers nothing.

Endings (FIN, RST) travel in the queue like bytes. This module writes to transports and tells them when to read; it does
not know how connections are made, nor who sets faults.
"""

import asyncio
import math
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from preread.testing.toxics import Ending, Fault, Link, Slicer, bite

_PACKET_BYTES = 1_448  # payload of an Ethernet frame: the finest grain that a real link has
_CHUNK_BYTES = 65_536
_CHUNK_S = 0.002  # 16 KiB at 65 Mbit/s; finer costs wake-ups, here and at the client
_LEAST_BUFFER_S = 0.010  # a process that shares its cores is now and then woken this late
_UNLIMITED_BYTES_PER_S = 500e6  # only to bound what is in flight on an unlimited link


@dataclass(slots=True)
class Chunk:
    """Bytes or the ending of a flow on their way: loop times (s) at which they leave the bottleneck and arrive."""

    payload: bytes | Ending
    order: int
    departs: float
    due: float


class Lane:
    """One direction of the link. `total_bytes` counts what was delivered."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop, random_s: Callable[[], float]) -> None:
        self.loop, self.random_s = loop, random_s
        self.flows: set[Flow] = set()
        self.total_bytes = 0
        self._free_at = 0.0
        self._admitted = 0
        self._set(link, blackout=False)

    def _set(self, link: Link, *, blackout: bool) -> None:
        self.stalled = blackout or link.mbps == 0
        self._bytes_per_s = math.inf if link.mbps is None else link.mbps * 125_000
        self._delay_s, self._jitter_s = link.rtt_ms / 2_000, link.jitter_ms / 1_000
        paced = math.isfinite(self._bytes_per_s)
        self.chunk_bytes = max(_PACKET_BYTES, int(min(_CHUNK_BYTES, self._bytes_per_s * _CHUNK_S)))
        buffer_bytes = max(link.buffer_bytes, int(self._bytes_per_s * _LEAST_BUFFER_S) if paced else 0)
        rate = self._bytes_per_s if paced else _UNLIMITED_BYTES_PER_S
        self.limit_bytes = buffer_bytes + int(rate * (self._delay_s + self._jitter_s))
        self.resume_bytes = self.limit_bytes - buffer_bytes // 4

    def change(self, link: Link, *, blackout: bool) -> None:
        """Give all that waits before the bottleneck, in its order, to the link as it is from now on."""
        self._set(link, blackout=blackout)
        self._free_at = now = self.loop.time()
        waiting = [(chunk.order, flow, chunk.payload) for flow in self.flows for chunk in flow.recall(now)]
        for _, flow, payload in sorted(waiting, key=lambda item: item[0]):
            flow.enqueue(payload, now)
        for flow in self.flows:
            flow.deliver()

    def admit(self, payload: bytes | Ending, now: float) -> Chunk:
        """Place one chunk behind all others."""
        self._admitted += 1
        if self.stalled:
            return Chunk(payload, self._admitted, math.inf, math.inf)
        size = len(payload) if isinstance(payload, bytes) else 0
        self._free_at = departs = max(now, self._free_at) + size / self._bytes_per_s
        jitter_s = self._jitter_s * self.random_s() if self._jitter_s else 0.0
        return Chunk(payload, self._admitted, departs, departs + self._delay_s + jitter_s)


class Flow:
    """One direction of one connection: reads from `source`, passes the lane, writes to `sink`.

    `faults` that bite bytes or slice them are applied as bytes are written; `on_end` is called after a half-close.
    """

    def __init__(
        self, lane: Lane, source: asyncio.Transport, sink: asyncio.Transport, on_end: Callable[[], None]
    ) -> None:
        self._lane, self._source, self._sink, self._on_end = lane, source, sink, on_end
        self._queue: deque[Chunk] = deque()
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next_slice = 0.0
        self._offset = 0
        self._faults: tuple[Fault, ...] = ()
        self._slicer: Slicer | None = None
        self.blocked = False
        self.ended = False
        lane.flows.add(self)

    def set_faults(self, faults: tuple[Fault, ...]) -> None:
        """Apply these faults to bytes from now on, and count their offsets from now."""
        self._faults = faults
        self._slicer = next((fault for fault in faults if isinstance(fault, Slicer)), None)
        self._next_slice = 0.0
        self._offset = 0

    @property
    def room_bytes(self) -> int:
        """How much the next read may take, at least one packet."""
        return max(_PACKET_BYTES, self._lane.limit_bytes - self._held_bytes)

    def accept(self, payload: bytes | Ending) -> None:
        """Take what the source sent. Stops reading from the source when the buffer is full."""
        self.enqueue(payload, self._lane.loop.time())
        if self._timer is None:
            self.deliver()
        if self._held_bytes >= self._lane.limit_bytes:
            self._source.pause_reading()

    def enqueue(self, payload: bytes | Ending, now: float) -> None:
        """Put the payload on the lane in chunks, without delivering anything yet."""
        size = self._lane.chunk_bytes
        pieces = (
            [payload]
            if isinstance(payload, Ending) or len(payload) <= size
            else [payload[start : start + size] for start in range(0, len(payload), size)]
        )
        for piece in pieces:
            chunk = self._lane.admit(piece, now)
            self._queue.append(chunk)
            self._held_bytes += len(piece) if isinstance(piece, bytes) else 0

    def recall(self, now: float) -> list[Chunk]:
        """Take back all chunks that have not yet left the bottleneck."""
        recalled: list[Chunk] = []
        while self._queue and self._queue[-1].departs > now:
            chunk = self._queue.pop()
            self._held_bytes -= len(chunk.payload) if isinstance(chunk.payload, bytes) else 0
            recalled.append(chunk)
        return recalled

    def deliver(self) -> None:
        """Write all that is due; arm the timer for the next. Woken by the timer, the sink, or a change of the link."""
        self._stop_timer()
        if self._lane.stalled:
            return
        now = self._lane.loop.time()
        while self._queue and not self.blocked:
            due = max(self._queue[0].due, self._next_slice)
            if due > now:
                self._timer = self._lane.loop.call_at(due, self.deliver)
                break
            self._write(self._queue.popleft(), due)
        if self._held_bytes <= self._lane.resume_bytes:
            self._source.resume_reading()

    def leave(self) -> None:
        """Nothing will be read or written any more."""
        self._stop_timer()
        self._queue.clear()
        self._lane.flows.discard(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _write(self, chunk: Chunk, due: float) -> None:
        payload = chunk.payload
        if isinstance(payload, Ending):
            finish(self._sink, payload)
            self.ended = True
            self._on_end()
            return
        if self._slicer is not None:
            chunk.payload = payload[self._slicer.bytes :]
            payload = payload[: self._slicer.bytes]
            self._next_slice = due + self._slicer.delay_ms / 1_000
            if chunk.payload:
                self._queue.appendleft(chunk)
        self._held_bytes -= len(payload)
        if self._sink.is_closing():
            return
        payload, ending = bite(self._faults, self._offset, payload)
        self._offset += len(payload)
        self._lane.total_bytes += len(payload)
        if payload:
            self._sink.write(payload)
        if ending is not None:
            self._queue.clear()
            self._held_bytes = 0
            self._queue.append(Chunk(ending, 0, 0.0, 0.0))


def finish(transport: asyncio.Transport, ending: Ending) -> None:
    """Half-close, close or reset this socket, unless it is closing already."""
    if transport.is_closing():
        return
    match ending:
        case Ending.HALF_CLOSE:
            try:
                transport.write_eof()
            except OSError:  # the peer has gone in the meantime
                transport.abort()
        case Ending.CLOSE:
            transport.close()
        case Ending.RESET:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
