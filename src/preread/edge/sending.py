"""An answer's way out: made while it is sent, and given up when the client goes away.

A stream's headers go out as soon as its request is understood, and comments while nothing else is to be said, so that
no proxy takes a long load for a dead server; what goes wrong later is an event.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.types import Message, Receive, Send

from preread.edge.forms.form import Answer, Form, Head
from preread.edge.openai import Bounds, Call
from preread.edge.progress import Telling
from preread.edge.request import Done, Piece, Progress
from preread.edge.residents import Residents
from preread.edge.several import Item, Prompt, answers, understood
from preread.errors import Cancelled, PrereadError
from preread.lifecycle import Lifecycle
from preread.store import routes

MOST_STALL_S: Final = 30.0
"""A client that takes nothing of its answer for so long is as good as gone: others wait for the engine."""

PING_S: Final = 3.0
PROGRESS_S: Final = 0.3
"""Who asks how far the prompt is, is told so often, where it has got any further."""

STOPPING: Final = "this edge is stopping, and the answer was not whole in time: ask again"

_log = logging.getLogger(__name__)
_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_EVENTS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_PING: Final = b": ping\n\n"

Read = Callable[[bytes, Bounds, int], Call]
Part = Callable[[bytes], Awaitable[None]]
Error = dict[str, Any]
Errors = Callable[[int, Error], Error]
"""The body of an error with this status in an API's own form, given OpenAI's."""


def as_openai(status: int, error: Error) -> Error:
    """OpenAI's own form of errors."""
    return error


@dataclass(frozen=True, slots=True)
class Api:
    """An API for answers.

    Attributes:
        prefix: how its answers' ids begin.
        read: a request's body.
        form: of an answer.
        error: the form of its errors.
        progress: the event that tells how far an answer's prompt is; calls that ask for it only come by APIs that have
            one.
    """

    prefix: str
    read: Read
    form: Callable[[Head], Form]
    error: Errors = as_openai
    progress: Callable[[Head, Progress], bytes] = lambda head, progress: b""


class Sending:
    """Makes an answer while it sends it, and gives it up when the client goes away."""

    def __init__(
        self, residents: Residents, api: Api, head: Head, caller: str, at_once: int, stages: Lifecycle
    ) -> None:
        self._residents, self._api, self._head = residents, api, head
        self._caller, self._at_once, self._stages = caller, at_once, stages

    async def answer(self, receive: Receive, send: Send) -> bool:
        """Answer; False: it was given up."""
        return await unless_gone(self._work(partial(_send, send)), receive)

    async def _work(self, send: Send) -> None:
        async with self._stages.within(STOPPING):
            prompts = await understood(self._head.call, self._residents.node, self._caller)
        form = self._api.form(self._head)
        if self._head.call.stream:
            await send(_start(200, _EVENTS))
            async with _pinging(send) as part, aclosing(self._answers(prompts)) as items:
                last = await self._events(prompts[0], items, form, part)
            await send(_body(last))
            return
        async with self._stages.within(STOPPING):
            made = await self._gathered(prompts)
        await send_whole(send, form.whole(made))

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

    async def _events(self, prompt: Prompt, items: AsyncGenerator[Item, None], form: Form, part: Part) -> bytes:
        """Send all events but the last ones, which are returned: when they are sent, the engine is free for others."""
        left = len(self._head.call.asks)
        try:
            async with self._stages.within(STOPPING):
                async with self._progress(prompt, part):
                    number, item = await anext(items)
                while left := left - isinstance(item, Done):
                    await part(form.event(number, item))
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

    @asynccontextmanager
    async def _progress(self, prompt: Prompt, part: Part) -> AsyncGenerator[None, None]:
        """Tell, if that was asked for, how far the prompt is while this is open, and at its end that it is read."""
        if not self._head.call.progress:
            yield
            return
        telling, core = Telling(), self._residents.node.core

        async def tell() -> None:
            while True:
                await asyncio.sleep(PROGRESS_S)
                if (now := telling.next(prompt.under_way.progress(core))) is not None:
                    await part(self._api.progress(self._head, now))

        async with _meanwhile(tell()):
            yield
        for now in telling.last(prompt.under_way.progress(core)):
            await part(self._api.progress(self._head, now))


async def unless_gone(answering: Coroutine[Any, Any, None], receive: Receive) -> bool:
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


async def send_whole(send: Send, body: bytes) -> None:
    """Send a whole answer, which is JSON.

    Raises:
        Cancelled: the client takes nothing of it.
    """
    await _send(send, _start(200, {**_JSON, "Content-Length": str(len(body))}))
    await _send(send, _body(body))


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
async def _pinging(send: Send) -> AsyncGenerator[Part, None]:
    """What sends parts of a body. Whenever none was for a while, a comment is, which clients of events pass over."""
    sending, sent_s = asyncio.Lock(), time.monotonic()

    async def part(data: bytes) -> None:
        nonlocal sent_s
        async with sending:
            await send(_body(data, more=True))
            sent_s = time.monotonic()

    async def ping() -> None:
        while True:
            await asyncio.sleep(PING_S - (time.monotonic() - sent_s))
            if time.monotonic() - sent_s >= PING_S:
                await part(_PING)

    async with _meanwhile(ping()):
        yield part


@asynccontextmanager
async def _meanwhile(sending: Coroutine[Any, Any, None]) -> AsyncGenerator[None, None]:
    """Have something sent beside what this is open for."""
    task = asyncio.create_task(sending)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # taken: the next thing that is sent meets it too


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: dict[str, str]) -> Message:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
