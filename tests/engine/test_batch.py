"""When a batch is filled up to the rows from which llama.cpp attends by tiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine.batch import TILED_ROWS, filler_rows


@pytest.mark.parametrize(
    ("context_tokens", "helps", "does_not"), [(300, 63, 56), (1000, 56, 40), (2000, 48, 39), (4000, 48, 36)]
)
def test_batches_are_filled_up_where_that_was_measured_to_be_faster(
    context_tokens: int, helps: int, does_not: int
) -> None:
    for threads in (1, 2):
        assert filler_rows(helps, context_tokens, threads) == TILED_ROWS - helps
        assert filler_rows(does_not, context_tokens, threads) == 0


@given(st.integers(1, 600), st.integers(0, 100_000), st.integers(1, 64))
def test_filler_never_goes_beyond_the_tile_nor_where_it_does_not_help(rows: int, context: int, threads: int) -> None:
    count = filler_rows(rows, context, threads)
    assert count in (0, TILED_ROWS - rows)
    if rows <= TILED_ROWS // 2 or rows >= TILED_ROWS or threads > 2 or context < 100:
        assert count == 0


@given(st.integers(1, 62), st.integers(0, 100_000))
def test_what_is_filled_up_stays_so_with_more_rows_and_behind_longer_contexts(rows: int, context: int) -> None:
    if filler_rows(rows, context, 2):
        assert filler_rows(rows + 1, context, 2) and filler_rows(rows, context + 1000, 2)
