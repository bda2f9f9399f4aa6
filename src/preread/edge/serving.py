"""How the edge answers a request over HTTP: let in, read, understood, and answered while the client is there.

A request is let in by how much its caller and all have inside already. What is wrong with it then has a status of its
own. A stream's headers go out as soon as it is understood, and comments while nothing else is to be said, so that no
proxy takes a long load for a dead server; what goes wrong later is an event.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preread.edge import reply
from preread.edge.answer import answered
from preread.edge.bounds import most_body_bytes, too_long
from preread.edge.edge import AsyncEdge
from preread.edge.openai import Bounds, Call
from preread.edge.reply import Head
from preread.edge.request import Ask, Done, Piece
from preread.edge.spans import story
from preread.edge.understand import Question, understand
from preread.errors import Cancelled, Overloaded, PrereadError
from preread.plan.admission import Admission, Wasted
from preread.store import guard, routes

MAX_BODY_BYTES: Final = 16 * 2**20
MOST_IN_FLIGHT_BYTES: Final = 64 * 2**20
"""Of bodies that are being read or understood, together."""

MOST_STALL_S: Final = 30.0
"""A client that takes nothing of its answer for so long is as good as gone: others wait for the engine."""

PING_S: Final = 3.0
REFUSED_S: Final = 1.0
"""Who has too much inside is told so after this time: a client that asks again at once must not keep us busy."""

FEW: Final = 4
BEHIND_S: Final = 0.5
"""Of a caller who has more than `FEW` requests inside, and had more than `FEW` that were refused or given up lately,
none is looked at sooner: who asks and is gone at once, or asks what is refused, again and again, would keep us busy."""

_MOST_LATER_S: Final = 60.0
_log = logging.getLogger(__name__)
_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_EVENTS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_PING: Final = b": ping\n\n"

Read = Callable[[bytes, Bounds, int], Call]


@dataclass(frozen=True, slots=True)
class Api:
    """One of OpenAI's APIs: how its answers' ids begin, and how a body is read."""

    prefix: str
    read: Read


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take of an edge.

    Attributes:
        requests: inside at a time, of which one caller has at most half.
        answer_tokens: of a chat's answer, where the request names no number; at most a quarter of the window.
    """

    requests: int = 256
    answer_tokens: int = 1024


DEFAULT: Final = Limits()


class Front:
    """What all requests to one edge share: how much is inside."""

    def __init__(self, edge: AsyncEdge, limits: Limits) -> None:
        self._edge, self._limits = edge, limits
        self._requests = Admission("requests", limits.requests)
        self._bytes = Admission("bytes of requests", MOST_IN_FLIGHT_BYTES)
        self._wasted = Wasted()

    def answering(self, api: Api) -> ASGIApp:
        """The response to a request, as an ASGI application."""
        return partial(self._admitted, api)

    async def _admitted(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        caller = guard.caller(scope)
        try:
            self._requests.enter(caller, 1, self._later_s)
        except Overloaded:
            await asyncio.sleep(REFUSED_S)
            raise
        answered = False
        try:
            if min(self._requests.of(caller), self._wasted.of(caller, time.monotonic())) > FEW:
                await asyncio.sleep(BEHIND_S)
            with story("answer"):
                answered = await self._understood(api, caller, Request(scope, receive), send)
        finally:
            self._requests.leave(caller, 1)
            if not answered:
                self._wasted.note(caller, time.monotonic())

    async def _understood(self, api: Api, caller: str, request: Request, send: Send) -> bool:
        """Read the body; what comes after it is given up when the client goes away: then it was not answered."""
        kept = 0

        def account(size_bytes: int) -> None:
            nonlocal kept
            self._bytes.enter(caller, size_bytes, self._later_s)
            kept += size_bytes

        spec = self._edge.node.engine.spec
        fitting_bytes = most_body_bytes(spec.window_tokens, spec.token_characters)
        beyond = too_long(spec.window_tokens, f"more than {fitting_bytes} bytes")
        try:
            if fitting_bytes < MAX_BODY_BYTES:
                body = await guard.read_body(request, fitting_bytes, too_long=beyond, account=account)
            else:
                body = await guard.read_body(request, MAX_BODY_BYTES, account=account)
            answer_tokens = min(self._limits.answer_tokens, spec.window_tokens // 4)
            usual = self._edge.node.engine.sampling
            bounds = Bounds(spec.window_tokens, spec.vocab_size, answer_tokens, spec.name, usual)
            call = api.read(body, bounds, secrets.randbits(31))
            del body
        finally:
            self._bytes.leave(caller, kept)
        head = Head(api.prefix + secrets.token_hex(12), int(time.time()), spec.name, call)
        return await _Answering(self._edge, head, caller).answer(request.receive, send)

    @property
    def _later_s(self) -> float:
        return min(_MOST_LATER_S, max(1.0, self._edge.node.wait_s))


class _Answering:
    """Makes an answer while it sends it, and gives it up when the client goes away.

    Of several answers, which are never streamed, one is made after the other.
    """

    def __init__(self, edge: AsyncEdge, head: Head, caller: str) -> None:
        self._residents, self._head, self._caller = edge.residents, head, caller

    async def answer(self, receive: Receive, send: Send) -> bool:
        """Answer; False: it was given up."""
        work = asyncio.create_task(self._work(partial(_send, send)))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait([work, gone])
        if work.cancelled():
            return False
        try:
            work.result()
        except Cancelled as given_up:
            _log.info("an answer was given up: %s", given_up)
            return False
        return True

    async def _work(self, send: Send) -> None:
        call = self._head.call
        if call.stream:
            await self._stream(await understand(call.asks[0], self._residents.node, self._caller), send)
            return
        body = reply.whole(self._head, [await self._gathered(ask) for ask in call.asks])
        await send(_start(200, {**_JSON, "Content-Length": str(len(body))}))
        await send(_body(body))

    async def _gathered(self, ask: Ask) -> tuple[list[Piece], Done]:
        question, pieces = await understand(ask, self._residents.node, self._caller), []
        async with aclosing(answered(question, self._residents, self._caller)) as items:
            async for item in items:
                if isinstance(item, Done):
                    done = item
                else:
                    pieces.append(item)
        return pieces, done

    async def _stream(self, question: Question, send: Send) -> None:
        await send(_start(200, _EVENTS))
        async with aclosing(answered(question, self._residents, self._caller)) as items:
            last = await self._events(items, send)
        await send(_body(last))

    async def _events(self, items: AsyncGenerator[Piece | Done, None], send: Send) -> bytes:
        """Send all events but the last ones, which are returned: when they are sent, the engine is free for others."""
        before, offset = reply.opening(self._head), 0
        try:
            async with _pings(send):
                item = await anext(items)
            while isinstance(item, Piece):
                await send(_body(before + reply.part(self._head, item, offset), more=True))
                before, offset = b"", offset + len(item.text)
                item = await anext(items)
        except Cancelled:
            raise
        except PrereadError as error:
            return _failing(error)
        except Exception:
            _log.exception("an answer failed after it had begun")
            return reply.failing(routes.error_body(*routes.UNFORESEEN))
        return before + reply.closing(self._head, item)


async def _send(send: Send, message: Message) -> None:
    """Send, but not to a client that does not read.

    Raises:
        Cancelled: it does not.
    """
    try:
        async with asyncio.timeout(MOST_STALL_S):
            await send(message)
    except TimeoutError:
        raise Cancelled(f"the client took nothing of its answer for {MOST_STALL_S:g} s") from None


@asynccontextmanager
async def _pings(send: Send) -> AsyncGenerator[None, None]:
    """Send comments, which clients of server-sent events pass over, as long as the context is open."""

    async def ping() -> None:
        while True:
            await asyncio.sleep(PING_S)
            await send(_body(_PING, more=True))

    pinging = asyncio.create_task(ping())
    try:
        yield
    finally:
        pinging.cancel()
        await asyncio.wait([pinging])
        if not pinging.cancelled():
            pinging.exception()  # taken: the next thing that is sent meets it too


def _failing(error: PrereadError) -> bytes:
    status, code = routes.status_and_code(error)
    return reply.failing(routes.error_body(status, str(error), code))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: dict[str, str]) -> Message:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
