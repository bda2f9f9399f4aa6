"""The directions in which rows vary most, from a sample that is wider than anyone would decompose exactly."""

from typing import Final

import numpy as np

from preread.align.ridge import Single

_OVER: Final = 32
_TURNS: Final = 2
_LEAST: Final = 0.02
"""Of a unit, added to the deviation that a direction is divided by: those that hardly vary are noise."""


def leading(rows: Single, count: int, seed: int = 0) -> tuple[Single, Single]:
    """Mean (X,) and a projection (X, count) of rows (samples, X) on their leading principal directions.

    Each channel counts as if it had unit variance; each projected one has nearly that. Randomised subspace iteration
    (Halko, Martinsson and Tropp, 2011).
    """
    mean, deviation = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)
    scaled = (rows - mean) / deviation
    count = min(count, *scaled.shape)
    start = np.random.default_rng(seed).normal(size=(scaled.shape[1], min(count + _OVER, *scaled.shape)))
    basis = np.linalg.qr(scaled @ start.astype(np.float32))[0]
    for _ in range(_TURNS):
        basis = np.linalg.qr(scaled @ np.linalg.qr(scaled.T @ basis)[0])[0]
    _, lengths, directions = np.linalg.svd(basis.T @ scaled, full_matrices=False)
    spread = lengths[:count] / np.sqrt(len(rows)) + _LEAST
    return np.asarray(mean, np.float32), np.asarray(directions[:count].T / spread / deviation[:, None], np.float32)
