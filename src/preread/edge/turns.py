"""Waiting for one's turn: one request at a time has a thread that reads prompts.

Who comes next is decided in `preread.plan.admission`.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from preread.errors import Overloaded
from preread.plan.admission import Rounds

MOST_WAIT_S: Final = 600.0
"""Who waited so long is told to come again: no client waits longer, and its answer would be made for nobody."""


class Turns:
    """Something that one request has at a time."""

    def __init__(self) -> None:
        self._rounds = Rounds()
        self._granted: dict[int, asyncio.Future[None]] = {}
        self._count = 0
        self._holder: str | None = None

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncGenerator[None, None]:
        """Wait for it, and have it while the context is open.

        Raises:
            Overloaded: that took too long.
        """
        await self._wait(caller)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, caller: str) -> None:
        if self._holder is None:
            self._holder = caller
            return
        self._count += 1
        ticket, granted = self._count, asyncio.get_running_loop().create_future()
        self._granted[ticket] = granted
        self._rounds.join(caller, ticket)
        try:
            async with asyncio.timeout(MOST_WAIT_S):
                await granted
        except BaseException as error:
            if ticket in self._granted:
                self._rounds.leave(caller, ticket)
                del self._granted[ticket]
            elif granted.done() and not granted.cancelled():
                self._pass_on()  # it came just then
            if isinstance(error, TimeoutError):
                message = f"this request has waited for {MOST_WAIT_S:g} s, and others are still before it"
                raise Overloaded(message, retry_after_s=MOST_WAIT_S) from None
            raise

    def _pass_on(self) -> None:
        last, self._holder = self._holder, None
        while (following := self._rounds.take(last)) is not None:
            caller, ticket = following
            granted = self._granted.pop(ticket)
            if not granted.cancelled():  # who gave up a moment ago has not left yet
                self._holder = caller
                granted.set_result(None)
                return
