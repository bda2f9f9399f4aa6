"""The catalogue over HTTP: whole, in pages, what has changed since a version, or each change as it comes.

It knows requests, versions and who listens; what a listing is, and how changes are written, `preread.wire` says.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from preread import lifecycle
from preread.errors import PrereadError, UsageError
from preread.plan.admission import Admission
from preread.plan.poll import SILENCE_S
from preread.store import guard
from preread.store.ranges import none_match
from preread.wire import selection as selections
from preread.wire import told
from preread.wire.catalogue import MAX_ENTRIES
from preread.wire.digest import is_id
from preread.wire.pages import PATH, Listing
from preread.wire.selection import Selection

T = TypeVar("T")
_log = logging.getLogger(__name__)

MOST_LISTENERS: Final = 2048
"""Who listens has a connection of its own for it; one caller has at most half of these."""

_LATER_S: Final = 60.0
_TOGETHER_S: Final = 0.2
"""Changes that come so soon after one another are told together."""

_KNOWN: Final = frozenset({"limit", "after", "since", "fingerprint", "prefix", "digest"})


class Listed(Protocol):
    """What has a catalogue."""

    async def listing(self) -> Listing: ...

    async def changed(self, version: str) -> Listing:
        """The listing, as soon as it is another one than that of this version."""
        ...


def catalogue_route(source: Listed) -> Route:
    """GET and HEAD of /v1/catalogue."""
    listeners = Admission("requests for changes", MOST_LISTENERS)

    async def answer(request: Request) -> Response:
        asked = request.query_params
        if unknown := sorted(asked.keys() - _KNOWN):
            raise _refused(unknown[0], f"the catalogue cannot be asked for by {unknown[0][:80]!r}")
        selection = selections.parse(*(asked.getlist(name) for name in ("fingerprint", "prefix", "digest")))
        if request.method == "GET" and told.MEDIA in request.headers.get("accept", ""):
            return await _listening(source, selection, listeners, request)
        listing = await source.listing()
        etag = f'"{listing.version}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept", "X-Content-Type-Options": "nosniff"}
        if not none_match(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        body = listing.since(asked["since"], selection) if "since" in asked else None
        if body is None:
            body = listing.page(asked.get("after", ""), _limit(asked.get("limit", str(MAX_ENTRIES))), selection)
        return Response(body, headers=headers, media_type="application/json")

    return Route(PATH, answer, methods=["GET"])


def _limit(asked: str) -> int:
    limit = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) <= 9 else 0
    if not limit:
        raise _refused("limit", f"limit is a number of entries, not {asked[:80]!r}")
    return limit


def _refused(param: str, message: str) -> UsageError:
    error = UsageError(message)
    error.param = param
    return error


async def _listening(source: Listed, selection: Selection, listeners: Admission, request: Request) -> Response:
    """Each change of what is selected, for as long as somebody listens.

    Raises:
        UsageError: what the listener says to know is no version.
        RemoteError: the store fails.
        Overloaded: too many listen.
    """
    version = request.headers.get("last-event-id", "")
    if version and not is_id(version):
        raise UsageError(f"Last-Event-ID is a version of the catalogue, not {version[:80]!r}")
    await source.listing()
    caller = guard.caller(request.scope)
    listeners.enter(caller, 1, _LATER_S)
    events = tell(source, selection, version, lifecycle.of(request.app).leaving)
    return _Telling(events, lambda: listeners.leave(caller, 1))


class _Telling(StreamingResponse):
    """Events for one listener; `left` is called when nobody listens any more, whether they began or not."""

    def __init__(self, events: AsyncGenerator[bytes, None], left: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"}
        super().__init__(events, headers={**headers, "X-Content-Type-Options": "nosniff"}, media_type=told.MEDIA)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


async def tell(
    source: Listed, selection: Selection, version: str, over: asyncio.Event, silence_s: float = SILENCE_S
) -> AsyncGenerator[bytes, None]:
    """Events, until it is over: first what has changed since `version`, then each change, and a word in silence.

    A change that leaves what is selected as it was is not told; the next word says which version it made.
    """
    listing = await source.listing()
    yield told.write(listing.news(version, selection))
    known = said = listing.version
    while not over.is_set():
        try:
            later = await _unless(over, source.changed(known), silence_s)
        except PrereadError as error:
            _log.warning("who listens for changes is sent away: %s", error)
            return
        if later is not None:
            news, known = later.news(known, selection), later.version
            if news.changes or not news.version:
                yield told.write(news)
                said = known
                await _unless(over, asyncio.sleep(_TOGETHER_S), _TOGETHER_S)
        elif not over.is_set():
            yield told.SILENCE if said == known else told.write(told.Told(known))
            said = known


async def _unless(over: asyncio.Event, wanted: Awaitable[T], most_s: float) -> T | None:
    """What `wanted` gives; None where it is over before, or takes longer."""
    waiting, ending = asyncio.ensure_future(wanted), asyncio.ensure_future(over.wait())
    try:
        await asyncio.wait((waiting, ending), timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        for task in (waiting, ending):
            task.cancel()
