"""When each of what may be done with the rest of a context would be over: how many chunks, or layers, to compute.

Pure: a grid, what computing takes and what links will bring go in, seconds come out. It must not know what was decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Final

from preread.plan.cost import Coming
from preread.plan.grid import Grid

_MANY: Final = 32
"""So many chunks divide the work well enough, where they need not be computed in order."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What is being computed, as if it was done: chunks of `span`, in the first `groups` groups of layers."""

    span: range
    groups: int


@dataclass(frozen=True)
class Outlook:
    """What may be expected at a moment. What is asked for twice is found once.

    Attributes:
        left: chunks that are to be computed or fetched.
        grid: what is in place.
        spent: and what will be, `busy_s` from now, when the engine is free.
        prompt_s: what the prompt takes then.
        coming: what links bring.
        asked_bytes: of each group, of cells that are under way.
        chunk_s: what computing each chunk takes.
        shares: of that, what the first so many groups take; empty: no chunk is computed but through all of them.
        breaks: of each chunk, whether first layers can be computed from it on; as of the task.
        in_order: chunks can be computed only one by one from the start.
    """

    left: Sequence[int]
    grid: Grid
    spent: Spent
    busy_s: float
    prompt_s: float
    coming: Coming
    asked_bytes: Sequence[int]
    chunk_s: Sequence[float]
    shares: Sequence[float]
    breaks: Sequence[bool]
    in_order: bool

    def of(self, left: Sequence[int]) -> "Outlook":
        """The same of these chunks."""
        return self if left == self.left else replace(self, left=left)

    @cached_property
    def wait_s(self) -> float:
        """Seconds until the first token if all that is left is fetched."""
        each_left, each_away = self._each_bytes
        return self._finish_s(self.busy_s, sum(each_left), sum(each_away), self._spoilt)

    @cached_property
    def least_s(self) -> float:
        """No first token is sooner than this if anything of what is left is computed; cheap to find.

        Of an engine that is free: what is being computed would be for nothing.
        """
        first_s = self.chunk_s[self.left[0]] if self.left else 0.0  # no chunk is computed without the first one
        partly_s = (share * whole_s for share, whole_s in zip(self.shares, self._through_s, strict=False) if whole_s)
        return self.busy_s + min([first_s, *partly_s]) + self.prompt_s

    @property
    def all_s(self) -> float:
        """Seconds until the first token if all that is left is computed."""
        return self.busy_s + sum(self._each_s()) + self.prompt_s

    @cached_property
    def chunks(self) -> list[float]:
        """Seconds until the first token if the first 0, 1, … chunks that are left are computed, the others fetched."""
        each_left, each_away = self._each_bytes
        left_bytes, away_bytes, spoilt = sum(each_left), sum(each_away), self._spoilt
        computed_s, finishes = self.busy_s, [self.wait_s]
        for chunk, compute_s, its_left, its_away in zip(self.left, self._each_s(), each_left, each_away, strict=True):
            computed_s, left_bytes, away_bytes = computed_s + compute_s, left_bytes - its_left, away_bytes - its_away
            spoilt -= chunk in self.grid.spoilt
            finishes.append(self._finish_s(computed_s, left_bytes, away_bytes, spoilt))
        return finishes

    @cached_property
    def layers(self) -> list[float]:
        """Seconds until the first token if the first 1, 2, … groups of all that is left are computed.

        The others are fetched. Not all groups are computed: that would be to compute every chunk. Infinite, where what
        is computed would not be what prefill computes; none, where that is not worth a look.
        """
        if not self.shares or (not self.in_order and len(self.left) > _MANY):
            return []
        grid, groups = self.grid, self.grid.groups
        left_bytes, away_bytes, spoilt = (
            [*each] for each in (grid.group_left_bytes, grid.group_away_bytes, grid.group_spoilt)
        )
        for chunk in self.spent.span:
            for cell in [*grid.cells(chunk)][: self.spent.groups]:
                left_bytes[cell[1]] -= 0 if grid.is_in_place(cell) else grid.bytes(cell)
                away_bytes[cell[1]] -= grid.bytes(cell) if cell in grid.away else 0
        finishes = []
        for count, (whole_s, begins) in enumerate(zip(self._through_s, self._begins(), strict=True), 1):
            if not begins:
                finishes.append(float("inf"))
                continue
            compute_s = self.busy_s + (self.shares[count - 1] * whole_s if whole_s else 0.0)
            rest = sum(left_bytes[count:groups]), sum(away_bytes[count:groups]), sum(spoilt[count:groups])
            # Of what is under way some is given up: it may be just what has come.
            partly_bytes = max(0, self.coming.partly_bytes - sum(self.asked_bytes[:count]))
            coming = replace(self.coming, partly_bytes=partly_bytes)
            finishes.append(self._finish_s(compute_s, *rest, coming))
        return finishes

    def _begins(self) -> list[bool]:
        """Whether computing the first 1, 2, … groups of what is left can begin where it would."""
        grid, chunks = self.grid, len(self.chunk_s)
        firsts = [chunks] * grid.groups  # chunks of which so many groups are in place, and no more
        for chunk in reversed(self.left):
            firsts[grid.lowest[chunk]] = chunk
        lacking = accumulate(firsts[:-1], min)
        return [chunk == chunks or self._may_begin(chunk, count) for count, chunk in enumerate(lacking, 1)]

    def _may_begin(self, chunk: int, groups: int) -> bool:
        """Whether the first so many groups can be computed of what is left, of which this chunk is the first.

        What was computed so before is gone on from anywhere, in order; else sums have to begin anew.
        """
        start, spent = chunk, self.spent
        if self.in_order:
            start = self.grid.with_chunk(chunk, groups).start
            begun, depth = (spent.span.stop, spent.groups) if start in spent.span else (start, self.grid.depth)
            if begun and groups <= depth < self.grid.groups:
                return True
        start = spent.span.stop if start in spent.span else start
        return start == len(self.chunk_s) or not self.breaks or self.breaks[start]

    def _finish_s(
        self, computed_s: float, left_bytes: int, away_bytes: int, spoilt: int, coming: Coming | None = None
    ) -> float:
        """Seconds until the first token, of which so many are for computing, with these bytes still to be placed."""
        load_s = float("inf") if spoilt else (coming or self.coming).seconds(left_bytes, away_bytes)
        # Computing takes every processor that there is, and so does decoding: neither is for nothing.
        busy_s = computed_s + self.prompt_s + left_bytes / self.coming.decode_bytes_s
        return max(busy_s, load_s + self.prompt_s / self.grid.groups)

    @property
    def _spoilt(self) -> int:
        """Chunks that are left of which something can only be computed."""
        return len(self.grid.spoilt.intersection(self.left)) if self.grid.spoilt else 0

    @cached_property
    def _each_bytes(self) -> tuple[list[int], list[int]]:
        """Of each chunk that is left, bytes that are still to be placed, and to come."""
        grid, less = self.grid, self._less()
        each_left, each_away = [grid.left_bytes[c] for c in self.left], [grid.away_bytes[c] for c in self.left]
        for number, chunk in enumerate(self.left) if less else ():
            less_left, less_away = less.get(chunk, (0, 0))
            each_left[number] -= less_left
            each_away[number] -= less_away
        return each_left, each_away

    def _less(self) -> dict[int, tuple[int, int]]:
        """Bytes of each chunk that need not be placed, and not come, once what is being computed is."""
        grid, less = self.grid, dict[int, tuple[int, int]]()
        for chunk in self.spent.span:
            cells = [*grid.cells(chunk)][: self.spent.groups]
            left_bytes = sum(grid.bytes(cell) for cell in cells if not grid.is_in_place(cell))
            less[chunk] = left_bytes, sum(grid.bytes(cell) for cell in cells if cell in grid.away)
        return less

    def _each_s(self) -> list[float]:
        """Seconds to compute each chunk that is left through all layers, behind those before it."""
        if not self.in_order:
            return [self.chunk_s[chunk] for chunk in self.left]
        partly = self.spent.span and self.spent.groups < self.grid.groups  # from its end nobody goes on with all
        out, last = [], -1 if partly else self.spent.span.stop - 1
        for chunk in self.left:
            start = max(0 if partly else self.grid.with_chunk(chunk).start, last + 1)
            out.append(sum(self.chunk_s[start : chunk + 1]))
            last = chunk
        return out

    @cached_property
    def _through_s(self) -> list[float]:
        """Seconds to compute, through all layers, what has to be for the first 1, 2, … groups to be in place."""
        grid, last, each_s = self.grid, [-1] * self.grid.groups, [0.0] * self.grid.groups
        for chunk in self.left:
            lowest = grid.lowest[chunk]
            if chunk in self.spent.span:
                lowest = max(lowest, self.spent.groups)
            if lowest < grid.groups:
                last[lowest] = max(last[lowest], chunk)
                each_s[lowest] += self.chunk_s[chunk]
        found, most, sum_s = [], -1, 0.0
        for count in range(1, grid.groups):
            most, sum_s = max(most, last[count - 1]), sum_s + each_s[count - 1]
            if self.in_order and most >= 0:
                start = grid.with_chunk(most, count).start
                if self.spent.span and self.spent.groups >= count:
                    start = max(start, self.spent.span.stop)
                found.append(sum(self.chunk_s[start : most + 1]))
            else:
                found.append(sum_s)
        return found
