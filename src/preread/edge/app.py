"""The edge's HTTP side: OpenAI's API in front of an `AsyncEdge`, which opens when the server starts.

It knows requests, keys, statuses and clients that go away. What bodies mean is in `openai.py` and `reply.py`, how
answers come about in `answer.py`. Every route answers from this machine alone: nothing here opens a connection.
"""

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preread.edge import reply
from preread.edge.edge import AsyncEdge
from preread.edge.openai import BadRequest, Bounds, Call, read_chat, read_completion
from preread.edge.reply import Head
from preread.edge.request import Done, Piece
from preread.errors import Cancelled, PrereadError, UnknownContext
from preread.store import routes

MAX_BODY_BYTES: Final = 16 * 2**20
MOST_STALL_S: Final = 30.0
"""A client that takes nothing of its answer for so long is as good as gone: others wait for the engine."""

_log = logging.getLogger(__name__)
_UNFORESEEN: Final = (500, "answering failed in a way that nobody foresaw: look at the edge's log", "internal_error")
_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_EVENTS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

Pieces = AsyncGenerator[Piece | Done, None]
Read = Callable[[bytes, Bounds, int], Call]


def create_app(edge: AsyncEdge, *, api_keys: frozenset[str] = frozenset()) -> Starlette:
    """The edge as an ASGI application. With `api_keys`, everything but /health needs one of them as bearer token.

    `edge` is opened at startup, so a model that cannot be had or loaded keeps the server from starting.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with edge:
            yield

    return Starlette(
        routes=[
            Route("/health", partial(_health, edge), methods=["GET"]),
            Route("/v1/models", partial(_models, edge, int(time.time())), methods=["GET"]),
            Route("/v1/chat/completions", partial(_complete, edge, "chatcmpl-", read_chat), methods=["POST"]),
            Route("/v1/completions", partial(_complete, edge, "cmpl-", read_completion), methods=["POST"]),
        ],
        middleware=[Middleware(_Keys, api_keys=api_keys)] if api_keys else [],
        exception_handlers={
            PrereadError: _on_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_bug,
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
        "contexts": len(contexts.all()),
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
    body = await _read_body(request)
    call = read(body, Bounds(spec.window_tokens, spec.vocab_size), secrets.randbits(31))
    head = Head(prefix + secrets.token_hex(12), int(time.time()), spec.name, call)
    return _Answering(head, edge.answer(call.ask))


class _Answering:
    """ASGI response that makes an answer while it sends it, and gives it up when the client goes away.

    Until the first piece is there nothing is sent, so that whatever goes wrong before it has a status of its own.
    """

    def __init__(self, head: Head, pieces: Pieces) -> None:
        self._head, self._pieces = head, pieces

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
        pieces: list[Piece] = []
        async with aclosing(self._pieces) as items:
            async for item in items:
                if isinstance(item, Done):
                    done = item
                else:
                    pieces.append(item)
        body = reply.whole(self._head, pieces, done)
        await send(_start(200, {**_JSON, "Content-Length": str(len(body))}))
        await send(_body(body))

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._pieces) as items:
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
            return reply.failing(_error(status, str(error), code))
        except Exception:
            _log.exception("an answer failed after it had begun")
            return reply.failing(_error(*_UNFORESEEN))
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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: dict[str, str]) -> Message:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _read_body(request: Request) -> bytes:
    """The body of a request, if it says that it is JSON: another type is what a web page may send without asking."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Unsupported Media Type: send Content-Type: application/json")
    too_long = HTTPException(413, f"Content Too Large: at most {MAX_BODY_BYTES} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise too_long
    return bytes(body)


def _error(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {**routes.error_body(status, message, code)["error"], "param": param}}


def _error_response(
    status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return JSONResponse(_error(status, message, code, param), status, headers={**always, **(headers or {})})


async def _on_error(request: Request, error: Exception) -> Response:
    status, code = routes.status_and_code(cast(PrereadError, error))
    param = error.param if isinstance(error, BadRequest) else None
    return _error_response(status, str(error), code, "context" if isinstance(error, UnknownContext) else param)


async def _on_http_error(request: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    code = refusal.detail.partition(":")[0].lower().replace(" ", "_")
    message = f"{request.method} {request.url.path}: {refusal.detail}"
    return _error_response(refusal.status_code, message, code, headers=dict(refusal.headers or {}))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client went away before its request was whole


async def _on_bug(request: Request, error: Exception) -> Response:
    return _error_response(*_UNFORESEEN)


class _Keys:
    """ASGI middleware that lets in who has one of the keys; anybody may ask for /health."""

    def __init__(self, app: ASGIApp, api_keys: frozenset[str]) -> None:
        self._app = app
        self._expected = [f"Bearer {key}".encode() for key in sorted(api_keys)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health" or self._admits(scope):
            await self._app(scope, receive, send)
            return
        message = "this edge needs an API key: send Authorization: Bearer KEY"
        refusal = _error_response(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return any([hmac.compare_digest(given, expected) for expected in self._expected])
