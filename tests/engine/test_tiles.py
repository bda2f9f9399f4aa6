"""Where cells must lie, and what a batch must be, so that rows have prefill's bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine.tiles import SPAN, TILE, is_batched, is_tiled, next_tiled, passed_over
from preread.values import Span


def beside(start: int, count: int) -> np.ndarray:
    return np.arange(start, start + count)


def test_cells_side_by_side_are_right_where_no_sum_is_torn_apart() -> None:
    assert is_tiled(beside(0, 1000), 0) and is_tiled(beside(3 * SPAN, 1000), 0)
    assert is_tiled(beside(TILE, SPAN - TILE), 0), "all are in one span"
    assert not is_tiled(beside(TILE, SPAN - TILE + 1), 0), "the last one is in the next"
    assert not is_tiled(beside(37, 10), 0), "they begin within a tile"
    assert is_tiled(beside(100, 20), 36) and not is_tiled(beside(100, 20), 37)
    assert is_tiled(np.array([], np.int64), 5)


def test_cells_that_are_not_known_or_in_another_order_are_not_right() -> None:
    assert not is_tiled(np.array([0, 1, -3]), 0)
    tiles = [beside(TILE * at, TILE) for at in (0, 1, 3)]
    assert is_tiled(np.concatenate(tiles), 0), "others may lie between tiles"
    assert not is_tiled(np.concatenate([tiles[1], tiles[0]]), 0)
    assert not is_tiled(np.concatenate([beside(0, 10), beside(10 + TILE, 10)]), 0), "a tile is torn apart"


@given(st.integers(0, 5000), st.integers(0, 40), st.integers(1, SPAN))
def test_the_next_place_is_the_first_that_is_right(cell: int, chunk: int, count: int) -> None:
    position = chunk * TILE
    found = next_tiled(cell, position, position + count)
    assert cell <= found < cell + SPAN and is_tiled(beside(found, count), position)
    assert not any(is_tiled(beside(at, count), position) for at in range(cell, found))


def test_cells_of_others_are_passed_over() -> None:
    free = np.concatenate([beside(150, 20), beside(300, 44)])
    assert passed_over(free, 0, 100) == 20 + (320 - 300)
    assert passed_over(beside(192, 64), 0, 64) == 0
    assert passed_over(np.concatenate([beside(128, 64), beside(500, 5)]), 0, 64) == 0, "it fits in what is free first"
    assert passed_over(beside(150, 64), 37, 60, last=164) == 15, "right behind the token before"


@pytest.mark.parametrize(
    ("part", "beside", "tokens", "same"),
    [
        ((0, 150), 0, 150, True),  # as prefill's own batch
        ((0, 150), 3, 150, False),  # with others behind, its last two are no longer the batch's rest
        ((0, 86), 0, 150, False),  # two of them are left over, which prefill computes with others
        ((84, 150), 0, 150, True),
        ((0, 64), 9, 150, True),
        ((0, 32), 0, 150, False),  # a small batch
        ((2, 98), 0, 150, False),
        ((0, 512), 0, 530, True),
        ((512, 530), 0, 530, True),  # prefill's last batch is a small one
        ((448, 530), 0, 530, False),
        ((512, 1000), 0, 1000, True),
        ((0, 512), 0, 512, True),
    ],
)
def test_a_token_is_computed_among_four_as_in_prefill(
    part: tuple[int, int], beside: int, tokens: int, same: bool
) -> None:
    assert is_batched(Span(*part), beside, tokens) == same
