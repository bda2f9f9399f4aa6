import numpy as np
import pytest

from preread.align.ridge import Moments, fit

Single = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def samples(count: int, noise: float, seed: int) -> tuple[Single, Single]:
    """Targets that follow from three directions of the features, shifted, with noise."""
    fixed, source = np.random.default_rng(7), np.random.default_rng(seed)
    inward, outward, shift = fixed.normal(size=(20, 3)), fixed.normal(size=(3, 8)), fixed.normal(size=8)
    x = (source.normal(size=(count, 20)) + 2).astype(np.float32)
    y = (x @ inward @ outward + shift + noise * source.normal(size=(count, 8))).astype(np.float32)
    return x, y


def moments(*parts: tuple[Single, Single]) -> Moments:
    found = Moments(20, 8)
    for x, y in parts:
        found.add(x, y)
    return found


def r2(y: Single, guess: Single) -> float:
    return 1 - float(np.square(y - guess).sum() / np.square(y - y.mean(axis=0)).sum())


def test_what_follows_linearly_is_found_and_its_rank_suffices() -> None:
    x, y = samples(2000, 0.01, 1)
    two, three, more = fit(moments((x, y)), np.ones(8), 1e-4, (2, 3, 99))
    fresh, truth = samples(500, 0.01, 2)
    assert (two.rank, three.rank, more.rank) == (2, 3, 8)
    assert r2(truth, three(fresh)) > 0.999
    assert r2(truth, two(fresh)) < 0.99
    assert r2(truth, more(fresh)) == pytest.approx(r2(truth, three(fresh)), abs=1e-3)


def test_it_is_the_ridge_solution_where_the_rank_is_full() -> None:
    x, y = samples(40, 1.0, 1)
    (mapping,) = fit(moments((x, y)), np.arange(1, 9.0), 0.5, (8,))
    centred = x - x.mean(axis=0)
    gram = centred.T @ centred / 40
    closed = np.linalg.solve(gram + 0.5 * np.diag(np.diag(gram)), centred.T @ (y - y.mean(axis=0)) / 40)
    np.testing.assert_allclose(mapping.inward @ mapping.outward, closed, atol=1e-3)


@pytest.mark.parametrize("targets", [8, 20, 32])
def test_a_low_rank_keeps_what_explains_most_whichever_side_is_larger(targets: int) -> None:
    x, y = samples(60, 1.0, 1)
    y = (y @ np.random.default_rng(5).normal(size=(8, targets))).astype(np.float32)
    found = Moments(20, targets)
    found.add(x, y)
    weights = np.linspace(1, 5, targets)
    (mapping,) = fit(found, weights, 0.5, (3,))
    centred = x - x.mean(axis=0)
    gram = centred.T @ centred / 60
    regular = gram + 0.5 * np.diag(np.diag(gram))
    lower = np.linalg.cholesky(regular)
    whole = np.linalg.solve(regular, centred.T @ (y - y.mean(axis=0)) / 60)
    left = np.linalg.svd(lower.T @ whole * np.sqrt(weights))[0][:, :3]
    best = np.linalg.solve(lower.T, left @ left.T @ lower.T @ whole)
    assert mapping.rank == 3
    np.testing.assert_allclose(mapping.inward @ mapping.outward, best, atol=1e-3)


def test_of_a_low_rank_the_targets_that_weigh_more_get_more() -> None:
    x, y = samples(1000, 0.1, 1)
    light, heavy = np.ones(8), np.ones(8)
    heavy[5] = 1000
    (plain,), (biased,) = (fit(moments((x, y)), weights, 1e-4, (1,)) for weights in (light, heavy))
    error = [np.square(y - mapping(x))[:, 5].mean() for mapping in (plain, biased)]
    assert error[1] < error[0] / 2


def test_samples_add_up() -> None:
    x, y = samples(300, 0.5, 1)
    (whole,) = fit(moments((x, y)), np.ones(8), 0.1, (4,))
    (parts,) = fit(moments((x[:100], y[:100]), (x[100:], y[100:])), np.ones(8), 0.1, (4,))
    np.testing.assert_allclose(whole(x), parts(x), atol=1e-3)


def test_more_features_than_samples_still_give_a_fit() -> None:
    x, y = samples(5, 0.1, 1)
    (mapping,) = fit(moments((x, y)), np.ones(8), 0.1, (8,))
    assert np.isfinite(mapping(x)).all()


def test_a_feature_with_less_ridge_is_leant_on() -> None:
    x, y = samples(300, 0.1, 1)
    twice, width = np.concatenate([x, x], axis=1), x.shape[1]
    sums = Moments(2 * width, 8)
    sums.add(twice, y)
    (mapping,) = fit(sums, np.ones(8), np.repeat([1e-4, 1e-1], width), (8,))
    whole = np.abs(mapping.inward @ mapping.outward).sum(axis=1)
    assert whole[width:].sum() < 0.01 * whole[:width].sum()


def test_features_far_from_zero_lose_nothing() -> None:
    x, y = samples(2000, 0.01, 1)
    far = (x + np.float32(3000), y - np.float32(500))
    (mapping,) = fit(moments(far), np.ones(8), 1e-4, (8,))
    fresh, truth = samples(500, 0.01, 2)
    assert r2(truth, mapping(fresh + np.float32(3000)) + 500) > 0.99
