"""A guide in closed form: what lessons agree on is found, and what single ones ask for is not followed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align.steepest import Single, Sums, lesson, nothing, solved
from preread.errors import UsageError

LAYERS, HEADS, DIM, READ, TOKENS = 3, 4, 5, 6, 40
CHANNELS = HEADS * DIM


def summed(some: list[Sums]) -> Sums:
    whole = nothing(LAYERS, CHANNELS, READ)
    for one in some:
        whole += one
    return whole


def asking(wished: Single, bias: Single, noise: float, count: int, seed: int = 0) -> Sums:
    """What lessons ask for that would have K and V changed by `wished` (L, R, C) of what is read, and by `bias`."""
    source = np.random.default_rng(seed)
    some = []
    for _ in range(count):
        read = source.normal(size=(TOKENS, READ)).astype(np.float32)
        gradients = -(read @ wished + bias[:, None]).transpose(0, 2, 1)
        gradients = gradients + noise * source.normal(size=gradients.shape)
        some.append(lesson(gradients.astype(np.float32), read))
    return summed(some)


def wishes(seed: int = 1) -> tuple[Single, Single]:
    source = np.random.default_rng(seed)
    wished, bias = source.normal(size=(LAYERS, READ, CHANNELS)), source.normal(size=(LAYERS, CHANNELS))
    return wished.astype(np.float32), bias.astype(np.float32)


def test_sums_are_what_they_say_and_come_in_any_order() -> None:
    source = np.random.default_rng(2)
    gradients = source.normal(size=(LAYERS, CHANNELS, TOKENS)).astype(np.float32)
    read = source.normal(size=(TOKENS, READ)).astype(np.float32)
    one = lesson(gradients, read)
    for layer, channel in np.ndindex(LAYERS, CHANNELS):
        expected = sum(gradients[layer, channel, token] * np.append(read[token], 1) for token in range(TOKENS))
        np.testing.assert_allclose(one.asked[layer, channel], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.squares, (gradients**2).sum(axis=2), rtol=1e-5)
    np.testing.assert_allclose(one.apart, (one.asked[..., :-1] ** 2).sum(axis=2), rtol=1e-5)
    other = lesson(-2 * gradients[..., ::-1], read)
    for a, b in ((one + other, other + one), (nothing(LAYERS, CHANNELS, READ) + one, one)):
        np.testing.assert_array_equal(a.asked, b.asked)
        np.testing.assert_array_equal(a.apart, b.apart)
        assert a.tokens == b.tokens


def test_what_all_lessons_ask_for_is_found() -> None:
    wished, bias = wishes()
    added, its_bias, gates = solved(asking(wished, bias, 1.0, 60), HEADS)
    cosines = (added * wished).sum(axis=1) / np.linalg.norm(added, axis=1) / np.linalg.norm(wished, axis=1)
    np.testing.assert_allclose(np.corrcoef(its_bias.ravel(), bias.ravel())[0, 1], 1, atol=0.05)
    assert cosines.min() > 0.95 and gates.min() > 0.9 and gates.max() <= 1
    assert added.dtype == its_bias.dtype == gates.dtype == np.float32


def test_what_only_single_lessons_ask_for_is_not_followed() -> None:
    wished, bias = wishes()
    _, _, gates = solved(asking(0 * wished, 0 * bias, 1.0, 60), HEADS)
    assert gates.mean() < 0.1 and (gates == 0).any()
    only = np.zeros_like(wished)
    only[1, :, :DIM] = wished[1, :, :DIM]  # one head of one layer
    _, _, gates = solved(asking(only, 0 * bias, 1.0, 60), HEADS)
    assert gates[1, 0] > 0.9 and np.delete(gates.ravel(), HEADS).max() < 0.5


def test_what_costs_much_changes_less_and_the_whole_by_one_unit() -> None:
    wished, bias = wishes()
    wished[0] *= 100
    added, its_bias, _ = solved(asking(wished, bias, 0.1, 20), HEADS)
    per_layer = np.sqrt((added**2).sum(axis=1)).mean(axis=1)
    assert per_layer[0] < 1.5 * per_layer[1]  # by steepest descent it would be a hundred times as much
    assert (added**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4) == (its_bias**2).mean()


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([1e-6, 1.0, 1e4]))
def test_the_step_goes_down(seed: int, count: int, scale: float) -> None:
    wished, bias = wishes(seed)
    sums = asking(np.float32(scale) * wished, bias, scale, count, seed)
    added, its_bias, gates = solved(sums, HEADS)
    step = (added * np.repeat(gates, DIM, axis=1)[:, None]).transpose(0, 2, 1)
    assert np.isfinite(step).all() and (gates >= 0).all() and (gates <= 1).all()
    assert (sums.asked[..., :-1] * step).sum() <= 0 and (sums.asked[..., -1] * its_bias).sum() <= 0


def test_nothing_asked_is_nothing_added() -> None:
    for part in solved(nothing(LAYERS, CHANNELS, READ), HEADS):
        assert not part.any()
    with pytest.raises(UsageError, match="20 channels are not those of 3 heads"):
        solved(nothing(LAYERS, CHANNELS, READ), 3)
