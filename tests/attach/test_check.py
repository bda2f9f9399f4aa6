"""When two computations are taken for the same: by their rows, and by what is likely next."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preread.attach.check import MOST_LOSSY, apart, nats_apart
from preread.values import KVBlock, Span


def _block(seed: int, noise: float = 0.0) -> KVBlock:
    source = np.random.default_rng(seed)
    k, v = (source.standard_normal((2, 1, 16, 8)) for _ in "kv")
    other = np.random.default_rng(seed + 1)
    k, v = (half + noise * other.standard_normal(half.shape) for half in (k, v))
    return KVBlock(Span(0, 16), Span(0, 2), k.astype(np.float16), v.astype(np.float16))


@given(st.integers(0, 1000), st.floats(0.01, 0.25))
def test_rows_that_differ_by_noise_are_the_same_and_others_are_not(seed: int, noise: float) -> None:
    assert all(abs(share / noise - 1) < 0.35 for share in apart(_block(seed), _block(seed, noise)))
    assert apart(_block(seed), _block(seed)) == (0, 0)
    assert min(apart(_block(seed), _block(seed + 7))) > MOST_LOSSY


def test_rows_that_are_not_finite_are_no_ones() -> None:
    block = _block(1)
    bad = KVBlock(block.tokens, block.layers, np.full_like(block.k, np.inf), block.v)
    assert apart(block, bad) == (math.inf, 0)


@given(st.dictionaries(st.integers(0, 20), st.floats(-3.9, 0), min_size=1), st.floats(0, 1))
def test_what_is_likely_next_differs_by_its_largest_change(told: dict[int, float], shift: float) -> None:
    assert nats_apart(told, told) == 0
    shifted = {token: nats - shift for token, nats in told.items()}
    assert math.isclose(nats_apart(told, shifted), shift, abs_tol=1e-9)


def test_a_likely_token_that_one_side_lacks_is_a_difference() -> None:
    assert nats_apart({1: -0.1}, {2: -0.1}) == math.inf
    assert nats_apart({}, {}) == math.inf
    assert nats_apart({1: -0.1, 2: -9.0}, {1: -0.1, 3: -9.0}) == 0
