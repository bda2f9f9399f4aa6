"""What was decided, and what both APIs tell of it. Pure."""

from dataclasses import dataclass
from typing import Any

from preread.edge.decisions.question import Question
from preread.edge.forms.form import timings
from preread.edge.request import Timings
from preread.fit.calibration import Calibration


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of an inquiry.

    Attributes:
        model: its name.
        answers: each question with the probabilities of its options.
        rows: of each question, in each order in which it was asked, the log-probability of each option.
        input_tokens: of the state, the context included, once, and of all questions in all their orders.
        cached_tokens: those of them that did not have to be computed.
        prompts: how many short sequences that were: questions times orders.
        calibration: by which the probabilities are scaled.
        mass: the least probability that a question's labels had together among all tokens.
        timings: of the state's coming, and of all until the last probability was there.
    """

    model: str
    answers: tuple[tuple[Question, tuple[float, ...]], ...]
    rows: tuple[tuple[tuple[float, ...], ...], ...]
    input_tokens: int
    cached_tokens: int
    prompts: int
    calibration: Calibration
    mass: float
    timings: Timings


def used(decided: Decided) -> dict[str, Any]:
    """Tokens; none is generated."""
    return {"input_tokens": decided.input_tokens, "output_tokens": 0}


def told(decided: Decided) -> dict[str, Any]:
    """Beyond what the APIs have: whether confidence means something, and what it took."""
    return {
        "calibration": {
            "fitted_on": decided.calibration.fitted,
            "temperature": {kind: scale.temperature for kind, scale in decided.calibration.scales.items()},
            "bias": {kind: scale.bias for kind, scale in decided.calibration.scales.items() if scale.bias},
        },
        "label_mass": decided.mass,
        "prompts": decided.prompts,
        "timings": timings(decided.timings),
    }
