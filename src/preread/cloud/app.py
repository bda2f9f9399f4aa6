"""The cloud's HTTP side: what is published can be read by many, while one document at a time is being published.

It knows requests, keys and events; publishing itself is the publisher's, and what objects are is the store's.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from preread import lifecycle
from preread.cloud import events
from preread.cloud.events import Counted, Failed, Problem, Progress, Published
from preread.cloud.fits import FitKeeper, fit_routes
from preread.cloud.origins import NOWHERE, Named, origin_route, redirected
from preread.cloud.page import CloudPage
from preread.cloud.turns import Turns
from preread.errors import Overloaded, PrereadError, Unavailable, UnknownContext, UsageError
from preread.lifecycle import Lifecycle
from preread.page.routes import OPEN, page_routes
from preread.store import guard, routes
from preread.store.guard import LOOPBACK, Access
from preread.store.listed import catalogue_route
from preread.store.objects import Objects
from preread.store.readiness import Watched, ready_route
from preread.tasks import running
from preread.values import Fingerprint
from preread.wire.names import why_unfit

MAX_BODY_BYTES: Final = 8 * 2**20
"""A million tokens, as text of most languages or as ids."""

_KEEP_ALIVE_S: Final = 10.0
"""After so much silence the last line is said again, so that whoever is between does not hang up."""

_BACK_S: Final = 10.0
_log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""Told (stage, done, total); may be called from any thread."""

News = Progress | Published | PrereadError
"""What a publication says; all but Progress is its last word."""


Publisher = Callable[[events.Request, Report], Coroutine[None, None, Published]]
"""Publishes one document. It ends only when its work has ended.

Raises:
    UsageError: the document cannot be published, said before the first report.
    PrereadError: publishing failed; what was published before is unchanged.
"""

Counter = Callable[[events.Request], Coroutine[None, None, Counted]]
"""Says what a document would be, published. UsageError: it could not be."""


@dataclass(frozen=True, slots=True)
class Served:
    """What publishes and counts with one model."""

    publisher: Publisher
    counter: Counter


NO_MODELS: Final[Mapping[Fingerprint, str]] = {}
NO_SERVED: Final[Mapping[str, Served]] = {}

Choose = Callable[[str | None], Served]
"""What serves a model, by its name. UsageError: none does."""


async def refuse_count(ask: events.Request) -> Counted:
    """The counter of a cloud without a model."""
    raise UsageError("this cloud only serves what was published before: it runs no model")


def create_app(
    store: Objects,
    publisher: Publisher,
    access: Access = LOOPBACK,
    counter: Counter = refuse_count,
    models: Mapping[Fingerprint, str] = NO_MODELS,
    served: Mapping[str, Served] = NO_SERVED,
    width: int = 1,
    elsewhere: Named = NOWHERE,
) -> Starlette:
    """The cloud as an ASGI application. `models`: names of those that it runs.

    A request that names no model is the `publisher`'s and the `counter`'s, and one that names one is for the `served`
    one of that name. `width`: how many documents are published at a time. `elsewhere`: where edges get segments, too.

    Where `access` has keys, everything but /health and /readyz needs one as bearer token: reading one with the scope
    `read`, publishing and removing one with `publish`.
    """
    changes, counts = Turns(width=width), Turns("counted")
    choose = partial(_served, Served(publisher, counter), served)
    contexts, fits = _Contexts(store, choose, changes), FitKeeper(store, models, changes)
    caching = routes.SHARED if access.keys is None else routes.PRIVATE
    readable = Watched(store.check, "the store")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with running(_end(lifecycle.of(app), contexts)):
            yield
        await contexts.aclose()
        await readable.aclose()

    return Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            ready_route(readable.problem),
            *page_routes("cloud", CloudPage(store, contexts.under_way).look, keys=access.keys is not None),
            *[
                redirected(route, elsewhere) if "segments" in route.path else route
                for route in routes.object_routes(store, caching)
            ],
            origin_route(elsewhere),
            *fit_routes(fits, caching),
            catalogue_route(store),
            Route("/v1/contexts", partial(_publish, contexts), methods=["POST"]),
            Route("/v1/count", partial(_count, choose, counts), methods=["POST"]),
            Route("/v1/contexts/{name}", partial(_remove, contexts), methods=["DELETE"]),
        ],
        middleware=access.middleware("cloud", reads="read", writes="publish", open=OPEN),
        exception_handlers={
            PrereadError: routes.on_error,
            HTTPException: routes.on_http_error,
            ClientDisconnect: routes.on_disconnect,
            Exception: routes.on_bug,
        },
        lifespan=lifespan,
    )


class _Contexts:
    """The published contexts. One change at a time: an object that one change still needs, another might remove."""

    def __init__(self, store: Objects, choose: Choose, turns: Turns) -> None:
        self._store, self._choose = store, choose
        self._turns = turns
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: dict[int, tuple[str, Progress]] = {}
        self._count = 0

    def start_publishing(
        self, ask: events.Request, caller: str, size_bytes: int, emit: Callable[[News], None]
    ) -> asyncio.Task[None]:
        """Publish in a task of its own, whose last word is Published or an error."""
        task = asyncio.create_task(self._publish(ask, caller, size_bytes, emit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def remove(self, name: str, caller: str) -> None:
        async with self._turns.turn(caller, 0, lambda ahead: None):
            if not await self._store.remove_name(name):
                raise UnknownContext(name, tuple(entry.name for entry in await self._store.names()))

    def under_way(self) -> tuple[tuple[str, Progress], ...]:
        """Names that are being published, in the order in which they came, and how far each has come."""
        return tuple(self._under_way.values())

    async def aclose(self) -> None:
        """Give up what is being published, and wait until that has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _publish(self, ask: events.Request, caller: str, size_bytes: int, emit: Callable[[News], None]) -> None:
        most_ahead, self._count = 0, self._count + 1
        number = self._count

        def progress(stage: str, done: int, total: int) -> None:
            self._under_way[number] = ask.name, Progress(stage, done, total)
            emit(Progress(stage, done, total))

        def place(ahead: int) -> None:
            nonlocal most_ahead
            most_ahead = max(most_ahead, ahead)
            progress("queue", most_ahead - ahead, most_ahead)

        # who went away does not hear it
        last: News = Unavailable("publishing was given up, as this cloud is stopping: publish again when it is back")
        try:
            publisher = self._choose(ask.model).publisher
            await self._store.check_room(ask.name)
            async with self._turns.turn(caller, size_bytes, place, ask.priority):
                await self._store.check_room(ask.name)
                last = await publisher(ask, progress)
        except PrereadError as error:
            last = error
        except Exception:
            _log.exception("publishing %r failed", ask.name)
            last = PrereadError("publishing failed in a way that nobody foresaw: look at the cloud's log")
        finally:
            self._under_way.pop(number, None)
            emit(last)


async def _end(stages: Lifecycle, contexts: _Contexts) -> None:
    """When the server's time is over, give up what is being published: who waits for it is told so."""
    await stages.ending.wait()
    await contexts.aclose()


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


async def _remove(contexts: _Contexts, request: Request) -> Response:
    name = request.path_params["name"]
    await contexts.remove(name, guard.caller(request.scope))
    return JSONResponse({"removed": name}, headers={"Cache-Control": "no-store"})


def _served(first: Served, others: Mapping[str, Served], model: str | None) -> Served:
    """What serves a model.

    Raises:
        UsageError: none does.
    """
    if model is None:
        return first
    if (found := others.get(model)) is None:
        runs = ", ".join(sorted(others)) or "none that it can be asked for by name"
        raise UsageError(f"this cloud does not run model {model[:200]!r}; it runs: {runs}")
    return found


async def _count(choose: Choose, turns: Turns, request: Request) -> Response:
    """Count beside what is being published: nobody who only wants to know waits for that."""
    body = await guard.read_body(request, MAX_BODY_BYTES)
    size_bytes, ask = len(body), _parse(body)
    del body
    counter = choose(ask.model).counter
    async with turns.turn(guard.caller(request.scope), size_bytes, lambda ahead: None):
        counted = await counter(ask)
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(counted), headers=headers, media_type="application/json")


async def _publish(contexts: _Contexts, request: Request) -> Response:
    """Answer with a plain error while nothing was done yet, and from the first report on with a stream of events."""
    if lifecycle.of(request.app).stopping.is_set():
        raise Overloaded("this cloud is stopping: publish again when it is back", retry_after_s=_BACK_S)
    body = await guard.read_body(request, MAX_BODY_BYTES)
    size_bytes, ask = len(body), _parse(body)
    del body
    queue: asyncio.Queue[News] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def emit(news: News) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, news)

    task = contexts.start_publishing(ask, guard.caller(request.scope), size_bytes, emit)
    del ask
    try:
        first = await _unless_gone(request, queue.get())
    except BaseException:
        task.cancel()
        raise
    if isinstance(first, PrereadError):
        raise first

    async def lines() -> AsyncGenerator[bytes, None]:
        news: News = first
        try:
            while isinstance(news, Progress):
                yield _line(news)
                with suppress(TimeoutError):
                    news = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_S)
            yield _line(news)
        finally:
            task.cancel()  # the caller went away; a task that has ended is left as it is

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), headers=headers, media_type="application/x-ndjson")


async def _unless_gone(request: Request, wanted: Coroutine[None, None, News]) -> News:
    """What `wanted` gives.

    Raises:
        ClientDisconnect: the caller went away before.
    """
    waiting, leaving = asyncio.create_task(wanted), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not waiting.done():
            waiting.cancel()
    if waiting.cancelled() or not waiting.done():
        raise ClientDisconnect
    return waiting.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _line(news: News) -> bytes:
    if isinstance(news, PrereadError):
        return msgspec.json.encode(Failed(msgspec.convert(routes.body_of(news)["error"], Problem))) + b"\n"
    return msgspec.json.encode(news) + b"\n"


def _parse(body: bytes) -> events.Request:
    """Read and check what can be checked without a model. UsageError says what is wrong."""
    try:
        ask = msgspec.json.decode(body, type=events.Request)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"request is not what POST /v1/contexts takes: {error}") from error
    if unfit := why_unfit(ask.name):
        raise UsageError(f"{ask.name[:200]!r} cannot name a context: {unfit}")
    if (ask.text is None) == (ask.tokens is None):
        raise UsageError("give the document either as text or as tokens")
    if not (ask.text or ask.tokens):
        raise UsageError("document is empty: there is nothing to read ahead")
    return ask
