import numpy as np
import pytest

from preread.codec.profile import Single
from preread.fit.bases import basis, predictors


def sample(noise: float) -> tuple[Single, list[Single]]:
    """Embeddings, and vectors of two groups that follow from four of their directions, with noise."""
    source = np.random.default_rng(3)
    embeddings = source.normal(size=(4000, 24)).astype(np.float32)
    hidden = embeddings @ source.normal(size=(24, 4)).astype(np.float32)
    vectors = [
        (hidden @ source.normal(size=(4, width)) + noise * source.normal(size=(4000, width))).astype(np.float32)
        for width in (16, 10)
    ]
    return embeddings, vectors


def explained(x: Single, guess: Single) -> float:
    return 1 - float(np.square(x - guess).sum() / np.square(x - x.mean(axis=0)).sum())


def test_prediction_finds_the_directions_that_matter() -> None:
    embeddings, vectors = sample(0.1)
    mean, features, predictions = predictors(embeddings, vectors, 4)
    assert features.shape == (24, 4)
    for x, prediction in zip(vectors, predictions, strict=True):
        assert explained(x, (embeddings - mean) @ features @ prediction) > 0.95


def test_prediction_of_chance_predicts_nothing_new() -> None:
    source = np.random.default_rng(4)
    embeddings, (x, _) = sample(0.1)
    other = source.normal(size=embeddings.shape).astype(np.float32)
    mean, features, (prediction, _) = predictors(embeddings, [source.permutation(x), x[:, :2]], 4)
    assert explained(source.permutation(x), (other - mean) @ features @ prediction) < 0.02


def test_rank_is_at_most_what_embeddings_have() -> None:
    embeddings, vectors = sample(0.1)
    assert predictors(embeddings, vectors, 100)[1].shape == (24, 24)


@pytest.mark.parametrize("weighted", [False, True])
def test_basis_gives_back_what_it_took_apart(weighted: bool) -> None:
    source = np.random.default_rng(5)
    mixing = source.normal(size=(12, 12)) * np.geomspace(4, 0.1, 12)[:, None]
    residual = (source.normal(size=(5000, 12)) @ mixing).astype(np.float32)
    weight = (np.geomspace(0.01, 100, 12) if weighted else np.ones(12)).astype(np.float32)
    group = basis(np.zeros(12, np.float32), weight, np.zeros((3, 12), np.float32), residual)
    assert (np.diff(group.deviations) <= 0).all()
    rows = group.basis.vectors(12)
    gram = (rows * weight) @ rows.T
    assert np.abs(gram - np.eye(12)).max() < 0.02  # orthonormal in the weighted space, but for int8
    coefficients = residual @ (rows * np.sqrt(weight)).T
    assert np.allclose(coefficients.std(axis=0), group.deviations, rtol=0.05, atol=0.02 * group.deviations[0])
