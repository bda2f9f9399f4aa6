"""K and V are weighed against each other by what the errors that coding makes do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.fit import halves
from preread.fit.halves import balance
from preread.values import KVBlock, Span

costs = st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)).map(np.array)


@given(costs, costs)
def test_expected_costs_get_the_measured_ones_proportion(measured: np.ndarray, expected: np.ndarray) -> None:
    k, v = balance(measured, expected)
    assert k * v == pytest.approx(1) and 1 / 8 <= v <= 8
    if 1 / 8 < v < 8:
        assert (expected[1] * v) / (expected[0] * k) == pytest.approx(measured[1] / measured[0], rel=1e-6)


def test_nothing_that_was_measured_or_expected_is_no_reason_to_fail() -> None:
    for measured, expected in ((np.zeros(2), np.ones(2)), (np.ones(2), np.zeros(2)), (np.zeros(2), np.zeros(2))):
        assert np.isfinite(balance(measured, expected)).all()


def test_errors_of_k_are_those_before_rotation_and_sinks_have_none() -> None:
    source = np.random.default_rng(0)
    k, v = (source.standard_normal((2, 1, 9, 4)).astype(np.float16) for _ in range(2))
    exact = KVBlock(Span(0, 9), Span(0, 2), k, v)
    turned = replace(exact, k=(k * np.float16(2)), v=v + np.float16(1))
    still = np.zeros((2, 2), np.float32)  # angles of no rotation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halves, "unrotate", lambda rows, tokens, ropes: rows.astype(np.float32))
        of_k, of_v = halves._errors(exact, turned, still, 1)  # type: ignore[arg-type]
    assert of_k.shape == of_v.shape == (2, 1, 8, 4)
    assert np.allclose(of_k, k[:, :, 1:], atol=1e-3) and np.allclose(of_v, 1, atol=1e-2)
