"""How far a server is on its way to its end, for whoever has to know of it. It knows events, no servers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from preread.errors import Unavailable
from preread.tasks import running


class Lifecycle:
    """The stages of a server's end, in order; none is left out, and none comes back.

    Attributes:
        stopping: it was asked to stop. It says that it is not ready, and answers what still comes.
        leaving: it listens no more. What is under way goes on; what would go on for ever ends now.
        ending: its time is over. What is still under way ends now, and says so to whoever waits for it.
    """

    def __init__(self) -> None:
        self.stopping, self.leaving, self.ending = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def within(self, message: str) -> AsyncGenerator[None, None]:
        """Have what is done while this is open end with the server's time.

        Raises:
            Unavailable: with this message, where it has not ended by itself when the server is `ending`.
        """
        bound = asyncio.timeout(None)

        async def cut() -> None:
            await self.ending.wait()
            bound.reschedule(asyncio.get_running_loop().time())

        try:
            async with bound, running(cut()):
                yield
        except TimeoutError:
            if bound.expired():
                raise Unavailable(message) from None
            raise


def of(app: Starlette) -> Lifecycle:
    """The stages of the server that serves an application; where no server said them, they never come."""
    found: Lifecycle | None = getattr(app.state, "lifecycle", None)
    if found is None:
        found = app.state.lifecycle = Lifecycle()
    return found
