"""What of a context has to be in place before something is computed behind it: some layers look back a window only.

A layer with a window of W tokens looks, for the token at position p, at the rows from p - W + 1 to p. So behind a
context of N tokens nothing looks at its rows before N - W + 1 any more: they need not be fetched, and llama.cpp may
give their cells to others. But whoever goes on from a middle needs the rows before that one.

A recurrent layer has a state, which stands for all tokens that were read, and for none less: one goes on behind the
last of them, or from nothing. It cannot be taken back, and a part of it means nothing.
"""

from collections.abc import Iterable
from typing import Final

from preread.values import Span

Window = int | None
"""Tokens that a layer looks back at, the one that looks included; None: at all."""

STATE: Final = 1
"""Among the windows of a model with states: one goes on at the end, as behind a layer that looks back at nothing."""


SPAN_TOKENS: Final = 512
"""So many rows, from the start, are summed before others are added: they must not be torn apart (`engine/tiles.py`)."""

PASSED_CELLS: Final = SPAN_TOKENS + 64
"""Cells that are held, at most, so that a stretch lies where sums have their order."""


def first_seen(tokens: int, window: Window) -> int:
    """The first position of which something behind so many tokens sees the row in a layer with this window."""
    return 0 if window is None else max(0, tokens - window + 1)


def is_seen(tokens: int, chunk: Span, windows: Iterable[Window]) -> bool:
    """Whether anything behind a context of so many tokens sees a row of this chunk in layers with these windows."""
    return any(chunk.stop > first_seen(tokens, window) for window in windows)


def goes_on(at: int, tokens: int, windows: Iterable[Window]) -> bool:
    """Whether one may go on behind the first `at` tokens of `tokens` of which only what is seen behind them is kept."""
    return all(first_seen(at, window) >= first_seen(tokens, window) for window in windows)


def spare_cells(tokens: int, stretch_tokens: int, windows: Iterable[Window]) -> int:
    """Cells that stretches of a context take besides its own, while they are computed through their first layers only.

    In order, as where sequences are whole, all stretches before one stay until the last is computed: cells that become
    free between would be taken next, and lie before those that windows still look at. Some more are passed over.
    """
    of = [*windows]
    every = is_whole(of) or is_in_order(tokens, of)
    return (tokens if every else min(tokens, stretch_tokens)) + PASSED_CELLS


def begins_anew(start: int, windows: Iterable[Window]) -> bool:
    """Whether first layers can be computed from a position on, behind rows that lie in a context's own cells.

    They get cells elsewhere, and a span that is torn apart has another sum. What is whole is computed elsewhere anyhow.
    """
    return start % SPAN_TOKENS == 0 or is_whole(windows)


def is_in_order(tokens: int, windows: Iterable[Window]) -> bool:
    """Whether a chunk of such a context can be computed only behind chunks that were computed here, one by one.

    Rows that are injected, and that nothing behind the context sees, do not stay for what is computed before its end.
    """
    return any(first_seen(tokens, window) > 0 for window in windows)


def is_whole(windows: Iterable[Window]) -> bool:
    """Whether a sequence is shared whole, or not at all, and nothing is ever taken from its end.

    A context of such a model comes whole, or is computed whole: what would be computed behind its middle needs a state
    that nobody has, and sharing a stretch that was computed would put another state in the context's place.
    """
    return any(window == STATE for window in windows)
