"""The edge's HTTP side: OpenAI's API in front of an `AsyncEdge`, which opens when the server starts.

It knows requests, keys, statuses and clients that go away. What bodies mean is in `openai.py` and `reply.py`, how
answers come about in `answer.py`. Every route answers from this machine alone: nothing here opens a connection.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preread.edge import reply
from preread.edge.edge import AsyncEdge
from preread.edge.openai import Bounds, Call, read_chat, read_completion
from preread.edge.reply import Head
from preread.edge.request import Done, Piece
from preread.errors import Cancelled, PrereadError
from preread.store import guard, routes
from preread.store.guard import LOOPBACK, Access

MAX_BODY_BYTES: Final = 16 * 2**20
MOST_STALL_S: Final = 30.0
"""A client that takes nothing of its answer for so long is as good as gone: others wait for the engine."""

_log = logging.getLogger(__name__)
_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_EVENTS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

Pieces = AsyncGenerator[Piece | Done, None]
Read = Callable[[bytes, Bounds, int], Call]


def create_app(
    edge: AsyncEdge,
    access: Access = LOOPBACK,
    *,
    beside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> Starlette:
    """The edge as an ASGI application.

    Where `access` has keys, everything but /health needs one with the scope `ask` as bearer token.

    `edge` is opened at startup, so a model that cannot be had or loaded keeps the server from starting. `beside` is
    entered then, and left before it is closed.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with edge, beside():
            yield

    return Starlette(
        routes=[
            Route("/health", partial(_health, edge), methods=["GET"]),
            Route("/v1/models", partial(_models, edge, int(time.time())), methods=["GET"]),
            Route("/v1/chat/completions", partial(_complete, edge, "chatcmpl-", read_chat), methods=["POST"]),
            Route("/v1/completions", partial(_complete, edge, "cmpl-", read_completion), methods=["POST"]),
        ],
        middleware=access.middleware("edge", reads="ask", writes="ask"),
        exception_handlers={
            PrereadError: routes.on_error,
            HTTPException: routes.on_http_error,
            ClientDisconnect: routes.on_disconnect,
            Exception: routes.on_bug,
        },
        lifespan=lifespan,
    )


async def _health(edge: AsyncEdge, request: Request) -> Response:
    engine, contexts = edge.site.engine, edge.site.contexts
    body = {
        "status": "ok",
        "model": engine.spec.name,
        "injection": engine.no_injection,
        "cloud": contexts.unreachable,
        "contexts": len(contexts.entries()),
        "missing": len(contexts.missing()),
    }
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


async def _models(edge: AsyncEdge, started: int, request: Request) -> Response:
    spec = edge.site.engine.spec
    meta = {
        "architecture": spec.architecture,
        "fingerprint": spec.fingerprint,
        "n_ctx": spec.window_tokens,
        "n_ctx_train": spec.trained_tokens,
        "n_vocab": spec.vocab_size,
    }
    model = {"id": spec.name, "object": "model", "created": started, "owned_by": "preread", "meta": meta}
    return JSONResponse({"object": "list", "data": [model]}, headers={"Cache-Control": "no-store"})


async def _complete(edge: AsyncEdge, prefix: str, read: Read, request: Request) -> ASGIApp:
    spec = edge.site.engine.spec
    body = await guard.read_body(request, MAX_BODY_BYTES)
    bounds = Bounds(spec.window_tokens, spec.vocab_size, spec.name, edge.site.engine.sampling)
    call = read(body, bounds, secrets.randbits(31))
    head = Head(prefix + secrets.token_hex(12), int(time.time()), spec.name, call)
    return _Answering(head, [edge.answer(ask) for ask in call.asks])


class _Answering:
    """ASGI response that makes an answer while it sends it, and gives it up when the client goes away. Of several
    answers, which are never streamed, one is made after the other.

    Until the first piece is there nothing is sent, so that whatever goes wrong before it has a status of its own.
    """

    def __init__(self, head: Head, answers: Sequence[Pieces]) -> None:
        self._head, self._answers = head, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._stream if self._head.call.stream else self._whole
        work = asyncio.create_task(answer(partial(_send, send)))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.wait([work, gone])
        if work.cancelled():
            return
        try:
            work.result()
        except Cancelled as given_up:
            _log.info("an answer was given up: %s", given_up)

    async def _whole(self, send: Send) -> None:
        body = reply.whole(self._head, [await _gathered(answer) for answer in self._answers])
        await send(_start(200, {**_JSON, "Content-Length": str(len(body))}))
        await send(_body(body))

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._answers[0]) as items:
            first = await anext(items)
            await send(_start(200, _EVENTS))
            last = await self._events(first, items, send)
        await send(_body(last))

    async def _events(self, item: Piece | Done, items: Pieces, send: Send) -> bytes:
        """Send all events but the last ones, which are returned: when they are sent, the engine is free for others."""
        before, offset = reply.opening(self._head), 0
        try:
            while isinstance(item, Piece):
                await send(_body(before + reply.part(self._head, item, offset), more=True))
                before, offset = b"", offset + len(item.text)
                item = await anext(items)
        except Cancelled:
            raise
        except PrereadError as error:
            status, code = routes.status_and_code(error)
            return reply.failing(routes.error_body(status, str(error), code))
        except Exception:
            _log.exception("an answer failed after it had begun")
            return reply.failing(routes.error_body(*routes.UNFORESEEN))
        return before + reply.closing(self._head, item)


async def _gathered(answer: Pieces) -> tuple[list[Piece], Done]:
    pieces: list[Piece] = []
    async with aclosing(answer) as items:
        async for item in items:
            if isinstance(item, Done):
                done = item
            else:
                pieces.append(item)
    return pieces, done


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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: dict[str, str]) -> Message:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
