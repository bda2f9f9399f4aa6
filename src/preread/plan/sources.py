"""The sources of one load: what each was asked for, what may be expected of them, and whom to ask for a cell.

Pure: times are arguments. It must not know what could be computed instead, or in which order cells should come.
"""

import itertools
from collections.abc import Iterator
from typing import Final

from preread.plan.events import Cell, Fault
from preread.plan.grid import Grid
from preread.plan.seen import Seen
from preread.plan.task import Task

_OVERDUE_S: Final = 0.25
_OVERDUE: Final = 3.0


class Sources:
    """All sources of a load, in the order in which they are to be asked.

    Attributes:
        each: what is known of one.
        asked_bytes: of each group, of all cells that are under way.
    """

    def __init__(self, task: Task, grid: Grid, at_s: float, local_s: float) -> None:
        self._first, self._grid, self._now_s = task.first, grid, at_s
        self.asked_bytes = [0] * grid.groups
        self.each = [Seen.begin(index, source, at_s, local_s) for index, source in enumerate(task.sources)]
        self._asked_first = {index for row in task.first for index in row} | {len(task.sources) - 1}
        self._due: set[int] | None = None

    # What happens

    def progress(self, source: int, seen_bytes: int, at_s: float) -> None:
        """So many bytes have come from a source by now."""
        seen = self.each[source]
        seen.flow.advance(seen_bytes, at_s, bool(seen.asked))

    def arrived(self, cell: Cell, source: int, at_s: float) -> bool:
        """A cell has come. False: it had been given up."""
        seen = self.each[source]
        if cell not in seen.asked:
            return False
        self._forget(seen, cell)
        seen.breaker, seen.flow.heard_s, seen.late_s = seen.breaker.succeeded(), at_s, None
        return True

    def failed(self, cell: Cell, source: int, fault: Fault, at_s: float) -> bool:
        """A cell has not come. True: nobody is going to bring it."""
        seen = self.each[source]
        if cell in seen.asked:
            seen.breaker = seen.breaker.failed(seen.asked[cell], at_s)
            seen.refused[cell] = seen.refused.get(cell, 0) + (2 if fault == "cell" else 1)
            self._forget(seen, cell)
        seen.lost = seen.lost or fault == "source" or seen.breaker.tripped
        return all(cell not in seen.asked and (seen.lost or seen.refuses(cell)) for seen in self._having(cell))

    def give_up(self, cell: Cell) -> Iterator[int]:
        """A cell need not come any more: the sources that were asked for it."""
        for seen in self.each:
            if cell in seen.asked:
                self._forget(seen, cell)
                yield seen.index

    def pass_time(self, at_s: float) -> None:
        """Time has passed: some may be silent, or late where the last one can stand in."""
        self._now_s = at_s
        for seen in self.each:
            seen.listen(at_s)
        for seen in self.each[:-1] if self._first else ():
            seen.hurry(at_s)

    def look(self) -> None:
        """Which of them something is still to come from has to be found out again, when somebody asks."""
        self._due = None

    # What may be expected

    def expected(self) -> list[Seen]:
        """Those that something is still to come from."""
        if self._due is None:
            self._due = self._wanted()
        return [seen for seen in self._usable() if seen.index in self._due]

    def _usable(self) -> list[Seen]:
        """Sources that may be asked. What is under way from others is used when it comes, but not waited for.

        For those that are late the last one stands in (a hedged request, as gRPC and Cassandra have it).
        """
        return [seen for seen in self.each if self._may_be_asked(seen)]

    def _may_be_asked(self, seen: Seen) -> bool:
        return seen.usable(self._now_s) and not (seen.late and self.each[-1].usable(self._now_s))

    def _wanted(self) -> set[int]:
        if not self._first:
            away = self._grid.away
            able = (seen for seen in self.each if not seen.refused or any(not seen.refuses(cell) for cell in away))
            return {seen.index for seen in able}
        usable, wanted = {seen.index for seen in self._usable()} & self._asked_first, set[int]()
        for cell in self._grid.away:
            if wanted == usable:
                break
            having = (seen.index for seen in self._having(cell) if seen.index in usable and not seen.refuses(cell))
            wanted |= {*itertools.islice(having, 1)}
        return wanted

    # Whom to ask

    @property
    def owed_bytes(self) -> int:
        """Of all cells that are waited for."""
        return sum(seen.owed_bytes for seen in self._usable())

    def may_ask(self) -> bool:
        """Whether there is a cell to ask for, and somebody to ask."""
        due = (each for seen in self.each if not seen.late for each in seen.due.items())
        return not self._grid.away <= {cell for cell, due_s in due if self._now_s < due_s} and self.has_room()

    def has_room(self, first_bytes: float | None = None) -> bool:
        """Whether somebody should be asked for one more; first_bytes: of what is needed sooner, if anything is."""
        return any(self._room(seen, first_bytes) for seen in self._usable())

    def source_for(self, cell: Cell, first_bytes: float | None) -> int | None:
        """Who should be asked for a cell: somebody with room, and a second one only where the first is overdue.

        first_bytes: of what is needed sooner, if anything is.
        """
        if self._awaited(cell):
            return None
        for seen in self._having(cell):
            if cell in seen.asked or seen.refuses(cell) or not self._may_be_asked(seen):
                continue
            if self._room(seen, first_bytes):
                return seen.index
            if self._first:
                return None  # it is worth waiting for: the last one would do the same work again
        return None

    def ask(self, cell: Cell, source: int) -> None:
        """A source is asked for a cell."""
        seen = self.each[source]
        if not seen.asked:
            seen.flow.asked(self._now_s)
        seen.asked[cell], seen.breaker, seen.ever = self._now_s, seen.breaker.asked(), True
        seen.owed_bytes += self._grid.bytes(cell)
        self.asked_bytes[cell[1]] += self._grid.bytes(cell)
        seen.due[cell] = self._now_s + _OVERDUE_S + _OVERDUE * self._expected_s(seen)

    def _expected_s(self, seen: Seen) -> float:
        """Until what was asked of a source should have come: what another would have brought by then is overdue."""
        last = self.each[-1]
        if self._first and seen is not last and last.flow.bytes_s:
            # It may have to get the cells itself, from the last one, over the link that others use at the same time.
            owed_bytes = sum(one.owed_bytes for one in self.each)
            return seen.flow.rtt_s + last.flow.rtt_s + owed_bytes / last.flow.bytes_s
        rate = max((usable.flow.bytes_s for usable in self._usable()), default=0.0)
        return seen.flow.rtt_s + (seen.owed_bytes / rate if rate else 0.0)

    def _room(self, seen: Seen, first_bytes: float | None = None) -> bool:
        if len(seen.asked) >= seen.source.most_requests:
            return False
        window_bytes = seen.flow.window_bytes(self._grid.mean_bytes, self._now_s, first_bytes)
        return not seen.asked or seen.owed_bytes - seen.partly_bytes < window_bytes

    def _awaited(self, cell: Cell) -> bool:
        """Whether a cell was asked for and is not overdue."""
        return any(self._now_s < seen.due.get(cell, 0.0) for seen in self.each if not seen.late)

    def _having(self, cell: Cell) -> list[Seen]:
        """Who has a cell, or can get it, in the order in which they are to be asked."""
        last = len(self.each) - 1
        chosen = [self._first[cell[0]][cell[1]], last] if self._first else range(last + 1)
        return [self.each[index] for index in dict.fromkeys(chosen)]

    def _forget(self, seen: Seen, cell: Cell) -> None:
        del seen.asked[cell], seen.due[cell]
        seen.owed_bytes -= self._grid.bytes(cell)
        self.asked_bytes[cell[1]] -= self._grid.bytes(cell)
        seen.whole_bytes = min(seen.whole_bytes + self._grid.bytes(cell), seen.flow.seen_bytes)
