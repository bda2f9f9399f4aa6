"""What an edge serves to the other edges of its site: segments that the cloud publishes, read-only, and who it is.

It is an application of its own, for a listener of its own: who may fetch segments may not ask questions. It serves only
ids that are in a manifest of its own catalogue. What it does not hold it fetches from the cloud, never from another
neighbour, so that no request can go in circles; a request that says `only-if-cached` is never passed on at all.
"""

import asyncio
import logging
import time
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preread.edge.contexts import Contexts
from preread.edge.edge import AsyncEdge
from preread.edge.proof import Proven, Prover, authorization, local_address
from preread.edge.sources import NotHeld, Sources
from preread.errors import Overloaded, PrereadError
from preread.store import routes
from preread.store.egress import INTRODUCTION
from preread.values import Kind, ObjectId, ObjectRef
from preread.wire.neighbour import Introduction, SiteKey

MOST_REQUESTS: Final = 64
"""So many requests are answered or waiting at once; who comes then is told to ask the cloud."""

_MOST_THROUGH: Final = 8
"""So many segments are fetched for neighbours at once, which leaves connections to the cloud for this edge's own."""

_AGAIN_S: Final = 600.0
_MOST_REMEMBERED: Final = 65_536
"""A segment is fetched for neighbours no more often, of so many segments: whoever asks again and again cannot fill the
uplink. Where it was not kept, there was no room beside what this edge uses itself."""

_MOST_WAIT_S: Final = 2.0
_MOST_STALL_S: Final = 10.0
_log = logging.getLogger(__name__)


class Fetched:
    """What was fetched for neighbours lately. Times are arguments."""

    def __init__(self) -> None:
        self._at_s: dict[ObjectId, float] = {}  # oldest first

    def allows(self, id: ObjectId, at_s: float) -> bool:
        """Whether it may be fetched again."""
        while self._at_s and at_s - next(iter(self._at_s.values())) >= _AGAIN_S:
            del self._at_s[next(iter(self._at_s))]
        return id not in self._at_s and len(self._at_s) < _MOST_REMEMBERED

    def note(self, id: ObjectId, at_s: float) -> None:
        """It was fetched."""
        self._at_s.pop(id, None)  # several may have waited for the same answer
        self._at_s[id] = at_s


class Shared:
    """The segments of one edge, as the routes want them. What is fetched for others takes no room from its own.

    Args:
        sources: where its segments are.
        contexts: its catalogue: nothing else is served.
        through: whether the cloud is asked for what is not held.
    """

    def __init__(self, sources: Sources, contexts: Contexts, *, through: bool) -> None:
        self._sources, self._contexts, self._through = sources, contexts, through
        self._asking, self._fetched = asyncio.Semaphore(_MOST_THROUGH), Fetched()

    async def size(self, kind: Kind, id: ObjectId) -> int | None:
        """Size of a segment in bytes; None where it is unknown, or not held and not to be fetched."""
        ref = self._contexts.segment(id)
        return None if ref is None or not (self._through or self._sources.disk.holds(ref)) else ref.size_bytes

    async def read(self, kind: Kind, id: ObjectId, start: int | None = None, stop: int | None = None) -> bytes | None:
        """A segment's bytes, or some of them; None as for `size`.

        Raises:
            Overloaded: it was fetched for a neighbour not long ago.
            PrereadError: the cloud was asked, and did not give it.
        """
        ref = self._contexts.segment(id)
        data = None if ref is None else await self._read(ref)
        return data if data is None or start is None else data[start:stop]

    async def _read(self, ref: ObjectRef) -> bytes | None:
        try:
            return await self._sources.disk.get(ref, guest=True)
        except NotHeld:
            pass
        if not self._through or self._sources.cloud is None:
            return None
        async with self._asking:
            if self._sources.disk.holds(ref):
                return await self._sources.disk.get(ref, guest=True)  # it came while this request waited
            if not self._fetched.allows(ref.id, time.monotonic()):
                raise Overloaded("this edge fetched that not long ago: ask the cloud", retry_after_s=_AGAIN_S)
            data = await self._sources.cloud.get_for_guest(ref)
            self._fetched.note(ref.id, time.monotonic())
            return data


class _Stalled(Exception):
    """A client takes nothing of its answer."""


class Pace:
    """ASGI middleware: at most `MOST_REQUESTS` at once, and bodies at most at `bytes_s` bytes a second, if given."""

    def __init__(self, app: ASGIApp, bytes_s: float | None) -> None:
        self._app, self._bytes_s = app, bytes_s
        self._running, self._free_at = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._running >= MOST_REQUESTS or self._free_at - time.monotonic() > _MOST_WAIT_S:
            busy = routes.error_response(503, "this edge has much to do: ask the cloud", "busy")
            await busy(scope, receive, send)
            return

        async def paced(message: Message) -> None:
            if self._bytes_s is not None and message["type"] == "http.response.body":
                now = time.monotonic()
                self._free_at = max(now, self._free_at) + len(message.get("body", b"")) / self._bytes_s
                await asyncio.sleep(self._free_at - now)
            try:
                async with asyncio.timeout(_MOST_STALL_S):
                    await send(message)
            except TimeoutError:
                raise _Stalled from None

        self._running += 1
        try:
            await self._app(scope, receive, paced)
        except _Stalled:
            _log.info("a neighbour takes nothing of an answer, which is given up")
        finally:
            self._running -= 1


def create_share_app(edge: AsyncEdge, *, bytes_s: float | None = None) -> Starlette:
    """The segments of an open edge as an ASGI application. With a site key, who asks must prove to have it.

    Bodies are sent no faster than `bytes_s`, in bytes a second, all together.
    """
    node, near = edge.node, edge.options.near
    return create_app(edge.introduction, node.sources, node.contexts, site_key=near.site_key, bytes_s=bytes_s)


def create_app(
    introduction: Introduction,
    sources: Sources,
    contexts: Contexts,
    *,
    site_key: SiteKey | None = None,
    bytes_s: float | None = None,
) -> Starlette:
    """As `create_share_app`, from parts.

    Args:
        introduction: who this edge is.
        sources, contexts: as for `Shared`.
        site_key: secret that the edges of the site share.
        bytes_s: as for `create_share_app`.
    """
    held, through = (Shared(sources, contexts, through=through) for through in (False, True))

    def source_for(request: Request) -> Shared:
        return held if _only_if_cached(request) else through

    prover = None if site_key is None else Prover(site_key, introduction)

    async def introduce(request: Request) -> Response:
        said, scope = introduction, request.scope
        if prover is not None:
            said = prover.introduce(authorization(scope), local_address(scope))
        return JSONResponse(msgspec.to_builtins(said), headers={"Cache-Control": "no-store"})

    middleware = [Middleware(Pace, bytes_s=bytes_s)]
    if prover is not None:
        middleware.insert(0, Middleware(Proven, prover=prover))
    return Starlette(
        routes=[
            Route(INTRODUCTION, introduce, methods=["GET"]),
            routes.object_route("segments", source_for, routes.PRIVATE if site_key else routes.SHARED, _absence),
        ],
        middleware=middleware,
        exception_handlers={
            PrereadError: routes.on_error,
            HTTPException: routes.on_http_error,
            Exception: routes.on_bug,
        },
    )


def _only_if_cached(request: Request) -> bool:
    directives = request.headers.get("cache-control", "").lower().split(",")
    return "only-if-cached" in {directive.strip() for directive in directives}


def _absence(request: Request, id: ObjectId) -> Response:
    if _only_if_cached(request):
        return routes.error_response(504, f"segment {id} is not held here", "not_held")
    return routes.error_response(404, f"segment {id} is of no context that this edge knows", "not_found")
