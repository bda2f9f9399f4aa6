import numpy as np
import pytest

from preread.align.similarity import cka, kernel, similarities
from preread.errors import UsageError


def rows(seed: int, tokens: int, channels: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(tokens, channels)).astype(np.float32)


def test_a_rotated_scaled_and_shifted_copy_is_the_same() -> None:
    x = rows(0, 200, 12)
    turn = np.linalg.qr(rows(1, 12, 12))[0]
    assert cka(kernel(x), kernel(3 * x @ turn + 5)) == pytest.approx(1, abs=1e-4)


def test_unrelated_layers_have_nothing_in_common_however_wide_they_are() -> None:
    # The plain estimate says 0.7 here: with more channels than tokens, any two kernels look alike.
    assert abs(cka(kernel(rows(0, 100, 300)), kernel(rows(1, 100, 300)))) < 0.05


def test_a_part_in_common_lies_between() -> None:
    x, noise = rows(0, 400, 16), rows(1, 400, 16)
    assert 0.3 < cka(kernel(x), kernel(x + noise)) < 0.9


def test_every_layer_with_every_layer() -> None:
    small, large = [rows(n, 60, 8) for n in range(3)], [rows(n, 60, 8) for n in range(1, 5)]
    found = similarities(small, large)
    assert found.shape == (3, 4)
    # layers of one seed are the same layer
    assert [int(at) for at in found[1:].argmax(axis=1)] == [0, 1]
    assert found[1, 0] == pytest.approx(1)
    assert found[0].max() < 0.5


def test_a_constant_layer_is_like_no_other() -> None:
    assert cka(kernel(np.ones((8, 3), np.float32)), kernel(rows(0, 8, 3))) == 0


@pytest.mark.parametrize("bad", [rows(0, 3, 2), np.full((9, 2), np.nan, np.float32)], ids=["few", "nan"])
def test_what_cannot_be_compared_is_refused(bad: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    with pytest.raises(UsageError):
        kernel(bad)
