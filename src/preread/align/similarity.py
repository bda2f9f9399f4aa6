"""How alike two models' layers are in what they keep of the same tokens. Linear algebra only; no model is known here.

Centred kernel alignment compares representations of different widths, and does not change when either is rotated or
scaled (Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019). With few tokens and many
channels the plain estimate is too high, for unrelated data too; so the unbiased one is taken (Song et al., Feature
Selection via Dependence Maximization, JMLR 2012, eq. 4; Nguyen et al., ICLR 2021).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from preread.errors import UsageError

Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

FEWEST_TOKENS = 4
"""The unbiased estimate divides by (tokens - 3)."""


def kernel(rows: Single) -> Double:
    """The linear kernel of a representation (tokens, channels), (tokens, tokens), made ready for `cka`.

    Rows are centred and scaled first, so that representations of any size are computed with alike; the diagonal is
    zero, and what that leaves of each row's and column's mean is taken away (Székely and Rizzo's U-centring, 2014: the
    inner product of two matrices centred in this way is the unbiased estimate).

    Raises:
        UsageError: fewer than four tokens, or a value that is no finite number.
    """
    count = len(rows)
    if count < FEWEST_TOKENS:
        raise UsageError(f"{count} tokens are too few to compare layers on: {FEWEST_TOKENS} are needed")
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(np.square(centred).sum(axis=1).mean()))
    if not np.isfinite(spread):
        raise UsageError("a layer holds values that are no finite numbers: it cannot be compared")
    centred /= spread or 1.0
    found: Double = centred @ centred.T
    np.fill_diagonal(found, 0)
    sums = found.sum(axis=1)
    found += sums.sum() / ((count - 1) * (count - 2))
    found -= (sums[:, None] + sums[None, :]) / (count - 2)
    np.fill_diagonal(found, 0)
    return found


def cka(a: Double, b: Double) -> float:
    """Similarity of two representations of the same tokens, by their `kernel`s: about 0 where they share nothing, 1
    where one is the other, rotated and scaled. An estimate: it may fall a little below 0. 0 where either is constant.
    """
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.vdot(a, b)) / norm if norm else 0.0


def similarities(small: Sequence[Single], large: Sequence[Single]) -> Double:
    """`cka` of every layer of one model with every layer of another, (small layers, large layers).

    Args:
        small, large: what each layer keeps of the same tokens, each (tokens, channels).

    Raises:
        UsageError: as `kernel` does.
    """
    # The kernels of one model are held, those of the other made one at a time: (tokens, tokens) of each layer is much.
    held = [kernel(rows) for rows in small]
    columns = []
    for rows in large:
        other = kernel(rows)
        columns.append([cka(mine, other) for mine in held])
    return np.array(columns, np.float64).T
