"""Where each cell of a context is, and what is left of each chunk and group: counted, so that asking is cheap."""

from collections.abc import Iterator, Sequence
from enum import Enum

from preread.plan.events import Cell


class At(Enum):
    """Where a cell is: not here, arrived, being injected, in place, or impossible to decode."""

    AWAY = 0
    HERE = 1
    INJECTING = 2
    PLACED = 3
    SPOILT = 4


class Grid:
    """The cells of a context, `sizes` [chunk][group] in bytes. Cells of no bytes are in place: nobody looks at them.

    Args:
        in_order: a chunk can be computed only behind chunks that were computed, one by one; see `legality.py`.

    Attributes:
        away: cells that would have to be fetched.
        here: cells that arrived and wait to be injected.
        left_bytes: of each chunk, of cells that are not in place.
        away_bytes: of each chunk, of cells that would have to be fetched.
        group_left_bytes, group_away_bytes: the same of each group, of all chunks.
        lowest: of each chunk, the first group that is not in place.
        computed: chunks that were computed.
        spoilt: chunks of which something can only be computed; `group_spoilt`: of each group, in how many chunks.
        beginning: so many chunks were computed, one by one; `depth`: in so many groups, the first ones.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], *, in_order: bool = False) -> None:
        self._sizes, self.groups, self._in_order = sizes, len(sizes[0]), in_order
        self._at = {(c, g): At.AWAY if size else At.PLACED for c, row in enumerate(sizes) for g, size in enumerate(row)}
        self.away, self.here = {cell for cell, at in self._at.items() if at is At.AWAY}, set[Cell]()
        self.left_bytes = [sum(row) for row in sizes]
        self.away_bytes = list(self.left_bytes)
        self.group_left_bytes = [sum(row[g] for row in sizes) for g in range(self.groups)]
        self.group_away_bytes = list(self.group_left_bytes)
        self.lowest = [0] * len(sizes)
        for chunk in range(len(sizes)):
            self._rise(chunk)
        self.computed: set[int] = set()
        self.spoilt: set[int] = set()
        self.group_spoilt = [0] * self.groups
        self.beginning, self.depth = 0, self.groups
        self._missing = [sum(row[g] > 0 for row in sizes) for g in range(self.groups)]  # of each group, not in place
        self._unplaced = [sum(size > 0 for size in row) for row in sizes]  # of each chunk
        self._injecting = [0] * len(sizes)
        self.mean_bytes = sum(self.left_bytes) / max(1, len(self.away))

    def bytes(self, cell: Cell) -> int:
        """Size of a cell."""
        return self._sizes[cell[0]][cell[1]]

    def is_in_place(self, cell: Cell) -> bool:
        """Whether nothing is to be done for a cell any more."""
        return self._at[cell] is At.PLACED

    def is_injected_below(self, chunk: int, groups: int) -> bool:
        """Whether one of the first so many cells of a chunk is being injected."""
        return any(self._at[cell] is At.INJECTING for cell in [*self.cells(chunk)][:groups])

    def left(self) -> list[int]:
        """Chunks that are not in place, in order."""
        return [chunk for chunk, cells in enumerate(self._unplaced) if cells]

    def cells(self, chunk: int) -> Iterator[Cell]:
        """Of one chunk, in layer order."""
        return ((chunk, group) for group in range(self.groups))

    def with_chunk(self, chunk: int, groups: int | None = None) -> range:
        """The chunks that have to be computed for one to be, the last of them. All before them are in place.

        groups: in the first so many groups of layers; None: in all.
        """
        deep = self.depth >= (self.groups if groups is None else groups)
        begins = min(self.beginning, chunk) if deep else 0
        return range(begins if self._in_order else chunk, chunk + 1)

    def injecting(self, chunk: int) -> int:
        """How many cells of a chunk are being injected."""
        return self._injecting[chunk]

    @property
    def busy(self) -> int:
        """How many cells are being injected."""
        return sum(self._injecting)

    @property
    def groups_in_place(self) -> int:
        """How many groups are in place, from the first on, in all chunks."""
        return next((group for group, missing in enumerate(self._missing) if missing), self.groups)

    def arrived(self, cell: Cell) -> None:
        """A cell that was away is here now."""
        self._at[cell] = At.HERE
        self.here.add(cell)
        self._no_longer_away(cell)

    def inject(self, cell: Cell) -> None:
        """A cell that is here is being injected."""
        self._at[cell] = At.INJECTING
        self.here.remove(cell)
        self._injecting[cell[0]] += 1

    def placed(self, cell: Cell) -> None:
        """It was injected."""
        self._injecting[cell[0]] -= 1
        self._place(cell)

    def spoil(self, cell: Cell) -> None:
        """It can neither be had nor be decoded."""
        self._injecting[cell[0]] -= self._at[cell] is At.INJECTING
        self._no_longer_away(cell)
        self.group_spoilt[cell[1]] += self._at[cell] is not At.SPOILT
        self._at[cell] = At.SPOILT
        self.spoilt.add(cell[0])

    def begin_anew(self) -> None:
        """The first chunk is going to be computed: nothing goes on any more behind what was, one by one."""
        self.beginning, self.depth = 0, self.groups

    def compute(self, chunk: int, groups: int | None = None) -> None:
        """The first so many groups of a chunk were computed, or all, whatever had arrived of them."""
        depth = self.groups if groups is None else groups
        if depth == self.groups:
            self.computed.add(chunk)
        if not chunk:
            self.begin_anew()
        if chunk == self.beginning:
            self.beginning, self.depth = chunk + 1, depth
        for cell in [*self.cells(chunk)][:depth]:
            if self._at[cell] is not At.PLACED:
                self.group_spoilt[cell[1]] -= self._at[cell] is At.SPOILT
                self.here.discard(cell)
                self._no_longer_away(cell)
                self._place(cell)
        if not any(self._at[cell] is At.SPOILT for cell in self.cells(chunk)):
            self.spoilt.discard(chunk)

    def _no_longer_away(self, cell: Cell) -> None:
        if cell in self.away:
            self.away.remove(cell)
            self.away_bytes[cell[0]] -= self.bytes(cell)
            self.group_away_bytes[cell[1]] -= self.bytes(cell)

    def _place(self, cell: Cell) -> None:
        self._at[cell] = At.PLACED
        self.left_bytes[cell[0]] -= self.bytes(cell)
        self.group_left_bytes[cell[1]] -= self.bytes(cell)
        self._unplaced[cell[0]] -= 1
        self._missing[cell[1]] -= 1
        self._rise(cell[0])

    def _rise(self, chunk: int) -> None:
        """Find out again what of a chunk is not in place."""
        while self.lowest[chunk] < self.groups and self._at[chunk, self.lowest[chunk]] is At.PLACED:
            self.lowest[chunk] += 1
