"""K and V between vLLM's order and llama.cpp's: what goes there comes back, and what float16 cannot hold is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from preread.errors import EngineError
from preread.vllm.rows import from_cache, to_cache

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from([2, 4, 8]))


@given(shape=SHAPES, near=st.booleans(), data=st.data())
def test_what_is_published_and_loaded_again_is_the_same(
    shape: tuple[int, int, int], near: bool, data: st.DataObject
) -> None:
    rows = arrays.arrays(np.float16, shape, elements=st.floats(-65504, 65504, width=16))
    k, v = data.draw(rows), data.draw(rows)
    there = to_cache(k.astype(np.float32), v.astype(np.float32), near=near)
    assert there[0].shape == (shape[1], shape[0], shape[2])
    back = from_cache(*there, near=near)
    assert np.array_equal(back[0], k) and np.array_equal(back[1], v)


def test_the_two_halves_of_a_pair_come_to_lie_side_by_side() -> None:
    k = np.arange(6, dtype=np.float32).reshape(1, 1, 6)  # pairs are (0, 3), (1, 4), (2, 5)
    assert to_cache(k, k, near=True)[0].tolist() == [[[0, 3, 1, 4, 2, 5]]]
    assert to_cache(k, k, near=False)[0].tolist() == [[[0, 1, 2, 3, 4, 5]]]
    assert to_cache(k, k, near=True)[1].tolist() == [[[0, 1, 2, 3, 4, 5]]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 65520.0, -1e9])
def test_what_float16_cannot_hold_is_refused(bad: float) -> None:
    good, odd = np.zeros((2, 1, 2), np.float32), np.zeros((2, 1, 2), np.float32)
    odd[1, 0, 1] = bad
    for rows in ((odd, good), (good, odd)):
        with pytest.raises(EngineError, match="not finite in float16"):
            to_cache(*rows, near=True)
