"""Which contexts have cells of the engine's KV cache, and which make room.

Pure: what is in the cache, how it was used and what it would cost to get it back. A context is worth keeping by how
often it was asked for lately times the seconds that getting it back would take, for each of its cells (GreedyDual-Size
with frequencies; Cherkasova, 1998). So of a working set a little larger than the memory, the part that is used most
stays, instead of each making room for the next. How a context was used is remembered while it is away. Pinned ones make
room last, and a context that a request computes with stays in any case.

What nobody has asked for by name makes room first: guests, and conversations that are kept. What is fetched again later
is to follow from names alone, not from what was said. Of conversations, those of whoever has most cells kept go first.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

HALF_LIFE_S: Final = 600.0
"""A use counts half after so long."""

_LEAST_WORTH: Final = 1e-12
_REMEMBERED: Final = 256
"""Contexts that left the cache, of which is known how they were used."""


@dataclass(slots=True)
class _Extent:
    """What one context has: cells, how it was used until `at_s`, what getting it back costs, who computes with it.

    `guest`: nobody has asked for it by name. `ready`: all of it is there. `new`: and nobody has computed with it yet.
    `owner`: whose conversation it is; None: it is a context.
    """

    cells: int
    cost_s: float
    guest: bool
    uses: float = 0.0
    at_s: float = 0.0
    users: int = 0
    ready: bool = False
    new: bool = False
    pinned: bool = False
    owner: str | None = None


@dataclass(slots=True)
class Residency:
    """The cells of one cache, by what has them. Keys are contexts, and conversations; requests claim cells besides.

    There may be `most` of them at a time.
    """

    cells: int
    most: int = 128
    _extents: dict[str, _Extent] = field(default_factory=dict)
    _claimed: int = 0
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)  # uses, and until when

    @property
    def free_cells(self) -> int:
        """Cells that nothing has."""
        return self.cells - self._claimed - sum(extent.cells for extent in self._extents.values())

    @property
    def claimed_cells(self) -> int:
        """Cells that requests have of their own."""
        return self._claimed

    def __contains__(self, key: str) -> bool:
        return key in self._extents

    def is_ready(self, key: str) -> bool:
        """Whether all of a context is there."""
        return key in self._extents and self._extents[key].ready

    def in_use(self, key: str) -> bool:
        """Whether a request computes with it."""
        return self._extents[key].users > 0

    @property
    def ready_keys(self) -> Collection[str]:
        """The contexts of which all is there."""
        return [key for key, extent in self._extents.items() if extent.ready]

    @property
    def new_keys(self) -> Collection[str]:
        """Those of them that nobody has computed with yet."""
        return [key for key, extent in self._extents.items() if extent.new]

    @property
    def sizes(self) -> Mapping[str, int]:
        """Cells of each context."""
        return {key: extent.cells for key, extent in self._extents.items()}

    def enter(self, key: str, cells: int, cost_s: float, *, guest: bool, pinned: bool = False) -> None:
        """Give free cells to a context that has none, and that is going to be loaded or computed."""
        uses, at_s = (0.0, 0.0) if guest else self._left.pop(key, (0.0, 0.0))
        self._extents[key] = _Extent(cells, cost_s, guest, uses, at_s, pinned=pinned)

    def complete(self, key: str) -> None:
        """All of a context is there."""
        extent = self._extents[key]
        extent.ready, extent.new = True, not extent.users

    def keep(self, key: str, cells: int, cost_s: float, now_s: float, owner: str) -> None:
        """Free cells are a conversation's from now on, which counts as a guest that was asked for once."""
        self._extents[key] = _Extent(cells, cost_s, guest=True, uses=1, at_s=now_s, ready=True, owner=owner)

    def leave(self, key: str) -> None:
        """Take a context's cells back, if it has any."""
        extent = self._extents.pop(key, None)
        if extent is not None and extent.uses and not extent.guest:
            self._left[key] = (extent.uses, extent.at_s)
            if len(self._left) > _REMEMBERED:
                del self._left[next(iter(self._left))]

    def used(self, key: str, now_s: float, *, guest: bool) -> None:
        """Somebody asks about a context. Of guests nothing is counted: what they begin with is private."""
        extent = self._extents.get(key)
        if extent is not None and not guest:
            extent.uses, extent.at_s = self._uses(extent, now_s) + 1, max(now_s, extent.at_s)
            extent.guest = False

    def join(self, key: str) -> None:
        """A request computes with a context from now on."""
        extent = self._extents[key]
        extent.users, extent.new = extent.users + 1, False

    def part(self, key: str) -> None:
        """A request computes with a context no more."""
        if key in self._extents:
            self._extents[key].users -= 1

    def claim(self, cells: int) -> None:
        """A request takes free cells for itself; with a negative number, it gives some back."""
        self._claimed += cells

    def victims(
        self,
        cells: int,
        now_s: float,
        spared: Collection[str] = (),
        *,
        guest: bool = False,
        entering: bool = False,
    ) -> list[str] | None:
        """Whom to take cells from so that so many are free, the least worth first; None: that is not to be had.

        Args:
            cells: that are to be free afterwards.
            now_s: the time.
            spared: contexts that stay.
            guest: only other guests make room.
            entering: it is for one more context.
        """
        lacking, over = cells - self.free_cells, entering and len(self._extents) >= self.most
        if lacking <= 0 and not over:
            return []
        movable = [
            key
            for key, extent in self._extents.items()
            if extent.ready and not extent.users and key not in spared and (extent.guest or not guest)
        ]
        chosen, kept = list[str](), self._kept_cells()
        for key in sorted(movable, key=lambda key: self._order(key, now_s, kept)):
            if lacking <= 0 and not over:
                break
            chosen.append(key)
            lacking, over = lacking - self._extents[key].cells, False
        return chosen if lacking <= 0 and not over else None

    def _order(self, key: str, now_s: float, kept: Mapping[str, int]) -> tuple[bool, bool, float, str]:
        extent = self._extents[key]
        share = 1 if extent.owner is None else kept[extent.owner]
        worth = max(_LEAST_WORTH, self._uses(extent, now_s)) * extent.cost_s / max(1, extent.cells) / share
        return not extent.guest, extent.pinned, worth, key

    def _kept_cells(self) -> Mapping[str, int]:
        """How many cells the conversations of each caller have."""
        kept = Counter[str]()
        for extent in self._extents.values():
            if extent.owner is not None:
                kept[extent.owner] += extent.cells
        return kept

    def _uses(self, extent: _Extent, now_s: float) -> float:
        return extent.uses * float(0.5 ** (max(0.0, now_s - extent.at_s) / HALF_LIFE_S))
