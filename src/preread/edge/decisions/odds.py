"""From the log-probabilities of labels to how likely each option is.

What the same question says in several orders is averaged as log-probabilities, that is, geometrically: a constant
preference for a label or a place, which multiplies its probability, is then the same for all options and cancels. The
result is scaled as was fitted on questions with known answers: see `fit/calibration.py`. Pure.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Odds = npt.NDArray[np.float64]


def averaged(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean log-probability of each option over the orders (rows) in which the question was asked, normalised."""
    mean = np.asarray(rows, np.float64).mean(0)
    return tuple((mean - _log_sum(mean)).tolist())


def joined(logs: Sequence[float]) -> float:
    """The log-probability that one of several tokens comes."""
    return _log_sum(np.asarray(logs, np.float64))


def expected(probabilities: Sequence[float]) -> float:
    """The mean level of a score, levels counted from 0."""
    return math.fsum(level * probability for level, probability in enumerate(probabilities))


def decidedness(probabilities: Sequence[float]) -> float:
    """1 − normalised entropy: 0 where all options are equally likely, 1 where one is certain."""
    entropy = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(probabilities))))


def _log_sum(logs: _Odds) -> float:
    peak = float(logs.max())
    return peak + math.log(float(np.exp(logs - peak).sum()))
