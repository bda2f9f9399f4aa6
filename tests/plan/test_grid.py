"""The counts that the plan asks for are those of the cells, whatever happened to them."""

import random
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.events import Cell
from preread.plan.grid import Grid


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32))
def test_counts_are_those_of_the_cells(chunks: int, groups: int, seed: int) -> None:
    draw = random.Random(seed)
    sizes = [[draw.randrange(1, 100) for _ in range(groups)] for _ in range(chunks)]
    grid, at = Grid(sizes), {(c, g): "away" for c in range(chunks) for g in range(groups)}

    def those(*places: str, chunk: int | None = None) -> Iterator[Cell]:
        return (cell for cell in at if at[cell] in places and chunk in (None, cell[0]))

    def size(cells: Iterator[Cell]) -> int:
        return sum(sizes[chunk][group] for chunk, group in cells)

    for _ in range(4 * chunks * groups):
        cell = draw.choice(sorted(at))
        if draw.random() < 0.1 and not grid.injecting(cell[0]):
            grid.compute(cell[0])
            at |= dict.fromkeys(grid.cells(cell[0]), "placed")
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


def _whole(at: dict[Cell, str], chunk: int) -> bool:
    return all(place == "placed" for cell, place in at.items() if cell[0] == chunk)
