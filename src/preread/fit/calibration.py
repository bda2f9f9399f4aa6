"""How sure a model may be: scales for log-odds, fitted on questions with known answers, and what they are worth.

A temperature divides the log-odds (Guo et al., 2017); between Yes and No a bias is taken from them first (Platt, 1999).
Both are found where the right answers are likeliest, which is a convex problem. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.fit.facts import Kind

Double = npt.NDArray[np.float64]

KINDS: Final[tuple[Kind, ...]] = ("predicate", "choice", "score")

BINS: Final = 10
"""Of equally many questions each."""

_LEAST_STEEP, _MOST_STEEP = 0.02, 20.0
_MOST_BIAS: Final = 20.0
_STEPS: Final = 60
_PRIOR: Final = 1e-3
_ENOUGH: Final = 1e-9
_DRAWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Judged:
    """One question with a known answer: the log-probabilities of its options, and which is right."""

    logs: tuple[float, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Scale:
    """How log-odds are scaled: `bias` is taken from those of the first of two options, then all are divided by
    `temperature`.
    """

    temperature: float = 1.0
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scales by kind of question; `fitted` on so many questions: 0 where nothing was."""

    scales: dict[Kind, Scale] = field(default_factory=dict)
    fitted: int = 0

    def scale(self, kind: Kind) -> Scale:
        """What is known for questions of a kind; nothing: as the model has it."""
        return self.scales.get(kind, Scale())


UNFITTED: Final = Calibration()


def scaled(logs: Sequence[float], scale: Scale) -> tuple[float, ...]:
    """Probabilities (options,), of sum 1, of log-probabilities."""
    odds = np.asarray(logs, np.float64)
    if len(logs) == 2:
        odds = odds - np.array([scale.bias, 0.0])
    return tuple(_softmax(odds / scale.temperature).tolist())


def fitted(judged: Sequence[Judged], *, biased: bool) -> Scale:
    """The scale under which the right answers are likeliest; `biased`: between two options, of which the first may be
    preferred whatever is asked.

    Newton's method on 1/temperature and bias/temperature, held to a small region around none by a weak prior, and
    within bounds: a model that knows nothing gets a temperature so high that it says so.
    """
    if not judged:
        return Scale()
    steep, shift, groups = 1.0, 0.0, _by_options(judged)
    for _ in range(_STEPS):
        gradient, curvature = _slope(groups, len(judged), steep, shift, biased=biased)
        step = np.linalg.solve(curvature, gradient)
        steep, shift = float(np.clip(steep - step[0], _LEAST_STEEP, _MOST_STEEP)), shift - float(step[1])
        if np.abs(step).max() < _ENOUGH:
            break
    return Scale(1 / steep, float(np.clip(shift / steep, -_MOST_BIAS, _MOST_BIAS)))


def _by_options(judged: Sequence[Judged]) -> list[tuple[Double, npt.NDArray[np.int64]]]:
    """Questions of equally many options together: log-probabilities (questions, options), and which is right."""
    groups: dict[int, list[Judged]] = {}
    for one in judged:
        groups.setdefault(len(one.logs), []).append(one)
    return [
        (np.array([one.logs for one in group]), np.array([one.right for one in group])) for group in groups.values()
    ]


def _slope(
    groups: Sequence[tuple[Double, npt.NDArray[np.int64]]], count: int, steep: float, shift: float, *, biased: bool
) -> tuple[Double, Double]:
    """Gradient (2,) and curvature (2, 2) of the mean loss in nats, by steepness and by shift."""
    gradient, curvature = _PRIOR * np.array([steep - 1.0, shift]), np.diag([_PRIOR, _PRIOR])
    for logs, right in groups:
        first = np.zeros_like(logs)
        first[:, 0] = -1.0 if biased else 0.0
        parts = np.stack([logs, first])  # (2, questions, options)
        chances = _softmax(steep * logs + shift * first)
        mean = (parts * chances).sum(-1)
        gradient = gradient + (mean - parts[:, np.arange(len(right)), right]).sum(-1) / count
        centred = parts - mean[..., None]
        curvature = curvature + np.einsum("aqo,bqo->ab", centred * chances, centred) / count
    return gradient, curvature


@dataclass(frozen=True, slots=True)
class Quality:
    """Each with its 95 % interval: a percentile bootstrap over questions.

    Attributes:
        accuracy: how often the likeliest option is right.
        calibration_error: expected calibration error of the likeliest option's probability, in `BINS` bins.
        brier: mean squared error of all probabilities, summed over a question's options.
    """

    questions: int
    accuracy: tuple[float, float, float]
    calibration_error: tuple[float, float, float]
    brier: tuple[float, float, float]


def quality(judged: Sequence[Judged], chances: Sequence[Sequence[float]], seed: int = 0) -> Quality:
    """What probabilities are worth."""
    right = np.array([int(np.argmax(p)) == one.right for one, p in zip(judged, chances, strict=True)], np.float64)
    sure = np.array([max(p) for p in chances])
    squares = np.array([_square(one, p) for one, p in zip(judged, chances, strict=True)])
    draws = np.random.default_rng(seed).integers(0, len(judged), (_DRAWS, len(judged)))

    def with_interval(measure: Callable[[npt.NDArray[np.int64]], float]) -> tuple[float, float, float]:
        low, high = np.percentile([measure(draw) for draw in draws], (2.5, 97.5))
        return measure(np.arange(len(judged))), float(low), float(high)

    return Quality(
        len(judged),
        with_interval(lambda at: float(right[at].mean())),
        with_interval(lambda at: calibration_error(sure[at], right[at])),
        with_interval(lambda at: float(squares[at].mean())),
    )


def calibration_error(sure: Double, right: Double) -> float:
    """Mean distance between how sure and how right, over bins of equally many questions (Naeini et al., 2015)."""
    order = np.argsort(sure, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(abs(sure[part].mean() - right[part].mean()) * len(part) for part in bins) / len(order))


def _square(one: Judged, chances: Sequence[float]) -> float:
    return sum((p - (option == one.right)) ** 2 for option, p in enumerate(chances))


def _softmax(logs: Double) -> Double:
    raised = np.exp(logs - logs.max(-1, keepdims=True))
    shares: Double = raised / raised.sum(-1, keepdims=True)
    return shares
