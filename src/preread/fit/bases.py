"""From samples of KV to bases: prediction from the token, principal components of the rest. Linear algebra only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.codec.profile import Basis

Single = npt.NDArray[np.float32]

RIDGE = 0.1
"""Added to the features' covariance, as a share of its mean eigenvalue: features outnumber what a sample can tell."""


@dataclass(frozen=True, slots=True)
class Group:
    """One layer group's basis before rounding, and how its coefficients spread.

    Attributes:
        basis: as the profile keeps it.
        deviations: standard deviations of the coefficients on the sample, descending, (C,).
    """

    basis: Basis
    deviations: Single


def predictors(embeddings: Single, vectors: Sequence[Single], rank: int) -> tuple[Single, Single, list[Single]]:
    """Reduced-rank ridge regression from token embeddings to the vectors of all groups at once.

    The rank is spent where it explains most of the (weighted) variance: the regression's fitted values are projected on
    their leading directions (Izenman, 1975).

    Args:
        embeddings: normalised, (tokens, E).
        vectors: of each group, centred and weighted, (tokens, N).
        rank: R, at most E.

    Returns:
        The embeddings' mean (E,), features (E, R), and for each group a matrix (R, N).
    """
    mean = embeddings.mean(axis=0)
    centred = embeddings - mean
    gram = (centred.T @ centred).astype(np.float64) / len(centred)
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram)
    root = np.linalg.cholesky(gram)
    # In the features' own whitened space, the best rank-R approximation is a truncated SVD of the coefficients.
    whitened = [np.linalg.solve(root, (centred.T @ x).astype(np.float64) / len(x)) for x in vectors]
    energy = sum((w @ w.T for w in whitened), start=np.zeros_like(gram))
    leading = np.linalg.eigh(energy)[1][:, ::-1][:, : min(rank, len(gram))]
    features = np.linalg.solve(root.T, leading).astype(np.float32)
    return mean.astype(np.float32), features, [(leading.T @ w).astype(np.float32) for w in whitened]


def basis(mean: Single, weight: Single, prediction: Single, residual: Single) -> Group:
    """Principal components of what prediction leaves.

    Args:
        mean, weight: of the group's vectors, (N,).
        prediction: features to weighted vectors, (R, N).
        residual: weighted vectors minus their prediction, (tokens, N).
    """
    covariance = (residual.T @ residual).astype(np.float64) / len(residual)
    variances, directions = np.linalg.eigh(covariance)
    deviations = np.sqrt(np.maximum(variances[::-1], 0)).astype(np.float32)
    rounded, scales = _rounded(directions.T[::-1].astype(np.float32))
    predicted, predicted_scales = _rounded(prediction)
    return Group(Basis(mean, weight, rounded, scales, predicted, predicted_scales), deviations)


def _rounded(rows: Single) -> tuple[npt.NDArray[np.int8], Single]:
    """Rows as int8 with a scale each."""
    scales = np.maximum(np.abs(rows).max(axis=1), np.float32(1e-30)).astype(np.float32) / np.float32(127)
    return np.rint(rows / scales[:, None]).astype(np.int8), scales
