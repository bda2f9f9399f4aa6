"""The routes of a page: the page itself, what is in it as it changes, its style sheet and its script.

The page is served to everybody who may speak to the server at all, as browsers cannot send a key with it. Where there
are keys it shows nothing then: what is in it is served only to who has one, as the API is.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from preread import lifecycle
from preread.errors import PrereadError
from preread.page import render
from preread.page.render import Kind
from preread.page.values import Section, Shown
from preread.plan.admission import Admission
from preread.store import guard
from preread.store.routes import error_response

Look = Callable[[str], Awaitable[Shown]]
"""What to show now to this caller."""

FILES: Final = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
OPEN: Final = frozenset({"/", *(f"/page/{name}" for name in FILES)})
"""Paths that are served without a key."""

MOST_WATCHERS: Final = 32
_LATER_S: Final = 5.0
_SILENCE_S: Final = 15.0
_HEADERS: Final = {
    # Nothing from elsewhere, nothing inline, in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NOW: Final = {**_HEADERS, "Cache-Control": "no-store"}


def page_routes(kind: Kind, look: Look, *, keys: bool) -> list[Route]:
    """Routes of a server's page.

    Args:
        kind: which page.
        look: gives what is to be shown.
        keys: whether callers need a key. `OPEN` must be let in without one.
    """
    watchers = Admission("pages of this server", MOST_WATCHERS)
    return [
        Route("/", partial(_page, kind, None if keys else look), methods=["GET"]),
        Route("/page/state", partial(_state, look), methods=["GET"]),
        Route("/page/events", partial(_events, look, watchers), methods=["GET"]),
        Route("/page/{name}", _file, methods=["GET"]),
    ]


async def _page(kind: Kind, look: Look | None, request: Request) -> Response:
    shown = None if look is None else (await look(guard.caller(request.scope))).sections
    page = await asyncio.to_thread(render.page, kind, shown)
    return Response(page, headers=_NOW, media_type="text/html; charset=utf-8")


async def _state(look: Look, request: Request) -> Response:
    """All sections, as they are now."""
    shown = await look(guard.caller(request.scope))
    return JSONResponse(await _html(shown.sections), headers=_NOW)


async def _events(look: Look, watchers: Admission, request: Request) -> Response:
    """All sections, then those that change, when they do, for as long as somebody looks.

    Raises:
        Overloaded: too many do.
    """
    caller = guard.caller(request.scope)
    watchers.enter(caller, 1, _LATER_S)

    async def told() -> AsyncGenerator[bytes, None]:
        try:
            async for event in _changes(look, caller, lifecycle.of(request.app).leaving.is_set):
                yield event
        finally:
            watchers.leave(caller, 1)

    headers = {**_NOW, "X-Accel-Buffering": "no"}
    return StreamingResponse(told(), headers=headers, media_type="text/event-stream; charset=utf-8")


async def _changes(look: Look, caller: str, over: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """Server-sent events, each of the HTML of the sections that differ from what was sent before, until it is over."""
    before: dict[str, Section] = {}
    silent_s = 0.0
    while not over():
        try:
            shown = await look(caller)
        except PrereadError:
            return  # the page asks again, and is told why
        changed = {name: it for name, it in shown.sections.items() if before.get(name) != it}
        if changed:
            before |= changed
            yield b"data: " + msgspec.json.encode(await _html(changed)) + b"\n\n"
            silent_s = 0.0
        elif silent_s >= _SILENCE_S:
            yield b": nothing new\n\n"
            silent_s = 0.0
        await asyncio.sleep(shown.pace_s)
        silent_s += shown.pace_s


async def _html(sections: Mapping[str, Section]) -> dict[str, str]:
    """Made beside the event loop, which has answers to send."""
    return await asyncio.to_thread(lambda: {name: render.section(name, it) for name, it in sections.items()})


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    media = FILES.get(name)
    if media is None:
        return error_response(404, f"there is no file {name[:80]!r} of the page", "not_found")
    data = await asyncio.to_thread((Path(__file__).parent / "static" / name).read_bytes)
    return Response(data, headers={**_HEADERS, "Cache-Control": "no-cache"}, media_type=media)
