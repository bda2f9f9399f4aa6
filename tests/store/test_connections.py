"""Connections of a real server: slow heads, slow bodies, too many of them; those who ask properly notice nothing."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from preread.store.connections import Connections, Limits

QUICK = Limits(connections=6, per_address=6, head_s=0.2, head_bytes=2048, body_s=0.2, body_bytes=1000)
PATIENT = Limits(connections=6, per_address=6, head_s=60, body_s=60)
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def _count(request: Request) -> Response:
    return Response(f"{len(await request.body())} bytes")


async def _refuse(request: Request) -> Response:
    return Response("no", 401)


@asynccontextmanager
async def served(limits: Limits) -> AsyncGenerator[int, None]:
    """A server's port. The application counts a body's bytes, or refuses it unread at /refuse."""
    app = Starlette(routes=[Route("/", _count, methods=["GET", "POST"]), Route("/refuse", _refuse, methods=["POST"])])
    made: Any = Connections(limits).protocol
    config = uvicorn.Config(app, port=0, http=made, lifespan="off", log_config=None, timeout_keep_alive=30)
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await serving


class Client:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        try:
            return await self._reader.read(-1)
        except ConnectionResetError:
            return b""

    async def answer(self, length: int) -> bytes:
        """The head and the body of an answer whose body has that length."""
        return await self._reader.readuntil(b"\r\n\r\n") + await self._reader.readexactly(length)

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def ask(self) -> bytes:
        """The answer to a request as it should be."""
        await self.send(GET)
        return await self.answer(len(b"0 bytes"))


Connect = Callable[..., Awaitable[Client]]


def with_server(limits: Limits, story: Callable[[Connect], Awaitable[None]]) -> None:
    async def run() -> None:
        async with served(limits) as port, AsyncExitStack() as stack, asyncio.timeout(60):

            async def connect(first: bytes = b"") -> Client:
                client = Client(*await asyncio.open_connection("127.0.0.1", port))
                stack.push_async_callback(client.close)
                await client.send(first)
                return client

            await story(connect)

    asyncio.run(run())


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n\r\n", POST, POST + b"x" * 99]
)
def test_who_does_not_finish_a_request_is_sent_away(begun: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def story(connect: Connect) -> None:
        answer = await (await connect(begun)).rest()
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b'"code":"request_timeout"' in answer

    with caplog.at_level(logging.WARNING, "preread"):
        with_server(QUICK, story)
    assert "127.0.0.1" in caplog.text and ("did not come" in caplog.text or "too slowly" in caplog.text)


def test_who_begins_a_second_request_must_finish_it_too() -> None:
    async def story(connect: Connect) -> None:
        client = await connect()
        await client.ask()
        await client.send(b"GET / HT")
        assert (await client.rest()).startswith(b"HTTP/1.1 408")

    with_server(QUICK, story)


def test_noise_between_requests_does_not_keep_a_connection() -> None:
    async def story(connect: Connect) -> None:
        client = await connect()
        await client.ask()
        await client.send(b"\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 408")

    with_server(QUICK, story)


def test_body_that_drips_after_its_refusal_ends_without_a_second_answer() -> None:
    async def story(connect: Connect) -> None:
        client = await connect(POST.replace(b"/ ", b"/refuse ", 1))
        answer = await client.rest()
        assert answer.count(b"HTTP/1.1") == 1 and answer.startswith(b"HTTP/1.1 401")

    with_server(QUICK, story)


def test_body_that_comes_at_its_rate_may_take_its_time() -> None:
    async def story(connect: Connect) -> None:
        client = await connect(POST)
        for _ in range(10):
            await asyncio.sleep(0.06)  # ten times a tenth: three times as long as a body that brings nothing may take
            await client.send(b"x" * 10_000)
        assert (await client.answer(12)).endswith(b"\r\n\r\n100000 bytes")

    with_server(QUICK, story)


def test_endless_head_is_refused() -> None:
    async def story(connect: Connect) -> None:
        client = await connect(b"GET / HTTP/1.1\r\n" + b"X-Header: y\r\n" * 500)
        assert b"431 Request Header Fields Too Large" in await client.rest()

    with_server(Limits(head_s=60, head_bytes=2048), story)


def test_who_asks_for_nothing_makes_room_for_who_does() -> None:
    async def story(connect: Connect) -> None:
        idle = [await connect(begun) for begun in (b"", b"GET / HT", b"GET /", b"", b"", b"G")]
        asking = await connect()
        assert b"200 OK" in await asking.ask()
        assert await idle[0].rest() == b"", "the one that waited longest is sent away"
        await idle[1].send(GET[len(b"GET / HT") :])
        assert b"200 OK" in await idle[1].answer(7), "the others are not"

    with_server(PATIENT, story)


def test_connections_that_ask_are_kept_and_who_comes_too_much_is_told() -> None:
    async def story(connect: Connect) -> None:
        asking = [await connect(POST) for _ in range(6)]
        await asyncio.sleep(0.2)
        answer = await (await connect(GET)).rest()
        assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in answer
        await asking[0].send(b"x" * 100_000)
        assert (await asking[0].answer(12)).endswith(b"\r\n\r\n100000 bytes")
        assert b"200 OK" in await (await connect()).ask(), "the one that was answered makes room"

    with_server(PATIENT, story)
