"""When an answer is late."""

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.usual import Usual


def of(*seconds: float) -> Usual:
    usual = Usual()
    for one in seconds:
        usual.note(one)
    return usual


def test_nothing_is_late_early_while_few_answers_are_known() -> None:
    assert of(*[0.1] * 7).late_s(3.0) == 3.0


def test_late_is_twice_what_nearly_all_answers_take() -> None:
    assert of(*[0.2] * 19, 2.0).late_s(3.0) == 0.4, "one of twenty is no rule"
    assert of(*[0.2] * 18, 2.0, 2.0).late_s(3.0) == 3.0
    assert of(*[0.001] * 8).late_s(3.0) == 0.25, "processors may be busy"
    assert of(*[2.0] * 32, *[0.2] * 32).late_s(3.0) == 0.4, "what was long ago is forgotten"


@given(st.lists(st.floats(0, 1e6), max_size=100), st.floats(0.25, 100))
def test_it_is_within_bounds_whatever_was_seen(seconds: list[float], longest_s: float) -> None:
    assert 0.25 <= of(*seconds).late_s(longest_s) <= longest_s
