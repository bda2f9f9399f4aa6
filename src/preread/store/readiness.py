"""`GET /readyz`: whether a server should be sent requests now, and why not. Load balancers and Kubernetes ask for it.

It is not `/health`, which says that the server lives: one that is about to stop, or whose store is away, is not ready,
and nobody should start it again for that.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preread import lifecycle
from preread.errors import PrereadError
from preread.store.routes import error_response

PATH: Final = "/readyz"

PATIENCE_S: Final = 0.5
"""An answer waits so long for what has to be looked at: whoever asks waits for 1 s, by Kubernetes' default."""

_AGAIN_S: Final = 5.0
_LATE_S: Final = 10.0

Problem = Callable[[], Awaitable[str | None]]
"""Says why requests could not be answered now; None: they could."""


async def nothing() -> str | None:
    """No problem, ever."""
    return None


def ready_route(problem: Problem = nothing) -> Route:
    """`GET /readyz`: 200, or 503 with the reason: the server is stopping, or there is a `problem`."""
    return Route(PATH, partial(_ready, problem), methods=["GET"])


async def _ready(problem: Problem, request: Request) -> Response:
    stopping = lifecycle.of(request.app).stopping.is_set()
    why = "this server is stopping: ask another" if stopping else await problem()
    if why is not None:
        return error_response(503, why, "not_ready")
    return JSONResponse({"status": "ready"}, headers={"Cache-Control": "no-store"})


class Watched:
    """What may be slow to look at, looked at no more often than is worth it, and only when somebody asks.

    Args:
        look: raises PrereadError where something is wrong.
        name: of what is looked at, for messages.
    """

    def __init__(self, look: Callable[[], Awaitable[None]], name: str) -> None:
        self._look, self._name = look, name
        self._problem: str | None = None
        self._seen_s, self._since_s = -math.inf, -math.inf
        self._looking: asyncio.Task[None] | None = None

    async def problem(self) -> str | None:
        """What was wrong when it was looked at last, which is a few seconds ago at most unless it does not answer."""
        if self._looking is None and time.monotonic() - self._seen_s >= _AGAIN_S:
            self._since_s = time.monotonic()
            self._looking = asyncio.create_task(self._see())
        if self._looking is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._looking), PATIENCE_S)
        late_s = time.monotonic() - self._since_s
        if self._looking is not None and (late_s >= _LATE_S or self._seen_s == -math.inf):
            return f"{self._name} has not answered for {late_s:.0f} s"
        return self._problem

    async def aclose(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _see(self) -> None:
        try:
            await self._look()
            self._problem = None
        except PrereadError as error:
            self._problem = str(error)
        finally:
            self._seen_s, self._looking = time.monotonic(), None
