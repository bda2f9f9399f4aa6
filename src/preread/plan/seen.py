"""One source in one load: what it was asked for, what came of it, and whether it is worth asking.

Pure: times are arguments. It must not know what else could be done instead.
"""

from dataclasses import dataclass, field
from typing import Final

from preread.plan.events import Cell
from preread.plan.flow import Flow
from preread.plan.health import Breaker
from preread.plan.task import Source

_TRIES: Final = 4
"""A source is asked for a cell twice that turns out wrong, and four times where the link breaks."""

_ROUND_TRIPS: Final = 4
"""A connection, TLS and a request take so many before the first byte of an answer."""


@dataclass(slots=True)
class Seen:
    """The state of a source; what is under way, refused and owed is kept by `sources.py`.

    Attributes:
        asked: when each cell was asked for that is under way; due: when another source should be asked for it too.
        refused: how often a cell failed there; one that turned out wrong counts twice.
        owed_bytes: of cells that are under way.
        whole_bytes: of cells that arrived or were given up.
        lost: nothing more is to be had in this load.
        late_s: since when something that should have come has not, and nothing has come since; None: all is in time.
        ever: something was asked for.
    """

    index: int
    source: Source
    flow: Flow
    breaker: Breaker
    asked: dict[Cell, float] = field(default_factory=dict)
    due: dict[Cell, float] = field(default_factory=dict)
    refused: dict[Cell, int] = field(default_factory=dict)
    owed_bytes: int = 0
    whole_bytes: int = 0
    lost: bool = False
    late_s: float | None = None
    ever: bool = False

    @classmethod
    def begin(cls, index: int, source: Source, at_s: float, local_s: float) -> "Seen":
        """Nothing was asked yet. What was believed of a source does not hold once it failed again and again.

        `local_s` is what computing everything would take.
        """
        believed_bytes_s = None if source.breaker.tripped else source.bytes_s
        return cls(index, source, Flow.begin(believed_bytes_s, source.rtt_s, at_s, local_s), source.breaker)

    @property
    def late(self) -> bool:
        """Whether something should have come by now, and nothing has come since."""
        return self.late_s is not None

    @property
    def health(self) -> Breaker:
        """What the load says of it: one that is still late has failed, if nothing worse is known."""
        if self.late_s is None or self.breaker.tripped:
            return self.breaker
        return self.breaker.failed(self.late_s, self.late_s)

    @property
    def partly_bytes(self) -> int:
        """What has come of the cells that are under way."""
        return min(self.owed_bytes, max(0, self.flow.seen_bytes - self.whole_bytes))

    def refuses(self, cell: Cell) -> bool:
        """Whether a cell is not to be had here."""
        return self.refused.get(cell, 0) >= _TRIES

    def usable(self, at_s: float) -> bool:
        """Whether it may be asked."""
        return not self.lost and self.breaker.allows(at_s)

    def listen(self, at_s: float) -> None:
        """Time has passed. A source is silent when something was asked for, and then not a byte came for long.

        What was under way when it was found silent says nothing new: only what was asked for since then counts.
        """
        asked_s = min((asked_s for asked_s in self.asked.values() if asked_s >= self.breaker.failed_s), default=at_s)
        silent_s = at_s - max(asked_s, self.flow.heard_s)
        if silent_s > self.source.silence_s + _ROUND_TRIPS * self.source.rtt_s:
            self.breaker = self.breaker.silent(at_s)

    def hurry(self, at_s: float) -> None:
        """Time has passed, and another source can stand in: this one is late once something is overdue.

        That is long before it is silent.
        """
        if not self.late and any(due_s <= at_s for due_s in self.due.values()):
            self.late_s = at_s
