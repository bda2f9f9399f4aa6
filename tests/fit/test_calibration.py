"""Scales for log-odds: found again where they are known, and what is measured of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.fit.calibration import Judged, Scale, calibration_error, fitted, quality, scaled
from preread.fit.facts import Fact, registers

logs = st.floats(-20, 0)


def drawn(count: int, options: int, temperature: float, bias: float, seed: int = 0) -> list[Judged]:
    """Questions of a model that is sure by so much too much: answers are drawn from its odds as they should be."""
    source, found = np.random.default_rng(seed), []
    for _ in range(count):
        odds = source.normal(0, 2, options)
        chances = np.exp(odds - odds.max())
        right = int(source.choice(options, p=chances / chances.sum()))
        said = odds * temperature
        said[0] += bias
        found.append(Judged(tuple((said - said.max()).tolist()), right))
    return found


@pytest.mark.parametrize(("options", "temperature"), [(2, 3.0), (3, 0.5), (5, 2.0)])
def test_a_temperature_is_found_again(options: int, temperature: float) -> None:
    found = fitted(drawn(2000, options, temperature, 0.0), biased=False)
    assert found.temperature == pytest.approx(temperature, rel=0.2) and found.bias == 0


def test_a_bias_is_found_again() -> None:
    found = fitted(drawn(2000, 2, 2.0, 1.5), biased=True)
    assert found.temperature == pytest.approx(2.0, rel=0.2) and found.bias == pytest.approx(1.5, abs=0.3)


def test_who_knows_nothing_is_told_so() -> None:
    source = np.random.default_rng(0)
    guessed = [Judged(one.logs, int(source.integers(2))) for one in drawn(1000, 2, 3.0, 0.0)]
    found = fitted(guessed, biased=True)
    assert max(scaled(guessed[0].logs, found)) < 0.65


@settings(max_examples=30)
@given(st.lists(st.tuples(st.lists(logs, min_size=3, max_size=3), st.integers(0, 2)), max_size=30))
def test_any_questions_give_a_scale_that_makes_sense(asked: list[tuple[list[float], int]]) -> None:
    judged = [Judged(tuple(one), right) for one, right in asked]
    found = fitted(judged, biased=False)
    assert 0.04 < found.temperature <= 51 and found.bias == 0
    for one in judged:
        assert sum(scaled(one.logs, found)) == pytest.approx(1)


def test_calibration_is_better_after_a_fit_than_before_and_accuracy_the_same() -> None:
    learnt, asked = drawn(500, 3, 4.0, 0.0), drawn(300, 3, 4.0, 0.0, seed=1)
    by = fitted(learnt, biased=False)
    before = quality(asked, [scaled(one.logs, Scale()) for one in asked])
    after = quality(asked, [scaled(one.logs, by) for one in asked])
    assert before.accuracy == after.accuracy and before.accuracy[1] < before.accuracy[0] < before.accuracy[2]
    assert after.calibration_error[0] < before.calibration_error[0] / 2 and after.brier[0] < before.brier[0]


def test_who_is_as_right_as_sure_has_no_calibration_error() -> None:
    assert calibration_error(np.full(100, 0.75), np.arange(100) % 4 != 0) == pytest.approx(0, abs=0.06)
    assert calibration_error(np.ones(100), np.zeros(100)) == 1


def test_registers_state_what_is_asked_of_them() -> None:
    found = registers(12, seed=3)
    assert registers(12, seed=3) == found and len({each.text for each in found}) == 12
    facts = [(register, fact) for register in found for fact in register.facts]
    assert len(facts) == 240
    predicates = [fact for _, fact in facts if fact.kind == "predicate"]
    assert sum(fact.right == 0 for fact in predicates) * 2 == len(predicates)
    for register, fact in facts:
        line = next(line for line in register.text.splitlines() if f"The {_part(fact)} is made" in line)
        if fact.kind == "predicate":
            said = all(word.lower() in line.lower() for word in fact.text.rstrip(".").split())
            assert said == (fact.right == 0), (fact, line)
        else:
            assert [option in line for option in fact.options].index(True) == fact.right
            assert sum(option in line for option in fact.options) == 1


def _part(fact: Fact) -> str:
    """The part that a question is about: the word after "the"."""
    words = fact.text.rstrip("?.").split()
    return words[[word.lower() for word in words].index("the") + 1]
