from itertools import combinations_with_replacement

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preread.align.path import monotone, window


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    # whole numbers, so that equally good maps occur
    values = draw(st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns))
    return np.array(values, np.float64).reshape(rows, columns)


@given(matrices())
def test_no_other_monotone_map_is_better_or_as_good_and_earlier(
    similarity: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    rows, columns = similarity.shape
    every = combinations_with_replacement(range(columns), rows)  # all non-decreasing maps

    def total(path: tuple[int, ...]) -> float:
        return float(sum(similarity[row, at] for row, at in enumerate(path)))

    found = monotone(similarity)
    best = max(map(total, combinations_with_replacement(range(columns), rows)))
    assert list(found) == sorted(found)
    assert total(found) == best
    assert found[-1] == min(path[-1] for path in every if total(path) == best)


def test_alike_models_are_matched_layer_by_layer() -> None:
    assert monotone(np.eye(4)) == (0, 1, 2, 3)


def test_noise_does_not_lead_backwards() -> None:
    similarity = np.array([[0.9, 0.1, 0.2], [0.1, 0.2, 0.9], [0.8, 0.3, 0.2], [0.0, 0.1, 0.9]])
    assert monotone(similarity) == (0, 2, 2, 2)


@given(st.integers(1, 30), st.integers(1, 12), st.data())
def test_a_window_is_as_wide_as_it_can_be_and_holds_the_partner(layers: int, width: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, layers - 1))
    span = window((at,), 0, width, layers)
    assert len(span) == min(width, layers)
    assert 0 <= span.start <= at < span.stop <= layers
