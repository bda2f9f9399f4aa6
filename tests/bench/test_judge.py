"""What is made of questions that were asked: each half is judged by the other."""

import math

import numpy as np

from preread.bench.judge import Asked, calibration, fit, held_out, unscaled
from preread.fit.calibration import Judged


def asked(count: int, seed: int, temperature: float = 4.0) -> list[Asked]:
    """Questions of a model that is too sure, in order twice as much as in all of them."""
    source, found = np.random.default_rng(seed), []
    for number in range(count):
        odds = source.normal(0, 1.5, 2)
        right = int(source.random() > 1 / (1 + math.exp(odds[1] - odds[0])))
        every, first = odds * temperature, odds * 2 * temperature
        found.append(
            Asked("choice", number, *(Judged(tuple((each - each.max()).tolist()), right) for each in (first, every)))
        )
    return found


def test_a_half_is_judged_by_what_was_fitted_on_the_other() -> None:
    known, contrary = asked(400, 0), []
    for one in known:  # of every second document, the model says the contrary of what is right
        flipped = Judged(one.every.logs, 1 - one.every.right) if one.register % 2 else one.every
        contrary.append(Asked(one.kind, one.register, one.first, flipped))
    assert held_out(known).calibration_error[0] < unscaled(known).calibration_error[0] / 2
    assert held_out(contrary).brier[0] > 0.6, "by what was fitted on the same half it would be 0.44"


def test_each_kind_has_a_scale_of_its_own_and_none_where_nothing_was_asked() -> None:
    found = calibration(asked(400, 1))
    assert found.fitted == 400 and found.scales.keys() == {"choice"}
    assert 3 < found.scale("choice").temperature < 6 and found.scale("score").temperature == 1
    assert fit([]) == {}


def test_the_first_order_alone_is_told_apart_from_all() -> None:
    known = asked(200, 2)
    assert unscaled(known, first=True).calibration_error[0] > unscaled(known).calibration_error[0]
    assert unscaled(known, "choice").questions == 200
