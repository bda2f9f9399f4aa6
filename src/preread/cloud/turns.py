"""Whose turn it is: in the order in which they came, who is waited for before who is not, and not too many at once.

It knows who waits; it must not know what for.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from preread.cloud.events import Priority
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
    priority: Priority
    called: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """A line of those whose documents wait to be `treated`; the first `width` have their turn."""

    def __init__(self, treated: str = "published", width: int = 1) -> None:
        self._line: list[_Ticket] = []
        self._treated, self._width = treated, width

    @asynccontextmanager
    async def turn(
        self, caller: str, size_bytes: int, told: Callable[[int], None], priority: Priority = "interactive"
    ) -> AsyncGenerator[None, None]:
        """Wait for one's turn, and have it while the context is open. Who is cancelled leaves the line.

        Args:
            caller: who asks.
            size_bytes: what is kept meanwhile.
            told: how many have to end before this one begins, at once if any have, and whenever that changes.
            priority: whether somebody waits.

        Raises:
            Overloaded: too many wait, or too many of this caller.
        """
        self._check(caller, size_bytes)
        ticket = _Ticket(caller, size_bytes, told, priority)
        at = place([one.priority for one in self._line], sum(one.called.is_set() for one in self._line), priority)
        self._line.insert(at, ticket)
        try:
            if at < self._width:
                ticket.called.set()
            self._tell(at)
            await ticket.called.wait()
            yield
        finally:
            at = self._line.index(ticket)
            self._line.remove(ticket)
            self._tell(at)

    def _tell(self, start: int) -> None:
        """Tell those who wait, from this place on, how many have to end before them, and call whose turn it is."""
        for at, one in list(enumerate(self._line))[start:]:
            if not one.called.is_set():
                one.told(ahead := max(0, at - self._width + 1))
                if not ahead:
                    one.called.set()

    def _check(self, caller: str, size_bytes: int) -> None:
        of_caller, more = sum(ticket.caller == caller for ticket in self._line), self._width - 1
        if of_caller >= MOST_OF_A_CALLER + more:
            message = f"{of_caller} documents of yours wait to be {self._treated}: wait for one of them"
            raise Overloaded(message, retry_after_s=_LATER_S, by_caller=True)
        waiting_bytes = sum(ticket.size_bytes for ticket in self._line)
        if len(self._line) >= MOST + more or (self._line and waiting_bytes + size_bytes > MOST_BYTES):
            raise Overloaded(
                f"{len(self._line)} documents wait to be {self._treated}: try again later", retry_after_s=_LATER_S
            )


def place(line: Sequence[Priority], begun: int, newcomer: Priority) -> int:
    """Where a newcomer stands in a line, of which the first have `begun`: behind all who are as urgent as that."""
    if newcomer == "background":
        return len(line)
    return next((at for at, one in enumerate(line) if at >= begun and one == "background"), len(line))
