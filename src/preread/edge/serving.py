"""How the edge answers a request over HTTP: let in, read, understood, and answered while the client is there.

A request is let in by how much its caller and all have inside already. What is wrong with it then has a status of its
own. A stream's headers go out as soon as it is understood, and comments while nothing else is to be said, so that no
proxy takes a long load for a dead server; what goes wrong later is an event.
"""

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preread.edge.bounds import most_body_bytes, too_long
from preread.edge.decisions.decide import decide
from preread.edge.decisions.question import Inquiry, prompts_of
from preread.edge.decisions.reply import Decided
from preread.edge.edge import AsyncEdge
from preread.edge.forms.form import Answer, Form, Head
from preread.edge.openai import Bounds, Call
from preread.edge.request import Done, Piece
from preread.edge.several import Item, Prompt, answers, understood
from preread.edge.spans import story
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

AT_ONCE: Final = 32
"""Answers to one request that are made at a time, as far as there is room for each of them."""

DECIDED_AS_ONE: Final = 8
"""So many prompts of a request for decisions count as one answer: each is short, and none goes on."""

_MOST_LATER_S: Final = 60.0
_log = logging.getLogger(__name__)
_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_EVENTS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_PING: Final = b": ping\n\n"

T = TypeVar("T")
Read = Callable[[bytes, Bounds, int], T]
Error = dict[str, Any]
Answering = Callable[[str, Request, Send], Awaitable[bool]]
"""Answers a caller's request; False: it was given up."""


@dataclass(frozen=True, slots=True)
class Api:
    """An API for answers.

    Attributes:
        prefix: how its answers' ids begin.
        read: a request's body.
        form: of an answer.
        error: how the body of an error with this status looks, given OpenAI's form of it.
    """

    prefix: str
    read: Read[Call]
    form: Callable[[Head], Form]
    error: Callable[[int, Error], Error] = lambda status, error: error


@dataclass(frozen=True, slots=True)
class DecisionApi:
    """An API for decisions: how a body is read, and what was decided is written."""

    read: Callable[[bytes, Bounds], Inquiry]
    write: Callable[[Decided], bytes]


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
        return partial(self._answered, api)

    async def _answered(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse in the API's own way."""
        try:
            await self._admitted(partial(self._understood, api), scope, receive, send)
        except (PrereadError, HTTPException) as error:
            refusal = await routes.refusal(Request(scope), error)
            body = api.error(refusal.status_code, msgspec.json.decode(refusal.body))
            refusal.body = msgspec.json.encode(body)
            refusal.headers["Content-Length"] = str(len(refusal.body))
            await refusal(scope, receive, send)

    def deciding(self, api: DecisionApi) -> ASGIApp:
        """The response to a request for decisions, as an ASGI application."""
        return partial(self._admitted, partial(self._decided, api))

    async def _admitted(self, answer: Answering, scope: Scope, receive: Receive, send: Send) -> None:
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
                answered = await answer(caller, Request(scope, receive), send)
        finally:
            self._requests.leave(caller, 1)
            if not answered:
                self._wasted.note(caller, time.monotonic())

    async def _body(self, caller: str, request: Request, read: Read[T]) -> T:
        """What a request's body says."""
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
            return read(body, bounds, secrets.randbits(31))
        finally:
            self._bytes.leave(caller, kept)

    async def _understood(self, api: Api, caller: str, request: Request, send: Send) -> bool:
        """Read the body; what comes after it is given up when the client goes away: then it was not answered."""
        call = await self._body(caller, request, api.read)
        spec = self._edge.node.engine.spec
        head = Head(api.prefix + secrets.token_hex(12), int(time.time()), spec.name, call, spec.fingerprint)
        more = self._let_in_more(caller, min(len(call.asks), AT_ONCE) - 1)
        try:
            return await _Answering(self._edge, api, head, caller, 1 + more).answer(request.receive, send)
        finally:
            self._requests.leave(caller, more)

    async def _decided(self, api: DecisionApi, caller: str, request: Request, send: Send) -> bool:
        """Decide what a body asks, in as few steps as there is room for."""
        inquiry = await self._body(caller, request, lambda body, bounds, _: api.read(body, bounds))
        more = self._let_in_more(caller, min(-(-prompts_of(inquiry) // DECIDED_AS_ONE), AT_ONCE) - 1)
        residents, calibration = self._edge.residents, self._edge.node.calibration

        async def work() -> None:
            decided = await decide(inquiry, residents, calibration, caller, (1 + more) * DECIDED_AS_ONE)
            await _whole(partial(_send, send), api.write(decided))

        try:
            return await _unless_gone(work(), request.receive)
        finally:
            self._requests.leave(caller, more)

    def _let_in_more(self, caller: str, most: int) -> int:
        """Let in further answers to a request as if they were asked for by themselves; how many there was room for.

        The others wait until one of them is made.
        """
        for count in range(most):
            try:
                self._requests.enter(caller, 1, self._later_s)
            except Overloaded:
                return count
        return most

    @property
    def _later_s(self) -> float:
        return min(_MOST_LATER_S, max(1.0, self._edge.node.wait_s))


class _Answering:
    """Makes an answer while it sends it, and gives it up when the client goes away."""

    def __init__(self, edge: AsyncEdge, api: Api, head: Head, caller: str, at_once: int) -> None:
        self._residents, self._api, self._head = edge.residents, api, head
        self._caller, self._at_once = caller, at_once

    async def answer(self, receive: Receive, send: Send) -> bool:
        """Answer; False: it was given up."""
        return await _unless_gone(self._work(partial(_send, send)), receive)

    async def _work(self, send: Send) -> None:
        prompts, form = (
            await understood(self._head.call, self._residents.node, self._caller),
            self._api.form(self._head),
        )
        if self._head.call.stream:
            await send(_start(200, _EVENTS))
            async with aclosing(self._answers(prompts)) as items:
                last = await self._events(items, form, send)
            await send(_body(last))
            return
        await _whole(send, form.whole(await self._gathered(prompts)))

    def _answers(self, prompts: Sequence[Prompt]) -> AsyncGenerator[Item, None]:
        return answers(prompts, self._residents, self._caller, self._at_once)

    async def _gathered(self, prompts: Sequence[Prompt]) -> list[Answer]:
        pieces, ends = defaultdict[int, list[Piece]](list), dict[int, Done]()
        async with aclosing(self._answers(prompts)) as items:
            async for number, item in items:
                if isinstance(item, Done):
                    ends[number] = item
                else:
                    pieces[number].append(item)
        return [(pieces[number], ends[number]) for number in range(len(ends))]

    async def _events(self, items: AsyncGenerator[Item, None], form: Form, send: Send) -> bytes:
        """Send all events but the last ones, which are returned: when they are sent, the engine is free for others."""
        try:
            async with _pings(send):
                number, item = await anext(items)
            left = len(self._head.call.asks)
            while left := left - isinstance(item, Done):
                await send(_body(form.event(number, item), more=True))
                number, item = await anext(items)
            return form.event(number, item)
        except Cancelled:
            raise
        except PrereadError as error:
            status, body = routes.status_and_code(error)[0], routes.body_of(error)
        except Exception:
            _log.exception("an answer failed after it had begun")
            status, body = routes.UNFORESEEN[0], routes.error_body(*routes.UNFORESEEN)
        return form.failing(self._api.error(status, body))


async def _unless_gone(answering: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Answer unless the client goes away; False: it did, or took nothing."""
    work, gone = asyncio.create_task(answering), asyncio.create_task(_disconnected(receive))
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


async def _whole(send: Send, body: bytes) -> None:
    await send(_start(200, {**_JSON, "Content-Length": str(len(body))}))
    await send(_body(body))


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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: dict[str, str]) -> Message:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
