"""The relay against real sockets. It is a clock, so these tests read one: too early fails, late has slack."""

import asyncio
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from preread.errors import UsageError
from preread.testing.proxy import Blackout, Corrupt, Link, Proxy, Refuse, Reset, Slicer, Stats, Truncate

PATTERN = bytes(range(251)) * 8_400  # 2.1 MB in which every offset shows
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LATE_S = 30.0  # slack for a busy machine


class Target:
    """Answers each line: "get N" with N bytes of PATTERN, "put N" with "ok" after N more bytes; echoes at EOF."""

    def __init__(self) -> None:
        self.lost: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                verb, _, size = line.decode().partition(" ")
                if verb == "get":
                    writer.write(PATTERN[: int(size)])
                else:
                    await reader.readexactly(int(size))
                    writer.write(b"ok")
                await writer.drain()
            writer.write(b"bye")
            writer.close()
            await writer.wait_closed()
            self.lost.put_nowait("eof")
        except OSError:
            writer.transport.abort()
            self.lost.put_nowait("reset")
        except asyncio.CancelledError:
            writer.transport.abort()


@asynccontextmanager
async def proxied(link: Link | None = None) -> AsyncIterator[tuple[Proxy, Target]]:
    target = Target()
    server = await asyncio.start_server(target, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname(), link) as proxy:
        yield proxy, target
    for _ in range(3):  # turns in which the handlers notice
        await asyncio.sleep(0)


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=1 << 22)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def get(streams: Streams, size: int) -> bytes:
    streams[1].write(b"get %d\n" % size)
    return await streams[0].readexactly(size)


async def put(streams: Streams, size: int) -> bytes:
    streams[1].write(b"put %d\n" % size + PATTERN[:size])
    return await streams[0].readexactly(2)


async def accepted(server: socket.socket) -> socket.socket:
    server.setblocking(False)
    return (await asyncio.get_running_loop().sock_accept(server))[0]


async def took_s(awaitable: Awaitable[object]) -> float:
    start = time.perf_counter()
    await awaitable
    return time.perf_counter() - start


async def assert_silent(awaitable: Awaitable[object]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(awaitable, 0.15)


# --- relaying


@pytest.mark.parametrize("link", [Link(), Link(mbps=400, rtt_ms=4, jitter_ms=5, buffer_bytes=1)])
def test_bytes_pass_unchanged_both_ways_and_are_counted(link: Link) -> None:
    async def case() -> None:
        async with proxied(link) as (proxy, _), client(proxy) as streams:
            assert await get(streams, len(PATTERN)) == PATTERN
            assert await put(streams, len(PATTERN)) == b"ok"
            lines = len(b"get %d\n" % len(PATTERN)) + len(b"put %d\n" % len(PATTERN))
            assert proxy.stats == Stats(1, len(PATTERN) + lines, len(PATTERN) + 2)
            assert proxy.url == f"http://127.0.0.1:{proxy.port}"

    asyncio.run(case())


def test_half_close_is_forwarded_and_answered() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=50, rtt_ms=10)) as (proxy, target), client(proxy) as streams:
            streams[1].write(b"get 100000\n")
            streams[1].write_eof()
            assert await streams[0].read() == PATTERN[:100_000] + b"bye"
            assert await target.lost.get() == "eof"
            while proxy._ends:
                await asyncio.sleep(0)
            assert not (proxy._connections or proxy._up.flows or proxy._down.flows)

    asyncio.run(case())


def test_a_client_that_vanishes_is_reset_at_the_target() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=8)) as (proxy, target):
            async with client(proxy) as streams:
                streams[1].write(b"get 2000000\n")
                await streams[0].readexactly(1_000)
                linger = struct.pack("ii", 1, 0)
                streams[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            assert await asyncio.wait_for(target.lost.get(), LATE_S) == "reset"

    asyncio.run(case())


def test_leaving_with_open_connections_ends_them() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=1, rtt_ms=1_000)) as (proxy, _):
            open_now = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(3)]
            proxy.link = Link(mbps=1)
            open_now.append(await asyncio.open_connection("127.0.0.1", proxy.port))
            open_now[-1][1].write(b"get 1000000\n")
            await open_now[-1][0].readexactly(1_000)
        for reader, writer in open_now:
            with pytest.raises(ConnectionResetError):
                while await reader.read(65_536):
                    pass
            writer.close()

    asyncio.run(case())


def test_a_target_that_does_not_answer_resets_the_client(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        async with Proxy(("127.0.0.1", port)) as proxy:
            with pytest.raises(ConnectionResetError):
                async with client(proxy) as streams:
                    await streams[0].read()

    with caplog.at_level(logging.WARNING):
        asyncio.run(case())
    assert "does not answer" in caplog.text


def test_an_address_in_use_is_the_callers_fault() -> None:
    async def case() -> None:
        async with proxied() as (proxy, _):
            with pytest.raises(UsageError, match="cannot listen"):
                await Proxy(("127.0.0.1", 1), listen=("127.0.0.1", proxy.port)).__aenter__()

    asyncio.run(case())


# --- the link


@pytest.mark.parametrize("move", [get, put])
@pytest.mark.parametrize(("mbps", "rtt_ms"), [(8, 0), (40, 40)])
def test_rate(move: Callable[[Streams, int], Awaitable[bytes]], mbps: float, rtt_ms: float) -> None:
    async def case() -> None:
        async with proxied(Link(mbps=mbps, rtt_ms=rtt_ms)) as (proxy, _), client(proxy) as streams:
            await get(streams, 1)
            size = int(mbps * 125_000 * 0.4)
            seconds = await took_s(move(streams, size))
            assert 0.4 + rtt_ms / 1e3 <= seconds + 0.001
            assert seconds < 1.1 * (0.4 + rtt_ms / 1e3) + LATE_S

    asyncio.run(case())


def test_the_rate_holds_on_average_when_the_loop_is_busy() -> None:
    """Late wake-ups must not add up: 0.4 s of transfer, the loop blocked 10 ms in every 11."""

    async def case() -> None:
        async with proxied(Link(mbps=40)) as (proxy, _), client(proxy) as streams:
            await get(streams, 1)
            transfer = asyncio.ensure_future(took_s(get(streams, 2_000_000)))
            while not transfer.done():
                time.sleep(0.010)
                await asyncio.sleep(0.001)
            assert 0.399 <= transfer.result() < 1.5  # 2.2 s if each wake-up let one chunk pass

    asyncio.run(case())


def test_two_connections_share_one_link_fairly() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=32, buffer_bytes=65_536)) as (proxy, _):
            async with client(proxy) as one, client(proxy) as two:
                await asyncio.gather(get(one, 1), get(two, 1))
                seconds = await asyncio.gather(*(took_s(get(streams, 1_000_000)) for streams in (one, two)))
                assert max(seconds) >= 0.499  # 16 Mbit over 32 Mbit/s
                assert min(seconds) >= 0.7 * max(seconds)

    asyncio.run(case())


def test_directions_do_not_share() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=16)) as (proxy, _):
            async with client(proxy) as one, client(proxy) as two:
                await asyncio.gather(get(one, 1), get(two, 1))
                tries = [await took_s(asyncio.gather(get(one, 400_000), put(two, 400_000))) for _ in range(3)]
                assert 0.199 <= min(tries) < 0.36

    asyncio.run(case())


@pytest.mark.parametrize(("rtt_ms", "jitter_ms"), [(30, 0), (30, 20)])
def test_latency(rtt_ms: float, jitter_ms: float) -> None:
    async def case() -> None:
        async with proxied(Link(mbps=100, rtt_ms=rtt_ms, jitter_ms=jitter_ms)) as (proxy, _), client(proxy) as streams:
            assert await took_s(get(streams, 1)) >= 2 * rtt_ms / 1e3 - 0.001  # the handshake costs one more
            pings = [await took_s(get(streams, 1)) for _ in range(5)]
            assert rtt_ms / 1e3 <= min(pings) < (rtt_ms + 2 * jitter_ms) / 1e3 + LATE_S
            if jitter_ms:
                assert max(pings) - rtt_ms / 1e3 > 0.004

    asyncio.run(case())


@pytest.mark.parametrize("link", [Link(mbps=0), Link(mbps=100, rtt_ms=100), Link()])
@pytest.mark.parametrize("upwards", [True, False])
def test_a_sender_is_held_back_when_nobody_reads(link: Link, upwards: bool) -> None:
    async def case() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with Proxy(server.getsockname(), link) as proxy:
                with socket.create_connection(("127.0.0.1", proxy.port)) as one, await accepted(server) as other:
                    sender = one if upwards else other
                    sender.setblocking(False)
                    with pytest.raises(TimeoutError):  # the kernel itself may hold some 10 MB
                        for _ in range(100):
                            await asyncio.wait_for(loop.sock_sendall(sender, bytes(1_000_000)), 0.2)

    asyncio.run(case())


def test_nothing_passes_at_rate_0_until_the_link_is_back() -> None:
    async def case() -> None:
        async with proxied() as (proxy, _), client(proxy) as streams:
            await get(streams, 1)
            proxy.link = Link(mbps=0)
            before = proxy.stats
            streams[1].write(b"put 32000000\n" + bytes(32_000_000))
            await assert_silent(streams[1].drain())
            assert proxy.stats == before
            proxy.link = Link()
            assert await streams[0].readexactly(2) == b"ok"

    asyncio.run(case())


def test_link_may_change_while_bytes_are_queued() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=0.2, buffer_bytes=2_000_000)) as (proxy, _), client(proxy) as streams:
            start = time.perf_counter()
            streams[1].write(b"get 2000000\n")  # 80 s at this rate
            data = await streams[0].readexactly(10_000)
            for link in (Link(mbps=300, rtt_ms=20), Link(mbps=0), Link(mbps=3, jitter_ms=4), Link()):
                proxy.link = link
                assert proxy.link == link
                await asyncio.sleep(0.02)
            data += await streams[0].readexactly(1_990_000)
            assert data == PATTERN[:2_000_000]
            assert time.perf_counter() - start < 60

    asyncio.run(case())


def test_slowing_down_applies_to_what_is_queued() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=8, buffer_bytes=1_000_000)) as (proxy, _), client(proxy) as streams:
            start = time.perf_counter()
            streams[1].write(b"get 300000\n")  # 0.3 s at this rate, and all of it fits in the buffer
            await streams[0].readexactly(50_000)
            proxy.link = Link(mbps=4)
            await streams[0].readexactly(250_000)
            assert time.perf_counter() - start >= 0.05 + 0.5 - 0.02

    asyncio.run(case())


# --- faults


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_reset(size: int) -> None:
    async def case() -> None:
        async with proxied(Link(mbps=80)) as (proxy, target):
            proxy.faults = (Reset(after_bytes=size),)
            for _ in range(2):  # each connection counts for itself
                async with client(proxy) as streams:
                    streams[1].write(b"get 2000000\n")
                    received = b""
                    with pytest.raises(ConnectionResetError):
                        while chunk := await streams[0].read(65_536):
                            received += chunk
                    assert received == PATTERN[:size]
                assert await asyncio.wait_for(target.lost.get(), LATE_S) == "reset"

    asyncio.run(case())


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_truncate(size: int) -> None:
    async def case() -> None:
        async with proxied(Link(mbps=80)) as (proxy, _), client(proxy) as streams:
            proxy.faults = (Truncate(after_bytes=size),)
            streams[1].write(b"get 200000\n")
            assert await streams[0].read() == PATTERN[:size]

    asyncio.run(case())


def test_an_ending_does_not_wait_for_what_it_cuts_off() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=0.25)) as (proxy, _), client(proxy) as streams:
            proxy.faults = (Truncate(after_bytes=1),)
            streams[1].write(b"get 200000\n")  # 6 s at this rate
            assert await asyncio.wait_for(streams[0].read(), LATE_S) == PATTERN[:1]

    asyncio.run(case())


def test_offsets_count_from_when_the_faults_were_set() -> None:
    async def case() -> None:
        async with proxied() as (proxy, _), client(proxy) as streams:
            await get(streams, 1_000)
            proxy.faults = (Corrupt(at_byte=3), Truncate(after_bytes=10))
            streams[1].write(b"get 100\n")
            spoiled = bytearray(PATTERN[:10])
            spoiled[3] ^= 0xFF
            assert await streams[0].read() == spoiled

    asyncio.run(case())


def test_corrupt() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=200)) as (proxy, _), client(proxy) as streams:
            proxy.faults = (Corrupt(at_byte=70_000, mask=0x10), Corrupt(at_byte=5, mask=1, every_bytes=30_000))
            expected = bytearray(PATTERN[:100_000])
            expected[70_000] ^= 0x10
            for index in range(5, 100_000, 30_000):
                expected[index] ^= 1
            assert await get(streams, 100_000) == expected
            proxy.faults = ()
            assert await get(streams, 100_000) == PATTERN[:100_000]

    asyncio.run(case())


def test_blackout_until_cleared() -> None:
    async def case() -> None:
        async with proxied(Link(mbps=8, rtt_ms=40)) as (proxy, _), client(proxy) as streams:
            streams[1].write(b"get 200000\n")
            await streams[0].readexactly(20_000)
            proxy.faults = (Blackout(),)
            before = proxy.stats
            streams[1].write(b"put 1\n" + PATTERN[:1])
            await assert_silent(streams[0].readuntil(b"ok"))  # some of what came before may still have to be read
            assert proxy.stats == before
            proxy.faults = ()
            assert await streams[0].readuntil(b"ok")

    asyncio.run(case())


def test_blackout_ends_by_itself() -> None:
    async def case() -> None:
        async with proxied() as (proxy, _), client(proxy) as streams:
            await get(streams, 1)
            proxy.faults = (Corrupt(at_byte=0), Blackout(for_s=0.2))
            start = time.perf_counter()
            assert await get(streams, 1) == b"\xff"
            assert 0.199 <= time.perf_counter() - start < 0.2 + LATE_S
            assert list(proxy.faults) == [Corrupt(at_byte=0)]

    asyncio.run(case())


def test_refuse_resets_new_connections_only() -> None:
    async def case() -> None:
        async with proxied() as (proxy, _), client(proxy) as streams:
            await get(streams, 1)
            proxy.faults = (Refuse(),)
            with pytest.raises(ConnectionResetError):
                async with client(proxy) as refused:
                    await refused[0].read()
            assert await get(streams, 10) == PATTERN[:10]
            proxy.faults = ()
            async with client(proxy) as welcome:
                assert await get(welcome, 10) == PATTERN[:10]
            assert proxy.stats.connections == 3

    asyncio.run(case())


def test_slicer_drips_on_open_connections_until_cleared() -> None:
    async def case() -> None:
        async with proxied() as (proxy, _), client(proxy) as streams:
            await get(streams, 1)
            proxy.faults = (Slicer(bytes=1_000, delay_ms=20),)
            assert await took_s(get(streams, 10_000)) >= 9 * 0.020 - 0.001
            streams[1].write(b"get 2000000\n")  # 40 s at this pace
            head = await streams[0].readexactly(2_000)
            start = time.perf_counter()
            proxy.faults = ()
            assert head + await streams[0].readexactly(1_998_000) == PATTERN[:2_000_000]
            assert time.perf_counter() - start < LATE_S

    asyncio.run(case())
