"""Each layer's K and V are weighed by what the errors that coding makes do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from preread.fit import layer_factors as weighing
from preread.fit.layer_factors import AMPLIFIED, MOST, factors
from preread.values import KVBlock, Span

costs = arrays(np.float64, (2, 3), elements=st.floats(1, 100))
few = st.floats(-1e-2, 1e9, allow_subnormal=False)


@given(costs, costs)
def test_costs_get_the_measured_ones_proportions_within_bounds(measured: np.ndarray, expected: np.ndarray) -> None:
    found = factors(measured, expected)
    assert found.shape == (2, 3) and (1 / MOST - 1e-9 <= found).all() and (found <= MOST + 1e-9).all()
    # where a layer's errors do more than they are expected to, its weight grows more
    order = np.argsort((measured + weighing.SHARED * np.median(measured)).ravel() / expected.ravel(), kind="stable")
    assert (np.diff(found.ravel()[order]) >= -1e-6 * found.max()).all()


def test_equal_costs_leave_weights_in_proportion() -> None:
    expected = np.array([[1.0, 2.0], [0.5, 1.0]])
    assert factors(7 * expected, expected) == pytest.approx(np.ones((2, 2)), rel=0.2)


@given(arrays(np.float64, (2, 3), elements=few), arrays(np.float64, (2, 3), elements=st.floats(0, 1e9)))
def test_nothing_that_was_measured_or_expected_is_no_reason_to_fail(measured: np.ndarray, expected: np.ndarray) -> None:
    found = factors(measured, expected)
    assert np.isfinite(found).all() and (found > 0).all()


def test_errors_of_k_are_those_before_rotation_and_sinks_have_none() -> None:
    source = np.random.default_rng(0)
    k, v = (source.standard_normal((2, 1, 9, 4)).astype(np.float16) for _ in range(2))
    exact = KVBlock(Span(0, 9), Span(0, 2), k, v)
    turned = replace(exact, k=(k * np.float16(2)), v=v + np.float16(1))
    still = np.zeros((2, 2), np.float32)  # angles of no rotation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighing, "unrotate", lambda rows, tokens, ropes: rows.astype(np.float32))
        of_k, of_v = weighing._errors(exact, turned, still, 1)  # type: ignore[arg-type]
    assert of_k.shape == of_v.shape == (2, 1, 8, 4)
    assert np.allclose(of_k, k[:, :, 1:], atol=1e-3) and np.allclose(of_v, 1, atol=1e-2)


def test_errors_of_one_half_are_made_so_many_times_as_large() -> None:
    two = np.full((1, 1, 2, 4), 2, np.float16)
    exact = KVBlock(Span(0, 2), Span(0, 1), two, two)
    of_k, of_v = weighing._amplified(exact, replace(exact, k=two + np.float16(0.5), v=two - np.float16(0.5)))
    assert (of_k.k == np.float16(2 + AMPLIFIED / 2)).all() and (of_k.v == two).all()
    assert (of_v.v == np.float16(2 - AMPLIFIED / 2)).all() and (of_v.k == two).all()
