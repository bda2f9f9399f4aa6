"""The counts that the plan asks for are those of the cells, whatever happened to them."""

import random
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.events import Cell
from preread.plan.grid import Grid


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]))
def test_counts_are_those_of_the_cells(chunks: int, groups: int, seed: int, needless: float) -> None:
    draw = random.Random(seed)
    sizes = [[0 if draw.random() < needless else draw.randrange(1, 100) for _ in range(groups)] for _ in range(chunks)]
    cells = [(c, g) for c in range(chunks) for g in range(groups)]
    grid, at = Grid(sizes), {(c, g): "away" if sizes[c][g] else "placed" for c, g in cells}

    def those(*places: str, chunk: int | None = None) -> Iterator[Cell]:
        return (cell for cell in at if at[cell] in places and chunk in (None, cell[0]))

    def size(cells: Iterator[Cell]) -> int:
        return sum(sizes[chunk][group] for chunk, group in cells)

    for _ in range(4 * chunks * groups):
        cell = draw.choice(sorted(at))
        if draw.random() < 0.1 and not grid.injecting(cell[0]):
            depth = draw.randrange(1, groups + 1)
            grid.compute(cell[0], None if depth == groups else depth)
            at |= dict.fromkeys([*grid.cells(cell[0])][:depth], "placed")
        elif at[cell] in ("away", "injecting") and draw.random() < 0.2:
            grid.spoil(cell)
            at[cell] = "spoilt"
        elif at[cell] == "away":
            grid.arrived(cell)
            at[cell] = "here"
        elif at[cell] == "here":
            grid.inject(cell)
            at[cell] = "injecting"
        elif at[cell] == "injecting":
            grid.placed(cell)
            at[cell] = "placed"
        unplaced = {group for _, group in those("away", "here", "injecting", "spoilt")}
        assert grid.groups_in_place == min(unplaced, default=groups)
        assert grid.here == set(those("here")) and grid.busy == len([*those("injecting")])
        assert grid.spoilt == {chunk for chunk, _ in those("spoilt")}
        assert grid.away == {cell for cell in at if at[cell] == "away"}
        assert grid.left() == sorted({chunk for chunk, _ in at} - {c for c in range(chunks) if _whole(at, c)})
        for c in range(chunks):
            assert grid.away_bytes[c] == size(those("away", chunk=c))
            assert grid.left_bytes[c] == size(those("away", "here", "injecting", "spoilt", chunk=c))
            assert grid.injecting(c) == len([*those("injecting", chunk=c)])
            lacking = [group for group in range(groups) if at[c, group] != "placed"]
            assert grid.lowest[c] == min(lacking, default=groups)
            for g in range(groups):
                assert grid.is_in_place((c, g)) == (g not in lacking)
                assert grid.is_injected_below(c, g) == any(group < g for _, group in those("injecting", chunk=c))
        for g in range(groups):
            of = [cell for cell in at if cell[1] == g]
            assert grid.group_away_bytes[g] == size(c for c in of if at[c] == "away")
            assert grid.group_left_bytes[g] == size(c for c in of if at[c] != "placed")
            assert grid.group_spoilt[g] == sum(at[c] == "spoilt" for c in of)


def test_of_chunks_that_are_computed_in_order_all_that_were_not_are_computed_with_one() -> None:
    grid, free = Grid([[1]] * 4, in_order=True), Grid([[1]] * 4)
    assert [*grid.with_chunk(2)] == [0, 1, 2] and [*free.with_chunk(2)] == [2]
    for computed, needed in ((0, [1, 2]), (2, [1, 2]), (1, [2])):
        grid.compute(computed)
        assert [*grid.with_chunk(2)] == needed


def test_chunks_go_on_in_order_in_as_many_layers_as_those_before_them() -> None:
    grid = Grid([[1, 1]] * 4, in_order=True)
    for chunk, groups in ((0, 1), (1, 1)):
        grid.compute(chunk, groups)
    assert [*grid.with_chunk(3, 1)] == [2, 3] and [*grid.with_chunk(3)] == [0, 1, 2, 3]
    grid.compute(0)
    assert [*grid.with_chunk(3)] == [1, 2, 3], "it begins anew"


def _whole(at: dict[Cell, str], chunk: int) -> bool:
    return all(place == "placed" for cell, place in at.items() if cell[0] == chunk)
