"""Read-only HTTP routes for immutable objects; the cloud mounts them, and an edge for its peers.

It knows HTTP caching and how errors look; it must not know publishing, engines or manifests. Register `on_error` for
PrereadError and `on_http_error` for HTTPException with the application that mounts the routes.
"""

import math
from collections.abc import Callable
from typing import Final, Protocol, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preread.errors import (
    EngineError,
    Full,
    Overloaded,
    PrereadError,
    RemoteError,
    TooLong,
    TransportError,
    Unavailable,
    UnknownContext,
    UsageError,
)
from preread.store.ranges import none_match, parse_range, range_applies
from preread.values import Kind, ObjectId
from preread.wire.digest import is_id

SHARED: Final = "public, max-age=31536000, immutable"
"""Cache-Control of objects that any cache may keep and hand to anybody."""

PRIVATE: Final = "private, max-age=31536000, immutable"
"""Cache-Control of objects that are for holders of an API key: a shared cache would hand them to others."""

UNFORESEEN: Final = (500, "the server failed in a way that nobody foresaw: look at its log", "internal_error")
"""Status, message and code of an answer to what is a bug."""

_MEDIA: Final[dict[Kind, str]] = {
    "segments": "application/octet-stream",
    "tokens": "application/octet-stream",
    "manifests": "application/json",
    "profiles": "application/octet-stream",
    "fits": "application/octet-stream",
}
_ANSWERS: Final[tuple[tuple[type[PrereadError], int, str], ...]] = (
    (UnknownContext, 404, "unknown_context"),
    (Full, 409, "catalogue_full"),
    (TooLong, 400, "context_length_exceeded"),
    (UsageError, 400, "bad_request"),
    (Unavailable, 503, "unavailable"),
    (TransportError, 504, "unreachable"),
    (RemoteError, 502, "remote_error"),
    (EngineError, 500, "engine_error"),
    (PrereadError, 500, "internal_error"),
)


class ObjectSource(Protocol):
    """What can serve objects by id. None where it does not have the object."""

    async def size(self, kind: Kind, id: ObjectId) -> int | None: ...

    async def read(
        self, kind: Kind, id: ObjectId, start: int | None = None, stop: int | None = None
    ) -> bytes | None: ...


def object_routes(source: ObjectSource, cache_control: str = SHARED) -> list[Route]:
    """GET and HEAD of /v1/{kind}/{id} for every kind of object that contexts are made of."""
    return [object_route(kind, lambda request: source, cache_control) for kind in _MEDIA if kind != "fits"]


def object_route(
    kind: Kind,
    source_for: Callable[[Request], ObjectSource],
    cache_control: str,
    absence: Callable[[Request, ObjectId], Response] | None = None,
) -> Route:
    """GET and HEAD of /v1/{kind}/{id}.

    Args:
        kind: of the objects.
        source_for: where a request is answered from.
        cache_control: of the objects.
        absence: the answer where the source does not have the object; by default 404.
    """

    async def answer(request: Request) -> Response:
        id = request.path_params["id"]
        if not is_id(id):
            return error_response(400, f"an id is 64 lower-case hex digits, not {id[:80]!r}", "bad_id")
        headers = {
            "ETag": f'"{id}"',
            "Cache-Control": cache_control,
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
        }
        named = ObjectId(id)
        found = await _answer_object(request, source_for(request), kind, named, headers)
        return found or (_absent(kind, named) if absence is None else absence(request, named))

    return Route(f"/v1/{kind}/{{id}}", answer, methods=["GET"])


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, dict[str, str | None]]:
    """An error as the clients of OpenAI's API expect it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int, message: str, code: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """`error_body` as an answer that no cache keeps."""
    return _refusal(status, error_body(status, message, code, param), headers)


def status_and_code(error: PrereadError) -> tuple[int, str]:
    """The HTTP status that says whose fault `error` is, and its code."""
    if isinstance(error, Overloaded):
        return (429, "rate_limit_exceeded") if error.by_caller else (503, "overloaded")
    return next((status, code) for kind, status, code in _ANSWERS if isinstance(error, kind))


def body_of(error: PrereadError) -> dict[str, dict[str, str | None]]:
    """`error` as it is sent."""
    status, code = status_and_code(error)
    return error_body(status, str(error), code, error.param if isinstance(error, UsageError) else None)


async def on_error(request: Request, error: Exception) -> Response:
    """Exception handler for PrereadError."""
    ours = cast(PrereadError, error)
    later = {"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, Overloaded) else None
    return _refusal(status_and_code(ours)[0], body_of(ours), later)


def _refusal(status: int, body: dict[str, dict[str, str | None]], headers: dict[str, str] | None) -> Response:
    always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return JSONResponse(body, status, headers={**always, **(headers or {})})


async def on_http_error(request: Request, error: Exception) -> Response:
    """Exception handler for HTTPException: unknown paths and methods."""
    refusal = cast(HTTPException, error)
    message = f"{request.method} {request.url.path}: {refusal.detail}"
    code = refusal.detail.partition(":")[0].lower().replace(" ", "_")
    return error_response(refusal.status_code, message, code, headers=dict(refusal.headers or {}))


async def refusal(request: Request, error: PrereadError | HTTPException) -> Response:
    """The answer to a request that ended with this error."""
    return await (on_error if isinstance(error, PrereadError) else on_http_error)(request, error)


async def on_bug(request: Request, error: Exception) -> Response:
    """Exception handler for everything that nobody foresaw; the server logs it with its traceback."""
    return error_response(*UNFORESEEN)


async def on_disconnect(request: Request, error: Exception) -> Response:
    """Exception handler for ClientDisconnect: nobody reads it, the client went away before its request was whole."""
    return Response(status_code=400)


async def _answer_object(
    request: Request, source: ObjectSource, kind: Kind, id: ObjectId, headers: dict[str, str]
) -> Response | None:
    """One read, one answer: segments have 50 to 500 KB, which is less than streaming machinery would cost.

    None where the source does not have the object.
    """
    asked, media, etag = request.headers, _MEDIA[kind], headers["ETag"]
    if request.method == "GET" and "range" not in asked and "if-none-match" not in asked:
        data = await source.read(kind, id)
        return None if data is None else Response(data, headers=headers, media_type=media)
    size_bytes = await source.size(kind, id)
    if size_bytes is None:
        return None
    if not none_match(asked.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(size_bytes)}, media_type=media)
    span = parse_range(asked.get("range"), size_bytes) if range_applies(asked.get("if-range"), etag) else None
    if span is None:
        data = await source.read(kind, id)
        return None if data is None else Response(data, headers=headers, media_type=media)
    if len(span) == 0:
        message = f"object has {size_bytes} bytes, none of them is in {asked['range'][:80]!r}"
        return error_response(416, message, "range_not_satisfiable", headers={"Content-Range": f"bytes */{size_bytes}"})
    data = await source.read(kind, id, span.start, span.stop)
    if data is None:
        return None
    part = {**headers, "Content-Range": f"bytes {span.start}-{span.stop - 1}/{size_bytes}"}
    return Response(data, 206, headers=part, media_type=media)


def _absent(kind: Kind, id: ObjectId) -> Response:
    return error_response(404, f"{kind}/{id} is not here: it was removed, or never published here", "not_found")
