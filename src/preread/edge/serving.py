"""How the edge takes a request over HTTP: let in, read, and then answered (`sending.py`).

A request is let in by how much its caller and all have inside already. What is wrong with it then has a status of its
own.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from preread import lifecycle
from preread.edge.bounds import most_body_bytes, too_long
from preread.edge.decisions.decide import decide
from preread.edge.decisions.question import Inquiry, prompts_of
from preread.edge.decisions.reply import Decided
from preread.edge.edge import AsyncEdge
from preread.edge.forms.form import Head
from preread.edge.openai import Bounds
from preread.edge.sending import STOPPING, Api, Errors, Sending, as_openai, send_whole, unless_gone
from preread.edge.spans import story
from preread.errors import Overloaded, PrereadError
from preread.plan.admission import Admission, Wasted
from preread.store import guard, routes

MAX_BODY_BYTES: Final = 16 * 2**20
MOST_IN_FLIGHT_BYTES: Final = 64 * 2**20
"""Of bodies that are being read or understood, together."""

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
T = TypeVar("T")
Read = Callable[[bytes, Bounds, int], T]
Answering = Callable[[str, Request, Send], Awaitable[bool]]
"""Answers a caller's request; False: it was given up."""


Work = Callable[[AsyncEdge, bytes, Bounds, str], Awaitable[Response]]
"""What is made of a body, for a caller."""


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
        return partial(self._refusing, api.error, partial(self._understood, api))

    def working(self, work: Work, error: Errors = as_openai) -> ASGIApp:
        """The response that `work` makes of a body, as an ASGI application; errors have their own form."""
        return partial(self._refusing, error, partial(self._worked, work))

    async def _refusing(self, error: Errors, answer: Answering, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse in the API's own way."""
        try:
            await self._admitted(answer, scope, receive, send)
        except (PrereadError, HTTPException) as refused:
            refusal = await routes.refusal(Request(scope), refused)
            refusal.body = msgspec.json.encode(error(refusal.status_code, msgspec.json.decode(refusal.body)))
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
            usual, fills = self._edge.node.engine.sampling, self._edge.node.engine.fim is not None
            bounds = Bounds(spec.window_tokens, spec.vocab_size, answer_tokens, spec.name, usual, fills)
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
            stages = lifecycle.of(request.app)
            sending = Sending(self._edge.residents, api, head, caller, 1 + more, stages)
            return await sending.answer(request.receive, send)
        finally:
            self._requests.leave(caller, more)

    async def _decided(self, api: DecisionApi, caller: str, request: Request, send: Send) -> bool:
        """Decide what a body asks, in as few steps as there is room for."""
        inquiry = await self._body(caller, request, lambda body, bounds, _: api.read(body, bounds))
        more = self._let_in_more(caller, min(-(-prompts_of(inquiry) // DECIDED_AS_ONE), AT_ONCE) - 1)
        residents, calibration = self._edge.residents, self._edge.node.calibration

        async def work() -> None:
            async with lifecycle.of(request.app).within(STOPPING):
                decided = await decide(inquiry, residents, calibration, caller, (1 + more) * DECIDED_AS_ONE)
            await send_whole(send, api.write(decided))

        try:
            return await unless_gone(work(), request.receive)
        finally:
            self._requests.leave(caller, more)

    async def _worked(self, work: Work, caller: str, request: Request, send: Send) -> bool:
        body, bounds = await self._body(caller, request, lambda body, bounds, _: (body, bounds))
        response = await work(self._edge, body, bounds, caller)
        await response(request.scope, request.receive, send)
        return True

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
