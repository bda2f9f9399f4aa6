"""The HTTP side of `preread attach`: everything goes on to one llama-server, and back as it comes.

Bodies and answers pass as bytes in both directions, no faster than they are taken. Only requests that may be about a
context are read, and only in those that are is anything changed. Own paths are /readyz, /preread and /preread/metrics;
a list of models also has each context as MODEL@CONTEXT.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from preread import lifecycle
from preread.attach import asked as requests
from preread.attach import counts
from preread.attach.asked import Asked
from preread.attach.attached import Attached
from preread.attach.reused import Reused
from preread.attach.server import Headers
from preread.errors import PrereadError, RemoteError
from preread.store import routes
from preread.store.guard import LOOPBACK, Access
from preread.store.readiness import Watched, ready_route

MOST_READ_BYTES: Final = 16 * 2**20
"""Of a body that may be about a context; a longer one goes on unread."""

_OWN_HOP: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"host",
    }
)  # fmt: skip
"""Headers that concern one connection (RFC 9110, 7.6.1), and those that the next one gets anew."""
_LENGTHS: Final = frozenset({b"content-length", b"accept-encoding"})
_MODELS: Final = ("/models", "/v1/models")
_MOST_MODELS_BYTES: Final = 2**20

Open = Callable[[], AbstractAsyncContextManager[Attached]]


def create_app(open: Open, access: Access = LOOPBACK) -> Starlette:
    """The proxy as an ASGI application.

    Where `access` has keys, everything but /health and /readyz needs one with the scope `ask`, and no client's key goes
    on.
    `open` gives what stands behind it, and is entered at startup.
    """
    front = _Front(keys=access.keys is not None)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with open() as attached:
            front.attached = attached
            yield
            await front.watched.aclose()

    async def passing(request: Request) -> ASGIApp:
        return partial(front.passed, request.scope)

    return Starlette(
        routes=[
            ready_route(front.watched.problem),
            Route("/preread", front.state, methods=["GET"]),
            Route("/preread/metrics", front.metrics, methods=["GET"]),
            Route(
                "/{path:path}",
                passing,
                methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
            ),
        ],
        middleware=access.middleware("attach", reads="ask", writes="ask"),
        exception_handlers={
            PrereadError: routes.on_error,
            HTTPException: routes.on_http_error,
            ClientDisconnect: routes.on_disconnect,
            Exception: routes.on_bug,
        },
        lifespan=lifespan,
    )


class _Front:
    """What all requests share."""

    attached: Attached

    def __init__(self, *, keys: bool) -> None:
        self._keys = keys
        self.watched = Watched(lambda: self.attached.server.well(), "the llama-server")

    async def state(self, request: Request) -> Response:
        """What this process does, and why not."""
        trust, contexts = self.attached.trust, self.attached.published.contexts
        body = {
            "server": str(self.attached.server.origin),
            "restoring": trust.refused is None,
            "refused": trust.refused,
            "cloud": contexts.unreachable,
            "contexts": len(contexts.entries()),
            "slots": None if trust.properties is None else trust.properties.slots,
        }
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        """Counts."""
        headers = {"Cache-Control": "no-store", "Content-Type": counts.CONTENT_TYPE}
        return Response(self.attached.counts.text(), headers=headers)

    async def passed(self, scope: Scope, _: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and give it up when the client goes away."""
        body = _Body(receive)
        passing = _Passing(self.attached, scope, body, send, keys=self._keys)
        work = asyncio.create_task(passing.answer())
        gone = asyncio.create_task(body.disconnected())
        try:
            async with lifecycle.of(scope["app"]).within("preread attach is stopping: ask again"):
                await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait([work, gone])
        if not work.cancelled():
            work.result()


class _Body:
    """A request's body as it comes, and the news that its client is gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._ended = receive, asyncio.Event()
        self._gone = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises ClientDisconnect where it ends too early."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()
                self._ended.set()
                raise ClientDisconnect
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._ended.set()

    async def disconnected(self) -> None:
        """Wait until the client is gone."""
        await self._ended.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()


class _Passing:
    """One request on its way to the server, and its answer on its way back."""

    def __init__(self, attached: Attached, scope: Scope, body: _Body, send: Send, *, keys: bool) -> None:
        self._attached, self._body, self._send = attached, body, send
        self._method, self._path = str(scope["method"]), str(scope["path"])
        query = scope["query_string"].decode("latin-1")
        raw = scope.get("raw_path") or self._path.encode()
        self._target = raw.decode("latin-1") + (f"?{query}" if query else "")
        self._headers = onward([*scope["headers"]], more=frozenset({b"authorization"}) if keys else frozenset())
        self._has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])

    async def answer(self) -> None:
        """Read as much as is needed to know what it is about, and pass it on."""
        if not self._has_body:
            await self._pass(None)
            return
        pieces = self._body.pieces()
        if self._method != "POST" or not self._plain_json() or not requests.may_ask(self._path):
            await self._pass(pieces)
            return
        begun = bytearray()
        async for piece in pieces:
            begun += piece
            if len(begun) > MOST_READ_BYTES:
                await self._pass(_joined(bytes(begun), pieces))
                return
        whole = bytes(begun)
        asked = requests.read(self._path, whole, self._attached.models)
        if asked is None:
            await self._pass(whole)
        else:
            await self._place(asked, whole)

    def _plain_json(self) -> bool:
        told = dict(self._headers)
        kind = told.get(b"content-type", b"").partition(b";")[0].strip().lower()
        return kind == b"application/json" and b"content-encoding" not in told

    async def _place(self, asked: Asked, written: bytes) -> None:
        asked, known = await self._attached.understood(asked)
        async with self._attached.placed(asked, known) as placed:
            self._attached.counts.requests.labels(placed.way).inc()
            body = placed.asked.encoded() if placed.asked.changed else written
            headers = [pair for pair in self._headers if pair[0] not in _LENGTHS]
            # What an answer says of itself is looked at as it passes.
            headers.append((b"accept-encoding", b"identity"))
            server = self._attached.server
            async with server.passed_on(self._method, self._target, headers, body) as answer:
                reused = Reused()
                told = [(b"x-preread", placed.way.encode())] if known is not None else []
                await self._start(answer.status_code, [*answer.headers.raw, *told])
                async for piece in answer.aiter_raw():
                    reused.feed(piece)
                    await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                if answer.status_code == 200:
                    self._attached.answered(placed, reused)
        await self._send({"type": "http.response.body", "body": b""})

    async def _pass(self, body: bytes | AsyncIterator[bytes] | None) -> None:
        """As it is."""
        self._attached.counts.requests.labels("passed").inc()
        async with self._attached.server.passed_on(self._method, self._target, self._headers, body) as answer:
            if self._method == "GET" and self._path in _MODELS and answer.status_code == 200:
                body = with_contexts(await _whole(answer.aiter_bytes()), self._named())
                await self._start(200, [(b"content-type", b"application/json"), (b"cache-control", b"no-store")])
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
            else:
                await self._start(answer.status_code, answer.headers.raw)
                async for piece in answer.aiter_raw():
                    await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    def _named(self) -> list[str]:
        return [known.entry.name for known in self._attached.published.all()]

    async def _start(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": onward(headers)})


def onward(headers: Headers, more: frozenset[bytes] = frozenset()) -> Headers:
    """The headers that go on to the next connection, names in small letters; `more`: of those that do not."""
    lower = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower() for name, value in lower if name == b"connection" for token in value.split(b",")
    }  # what this connection's own headers are, it says itself
    return [(name, value) for name, value in lower if name not in _OWN_HOP | named | more]


def with_contexts(body: bytes, names: list[str]) -> bytes:
    """A server's list of models, with its first model once more for each context."""
    try:
        listed = msgspec.json.decode(body)
        first = listed["data"][0]
        more = [{**first, "id": f"{first['id']}@{name}"} for name in names]
        return msgspec.json.encode({**listed, "data": [*listed["data"], *more]})
    except (msgspec.MsgspecError, LookupError, TypeError):
        return body


async def _whole(pieces: AsyncIterator[bytes]) -> bytes:
    """Raises RemoteError where there is far more than a list of models has."""
    whole = bytearray()
    async for piece in pieces:
        whole += piece
        if len(whole) > _MOST_MODELS_BYTES:
            raise RemoteError(f"the server lists its models in more than {_MOST_MODELS_BYTES} bytes")
    return bytes(whole)


async def _joined(begun: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for piece in pieces:
        yield piece
