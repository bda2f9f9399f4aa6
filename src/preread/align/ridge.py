"""Reduced-rank ridge regression from sums over samples: what a mapping from one model's KV to another's is made of.

The fit minimises, over matrices B of a given rank, the weighted squared error sum_t |(y_t - B^T x_t) W^(1/2)|^2 plus
|R^(1/2) D B W^(1/2)|^2 with D the features' deviations, as if each feature were scaled to unit variance, and R a ridge
for each (Mukherjee and Zhu, Reduced Rank Ridge Regression, 2011): the ridge solution, projected on the leading
directions of what it explains. Samples are only ever added up, so that they need not fit in memory together.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]


class Moments:
    """Sums over samples of features x (X of them) and targets y (Y of them), from which any fit follows.

    They are of differences from the first samples' means: channels of K lie hundreds of their deviations from zero, and
    what they vary by would be lost in the rounding of what they are.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.count = 0
        self._from: tuple[Single, Single] | None = None
        self._x, self._y = np.zeros(features), np.zeros(targets)
        self._xx, self._xy = np.zeros((features, features)), np.zeros((features, targets))
        self._yy = np.zeros(targets)

    def add(self, x: Single, y: Single) -> None:
        """Add samples: x (samples, X), y (samples, Y)."""
        if self._from is None:
            self._from = x.mean(axis=0), y.mean(axis=0)
        x, y = x - self._from[0], y - self._from[1]
        self.count += len(x)
        self._x += x.sum(axis=0, dtype=np.float64)
        self._y += y.sum(axis=0, dtype=np.float64)
        self._xx += x.T @ x
        self._xy += x.T @ y
        self._yy += np.square(y, dtype=np.float64).sum(axis=0)

    @property
    def means(self) -> tuple[Double, Double]:
        """Of x (X,) and y (Y,)."""
        assert self._from is not None, "no sample was added"
        return self._from[0] + self._x / self.count, self._from[1] + self._y / self.count

    @property
    def covariances(self) -> tuple[Double, Double, Double]:
        """Of x with x (X, X), of x with y (X, Y), and the variances of y (Y,)."""
        x, y = self._x / self.count, self._y / self.count
        xx = self._xx / self.count - np.outer(x, x)
        return xx, self._xy / self.count - np.outer(x, y), self._yy / self.count - np.square(y)


@dataclass(frozen=True, slots=True)
class Linear:
    """y = mean_y + (x - mean_x) @ inward @ outward.

    Attributes:
        mean_x: (X,); mean_y: (Y,).
        inward: (X, R); outward: (R, Y).
    """

    mean_x: Single
    mean_y: Single
    inward: Single
    outward: Single

    def __call__(self, x: Single) -> Single:
        """Predictions (samples, Y) for x (samples, X)."""
        return np.asarray((x - self.mean_x) @ self.inward @ self.outward + self.mean_y, np.float32)

    @property
    def rank(self) -> int:
        """R."""
        return len(self.outward)


def fit(moments: Moments, weights: Double, ridge: Double | float, ranks: tuple[int, ...]) -> list[Linear]:
    """One mapping for each of `ranks`, the best of that rank.

    Args:
        moments: of at least one sample.
        weights: (Y,) what an error in each target costs, above 0; only a rank below Y makes use of it.
        ridge: added to the features' variances, as a part of each, (X,) or one for all; above 0, so that any sample
            gives a fit.
        ranks: at least 1 each; one above min(X, Y) gives that.
    """
    x, y = moments.means
    xx, xy, _ = moments.covariances
    own = np.diag(xx)
    regular = xx + np.diag(ridge * own + 1e-9 * float(own.mean()) + 1e-12)  # the rest: for features that never change
    root = np.sqrt(weights)
    # With z = L^T B, the penalised error is |z - L^-1 xy|^2 up to a constant: the best z of rank R keeps what this
    # matrix does in its R leading directions, eigenvectors of its square on the side that has fewer.
    lower = np.linalg.cholesky(regular)
    whitened = np.linalg.solve(lower, xy * root)
    if len(whitened) < len(root):
        left = np.linalg.eigh(whitened @ whitened.T)[1][:, ::-1]
        right = left.T @ whitened
    else:
        right = np.linalg.eigh(whitened.T @ whitened)[1][:, ::-1].T
        left = whitened @ right.T
    back, forth = np.linalg.solve(lower.T, left), right / root
    found = []
    for rank in (min(rank, *xy.shape) for rank in ranks):
        inward, outward = back[:, :rank], forth[:rank]
        found.append(Linear(_single(x), _single(y), _single(inward), _single(outward)))
    return found


def _single(values: Double) -> Single:
    return np.ascontiguousarray(values, np.float32)
