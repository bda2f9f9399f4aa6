"""Waiting for one's turn: one request at a time has the engine, or the thread that reads prompts.

Who comes next is decided in `preread.plan.admission`.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from preread.errors import Overloaded
from preread.plan.admission import Rounds

MOST_WAIT_S: Final = 600.0
"""Who waited so long is told to come again: no client waits longer, and its answer would be made for nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class Visitor:
    """A request that wants a turn.

    Attributes:
        caller: whose it is.
        make_way: called when it has its turn, but others should have theirs; it may stay all the same.
    """

    caller: str = ""
    make_way: Callable[[], None] = lambda: None


ANYBODY: Final = Visitor()


class Turns:
    """Something that one request has at a time."""

    def __init__(self) -> None:
        self._rounds = Rounds()
        self._granted: dict[int, asyncio.Future[None]] = {}
        self._visitors: dict[int, Visitor] = {}
        self._count = 0
        self._holder: Visitor | None = None
        self._since_s = 0.0
        self._making_way: asyncio.TimerHandle | None = None
        self._usual_s = 1.0

    @property
    def wait_s(self) -> float:
        """How long who comes now will wait, as a guess."""
        return self._usual_s * (len(self._rounds) + (self._holder is not None))

    @asynccontextmanager
    async def turn(self, visitor: Visitor) -> AsyncGenerator[None, None]:
        """Wait for it, and have it while the context is open.

        Raises:
            Overloaded: that took too long.
        """
        await self._wait(visitor)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, visitor: Visitor) -> None:
        if self._holder is None:
            self._give(visitor)
            return
        self._count += 1
        ticket, granted = self._count, asyncio.get_running_loop().create_future()
        self._granted[ticket], self._visitors[ticket] = granted, visitor
        self._rounds.join(visitor.caller, ticket)
        self._press()
        try:
            async with asyncio.timeout(MOST_WAIT_S):
                await granted
        except BaseException as error:
            if ticket in self._granted:
                self._rounds.leave(visitor.caller, ticket)
                del self._granted[ticket], self._visitors[ticket]
                self._press()
            elif granted.done() and not granted.cancelled():
                self._pass_on()  # it came just then
            if isinstance(error, TimeoutError):
                message = f"this request has waited for {MOST_WAIT_S:g} s, and others are still before it"
                raise Overloaded(message, retry_after_s=MOST_WAIT_S) from None
            raise

    def _give(self, visitor: Visitor) -> None:
        self._holder, self._since_s = visitor, asyncio.get_running_loop().time()
        self._press()

    def _pass_on(self) -> None:
        last = self._holder
        self._usual_s += (asyncio.get_running_loop().time() - self._since_s - self._usual_s) / 8
        self._holder = None
        self._press()
        last_caller = None if last is None else last.caller
        while (following := self._rounds.take(last_caller)) is not None:
            _, ticket = following
            granted, visitor = self._granted.pop(ticket), self._visitors.pop(ticket)
            if not granted.cancelled():  # who gave up a moment ago has not left yet
                self._give(visitor)
                granted.set_result(None)
                return

    def _press(self) -> None:
        """Have the holder make way in time if it crowds others out, now that who waits has changed."""
        if self._making_way is not None:
            self._making_way.cancel()
            self._making_way = None
        if self._holder is not None and (keeps_s := self._rounds.keeps_s(self._holder.caller)) < math.inf:
            loop = asyncio.get_running_loop()
            self._making_way = loop.call_at(self._since_s + keeps_s, self._holder.make_way)
