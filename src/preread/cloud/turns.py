"""Whose turn it is: one after the other, in the order in which they came, and not too many at once.

It knows who waits; it must not know what for.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from preread.errors import Overloaded

MOST: Final = 16
MOST_OF_A_CALLER: Final = 8
MOST_BYTES: Final = 32 * 2**20
"""Of all documents that wait, as they were sent."""

_LATER_S: Final = 30.0


@dataclass(eq=False, slots=True)
class _Ticket:
    caller: str
    size_bytes: int
    told: Callable[[int], None]
    called: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """A line of those whose documents wait to be `treated`; the first has its turn."""

    def __init__(self, treated: str = "published") -> None:
        self._line: list[_Ticket] = []
        self._treated = treated

    @asynccontextmanager
    async def turn(self, caller: str, size_bytes: int, told: Callable[[int], None]) -> AsyncGenerator[None, None]:
        """Wait for one's turn, and have it while the context is open. Who is cancelled leaves the line.

        Args:
            caller: who asks.
            size_bytes: what is kept meanwhile.
            told: how many are before this one, at once if there are any, and whenever that changes.

        Raises:
            Overloaded: too many wait, or too many of this caller.
        """
        self._check(caller, size_bytes)
        ticket = _Ticket(caller, size_bytes, told)
        self._line.append(ticket)
        try:
            if ticket is not self._line[0]:
                told(len(self._line) - 1)
                await ticket.called.wait()
            yield
        finally:
            place = self._line.index(ticket)
            self._line.remove(ticket)
            for ahead, other in list(enumerate(self._line))[place:]:
                other.told(ahead)
                if ahead == 0:
                    other.called.set()

    def _check(self, caller: str, size_bytes: int) -> None:
        of_caller = sum(ticket.caller == caller for ticket in self._line)
        if of_caller >= MOST_OF_A_CALLER:
            message = f"{of_caller} documents of yours wait to be {self._treated}: wait for one of them"
            raise Overloaded(message, retry_after_s=_LATER_S, by_caller=True)
        waiting_bytes = sum(ticket.size_bytes for ticket in self._line)
        if len(self._line) >= MOST or (self._line and waiting_bytes + size_bytes > MOST_BYTES):
            raise Overloaded(
                f"{len(self._line)} documents wait to be {self._treated}: try again later", retry_after_s=_LATER_S
            )
