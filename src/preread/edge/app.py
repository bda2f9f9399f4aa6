"""The edge's HTTP side: OpenAI's API in front of an `AsyncEdge`, which opens when the server starts.

It knows routes, keys and statuses. How a request is answered is in `serving.py`, what bodies mean in `openai.py`, how
answers are written in `forms/`, how they come about in `answer.py`. Every route answers from this machine alone:
nothing here opens a connection.
"""

import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.edge import listed, metrics, models, openapi, texts
from preread.edge.decisions import openai as decisions
from preread.edge.decisions import systemone
from preread.edge.edge import AsyncEdge
from preread.edge.forms import messages as anthropic
from preread.edge.forms.messages import MessageForm
from preread.edge.forms.native import NativeForm
from preread.edge.forms.openai import ChatForm, CompletionForm, chat_progress, completion_progress
from preread.edge.forms.responses import ResponseForm
from preread.edge.messages import read_messages
from preread.edge.native import read_infill, read_native
from preread.edge.openai import read_chat, read_completion
from preread.edge.page import EdgePage
from preread.edge.responses import read_response
from preread.edge.sending import Api, Errors, as_openai
from preread.edge.serving import DEFAULT, DecisionApi, Front, Limits, Work
from preread.errors import PrereadError
from preread.page.routes import OPEN, page_routes
from preread.store import guard, routes
from preread.store.guard import LOOPBACK, Access
from preread.store.readiness import ready_route

_CHAT = Api("chatcmpl-", read_chat, ChatForm, progress=chat_progress)
_COMPLETION = Api("cmpl-", read_completion, CompletionForm, progress=completion_progress)
_NATIVE, _INFILL = Api("cmpl-", read_native, NativeForm), Api("cmpl-", read_infill, NativeForm)
_RESPONSE = Api("resp_", read_response, ResponseForm)
_MESSAGES = Api("msg_", read_messages, MessageForm, anthropic.error)
_DECISIONS = DecisionApi(decisions.read, decisions.write)
_SYSTEMONE = DecisionApi(systemone.read, systemone.write)
_NO_STORE: Final = {"Cache-Control": "no-store"}


def create_app(
    edge: AsyncEdge,
    access: Access = LOOPBACK,
    *,
    limits: Limits = DEFAULT,
    beside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> Starlette:
    """The edge as an ASGI application.

    Where `access` has keys, everything but /health and /readyz, and the page as long as it is empty, needs one with the
    scope `ask` as bearer token.

    Every path is served without `/v1` too, and with slashes doubled or at its end: clients differ in what they take a
    base URL to be.

    `edge` is opened at startup, so a model that cannot be had or loaded keeps the server from starting. `beside` is
    entered then, and left before it is closed. `limits`: what clients may take of it.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with edge, beside():
            yield

    front, started = Front(edge, limits), int(time.time())
    return Starlette(
        routes=[
            *_both("/health", partial(_health, edge), "GET"),
            ready_route(),  # cut off from its cloud too, an edge answers
            *page_routes("edge", EdgePage(edge).look, keys=access.keys is not None),
            *_both("/models", partial(_models, edge, started), "GET"),
            *_both("/models/{id:path}", partial(_models, edge, started), "GET"),
            *_both("/contexts", partial(_contexts, edge), "GET"),
            Route("/openapi.json", _openapi, methods=["GET"]),
            Route("/metrics", partial(_metrics, edge), methods=["GET"]),
            Route("/props", partial(_properties, edge), methods=["GET"]),
            *(
                Route(path, partial(_elsewhere, advice), methods=["GET", "POST"])
                for path, advice in models.ELSEWHERE.items()
            ),
            *_both("/conversations", partial(_drop_conversations, edge), "DELETE"),
            *_both("/chat/completions", partial(_complete, front, _CHAT), "POST"),
            *_both("/completions", partial(_complete, front, _COMPLETION), "POST"),
            Route("/completion", partial(_complete, front, _NATIVE), methods=["POST"]),
            Route("/infill", partial(_complete, front, _INFILL), methods=["POST"]),
            *_both("/responses", partial(_complete, front, _RESPONSE), "POST"),
            *_both("/chat/completions/input_tokens", partial(_work, front, texts.count_chat, as_openai), "POST"),
            *_both("/responses/input_tokens", partial(_work, front, texts.count_response, as_openai), "POST"),
            *_both("/messages/count_tokens", partial(_work, front, texts.count_messages, anthropic.error), "POST"),
            *(
                Route(path, partial(_work, front, work, as_openai), methods=["POST"])
                for path, work in (
                    ("/tokenize", texts.tokenize),
                    ("/detokenize", texts.detokenize),
                    ("/apply-template", texts.apply_template),
                )
            ),
            *_both("/messages", partial(_complete, front, _MESSAGES), "POST"),
            *_both("/decisions", partial(_decide, front, _DECISIONS), "POST"),
            *_both("/systemone", partial(_decide, front, _SYSTEMONE), "POST"),
        ],
        middleware=[Middleware(_SingleSlashes), *access.middleware("edge", reads="ask", writes="ask", open=OPEN)],
        exception_handlers={
            PrereadError: routes.on_error,
            HTTPException: routes.on_http_error,
            ClientDisconnect: routes.on_disconnect,
            Exception: routes.on_bug,
        },
        lifespan=lifespan,
    )


async def _health(edge: AsyncEdge, request: Request) -> Response:
    engine, contexts = edge.node.engine, edge.node.contexts
    body = {
        "status": "ok",
        "model": engine.spec.name,
        "injection": engine.no_injection,
        "cloud": contexts.unreachable,
        "contexts": len(contexts.entries()),
        "missing": len(contexts.missing()),
    }
    return JSONResponse(body, headers=_NO_STORE)


async def _models(edge: AsyncEdge, started: int, request: Request) -> Response:
    all = models.models(edge.node.engine.spec, edge.node.contexts.readable(), started)
    wanted = request.path_params.get("id")
    if wanted is None:
        return JSONResponse({"object": "list", "data": all}, headers=_NO_STORE)
    for model in all:
        if model["id"] == wanted:
            return JSONResponse(model, headers=_NO_STORE)
    return routes.error_response(404, f"there is no model {wanted[:200]!r}: /v1/models lists all", "model_not_found")


async def _contexts(edge: AsyncEdge, request: Request) -> Response:
    asked = request.query_params.get("limit", "100")
    limit = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) <= 9 else 0
    if not 1 <= limit <= listed.MOST:
        message = f"limit is a number from 1 to {listed.MOST}, not {asked[:80]!r}"
        return routes.error_response(400, message, "bad_request", param="limit")
    page = listed.listed(edge.node, request.query_params.get("after", ""), limit)
    return JSONResponse(page, headers=_NO_STORE)


async def _openapi(request: Request) -> Response:
    return Response(openapi.description(), media_type="application/json", headers={"Cache-Control": "no-cache"})


async def _metrics(edge: AsyncEdge, request: Request) -> Response:
    headers = {**_NO_STORE, "Content-Type": metrics.CONTENT_TYPE}
    return Response(edge.residents.metrics.text(), headers=headers)


async def _drop_conversations(edge: AsyncEdge, request: Request) -> Response:
    """Nothing of what this caller said is kept for a next turn any more."""
    await edge.node.core.drop_conversations(guard.caller(request.scope))
    return Response(status_code=204)


async def _properties(edge: AsyncEdge, request: Request) -> Response:
    engine = edge.node.engine
    told = models.properties(engine.spec, engine.sampling, engine.kv_memory_bytes)
    return JSONResponse(told, headers=_NO_STORE)


async def _elsewhere(advice: str, request: Request) -> Response:
    return routes.error_response(501, f"{request.url.path} is not supported: {advice}", "not_supported")


def _both(path: str, endpoint: Callable[[Request], Awaitable[ASGIApp]], method: str) -> list[Route]:
    return [Route(f"/v1{path}", endpoint, methods=[method]), Route(path, endpoint, methods=[method])]


async def _complete(front: Front, api: Api, request: Request) -> ASGIApp:
    return front.answering(api)


async def _decide(front: Front, api: DecisionApi, request: Request) -> ASGIApp:
    return front.deciding(api)


async def _work(front: Front, work: Work, error: Errors, request: Request) -> ASGIApp:
    return front.working(work, error)


class _SingleSlashes:
    """ASGI middleware: `//v1//models/` is `/v1/models`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        path = re.sub("/{2,}", "/", path).removesuffix("/") or "/"
        await self._app({**scope, "path": path}, receive, send)
