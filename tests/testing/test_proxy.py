"""The fault proxy as a process, and its commands."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest

from preread.errors import TransportError
from preread.testing.proxy import (
    Blackout,
    HalfOpen,
    Link,
    Proxy,
    ProxyProcess,
    Refuse,
    Reset,
    Slicer,
    Stats,
    Truncate,
    answer,
)
from preread.testing.toxics import fault_to_json
from preread.testing.traces import Step

PATTERN = bytes(range(251)) * 8_400  # 2.1 MB in which every offset shows


@pytest.fixture(scope="module")
def echo_port() -> Iterator[int]:
    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                pass

    def serve(server: socket.socket) -> None:
        try:
            while True:
                threading.Thread(target=echo, args=server.accept()[:1], daemon=True).start()
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def connected(proxy: ProxyProcess) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as connection:
        yield connection


def echoed(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    received = b""
    while len(received) < len(data) and (chunk := connection.recv(65_536)):
        received += chunk
    return received


def test_process(echo_port: int) -> None:
    with ProxyProcess(echo_port, Link(mbps=16, rtt_ms=20)) as proxy:
        assert proxy.url == f"http://127.0.0.1:{proxy.port}"
        with connected(proxy) as connection:
            assert echoed(connection, b"x") == b"x"
            start = time.perf_counter()
            assert echoed(connection, PATTERN[:400_000]) == PATTERN[:400_000]
            assert time.perf_counter() - start >= 0.2 + 0.02 - 0.001
            assert proxy.stats == Stats(1, 400_001, 400_001)
            proxy.set_link(Link())
            proxy.set_faults([Truncate(after_bytes=7)])
            assert echoed(connection, PATTERN[:100]) == PATTERN[:7]
        proxy.set_faults([Refuse()])
        with pytest.raises(ConnectionResetError), connected(proxy) as connection:
            connection.recv(1)
        proxy.set_faults([])
        with connected(proxy) as connection:
            assert echoed(connection, b"again") == b"again"
        assert proxy.stats.connections == 3
        port = proxy.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_process_leaves_while_a_connection_is_open(echo_port: int) -> None:
    with ProxyProcess(echo_port) as proxy:
        connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
        assert echoed(connection, b"x") == b"x"
        proxy.set_faults([Blackout()])
    with connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_process_that_is_gone_is_reported(echo_port: int) -> None:
    with ProxyProcess(echo_port) as proxy:
        proxy._process.kill()
        with pytest.raises(TransportError, match="ended with status -9"):
            _ = proxy.stats


def test_half_open_connections_are_made_and_never_answered(echo_port: int) -> None:
    with ProxyProcess(echo_port) as proxy, connected(proxy) as before:
        assert echoed(before, b"x") == b"x"
        proxy.set_faults([HalfOpen()])
        with connected(proxy) as mute:
            mute.sendall(b"anybody?")
            assert echoed(before, b"y") == b"y", "open ones go on"
            proxy.set_faults([])
            with connected(proxy) as after:
                assert echoed(after, b"z") == b"z"
            mute.settimeout(0.1)
            with pytest.raises(TimeoutError):
                mute.recv(1)
            mute.shutdown(socket.SHUT_WR)
            mute.settimeout(20)
            assert mute.recv(1) == b"", "a client that leaves is let go"


def test_the_link_follows_a_trace_and_stays_as_it_ends(echo_port: int) -> None:
    with ProxyProcess(echo_port) as proxy, connected(proxy) as connection:
        assert echoed(connection, b"x") == b"x"
        proxy.follow((Step(0.2, Link(mbps=0)), Step(0.05, Link(mbps=8)), Step(0.05, Link())))
        start = time.perf_counter()
        assert echoed(connection, b"after the outage") == b"after the outage"
        assert time.perf_counter() - start >= 0.2 - 0.05
        assert echoed(connection, PATTERN) == PATTERN
        proxy.follow((Step(0.05, Link()), Step(0.05, Link(mbps=0))))
        proxy.set_link(Link())
        time.sleep(0.2)  # a trace that went on would have stopped the link by now
        assert echoed(connection, b"a link that is set ends a trace") == b"a link that is set ends a trace"


def test_commands_answer_on_one_line() -> None:
    async def case() -> None:
        async with Proxy(("127.0.0.1", 1)) as proxy:
            link, faults = Link(mbps=5), (Reset(1), Slicer(1, 2.0))
            command = {"link": asdict(link), "faults": [fault_to_json(fault) for fault in faults], "stats": True}
            assert answer(proxy, json.dumps(command)) == {"stats": asdict(Stats(0, 0, 0))}
            assert (proxy.link, proxy.faults) == (link, faults)
            assert answer(proxy, '{"faults": []}') == {"ok": True}
            wrong = ["", "7", "{}", '{"lnk": {}}', '{"faults": 1}', '{"link": {"mbps": 1}, "faults": [{"type": "x"}]}']
            for line in wrong:
                assert answer(proxy, line).keys() == {"error"}
            assert (proxy.link, proxy.faults) == (link, ())

    asyncio.run(case())
