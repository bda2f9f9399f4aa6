"""Where cells must lie so that sums over them have local prefill's order, and so its very bits; and in what batches.

Attention, llama.cpp's and ours, sums over the cache in tiles of 64 cells, one after the other; ours brings the sums of
eight tiles, a span, together before those of the next (`attention.c`). A context that is prefilled in an empty cache
has its position p in cell p. Elsewhere its rows have the same bits if all that they see lies in tiles just as it does
there, and the tiles in spans, in the same order: what others have in a tile is masked, and adds nothing.

Products with weights are computed for four tokens at a time, those left at a batch's end one by one, and in small
batches in other ways (ggml's repacked types). So a token has prefill's bits only where it is among four in both.

Pure. It must not know whose cells they are.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from preread.plan.legality import SPAN_TOKENS as SPAN
from preread.values import Span

TILE: Final = 64

_BATCH: Final = 512
"""Prefill goes in batches of so many tokens."""
_LEAST: Final = 64
"""Smaller batches may be computed in other ways."""
TOGETHER: Final = 4
"""So many tokens are multiplied with quantised weights at a time."""

Cells = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def is_tiled(cells: Cells, first: int) -> bool:
    """Whether the cells of positions from `first` on lie as in an empty cache; not where it is not known of one."""
    if len(cells) == 0:
        return True
    if (cells < 0).any():
        return False
    at, positions = cells.astype(np.int64), first + np.arange(len(cells))
    moved = at - positions
    same_tile, same_span = (np.diff(positions // size) == 0 for size in (TILE, SPAN))
    tiles = not (moved % TILE).any() and not np.diff(moved)[same_tile].any() and bool((np.diff(at) > 0).all())
    return tiles and np.array_equal(np.diff(at // SPAN) == 0, same_span)


def next_tiled(cell: int, position: int, stop: int) -> int:
    """The first cell from `cell` on where positions from `position` to `stop` may lie side by side."""
    across = position // SPAN != (stop - 1) // SPAN
    size = SPAN if across else TILE
    found = cell + (position - cell) % size
    if not across and found % SPAN + stop - position > SPAN:
        found = cell + (position % TILE - cell) % SPAN  # in the first tile of the next span
    return found


def passed_over(free: Cells, position: int, stop: int, last: int = -1) -> int:
    """How many of the next free cells to pass over so that these positions lie there side by side as in an empty cache.

    Args:
        free: the next ones; what lies behind them is taken to be free as well.
        position, stop: the first position, and the one behind the last.
        last: the cell of the position before; -1: there is none.
    """
    ends = [*np.flatnonzero(np.diff(free) != 1) + 1, len(free)]
    found = start = 0
    for end in map(int, ends):
        first = int(free[start])
        found = start + next_tiled(max(first, last + 1), position, stop) - first
        if found + stop - position <= end:
            return found
        start = end if end < len(free) else start
    return found


def is_batched(part: Span, beside: int, tokens: int) -> bool:
    """Whether a part of a context is computed as by prefill, in a batch that has so many other tokens behind it.

    tokens: of the context.
    """
    last = tokens // _BATCH * _BATCH  # where prefill's last batch begins, which may be a small one
    if part == Span(last, tokens) and not beside:
        return True
    if part.start % TOGETHER or len(part) + beside < _LEAST or (0 < tokens - last < _LEAST and part.stop > last):
        return False
    return len(part) % TOGETHER == 0 or (part.stop == tokens and not beside)
