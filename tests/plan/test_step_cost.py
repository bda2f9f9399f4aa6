"""How long a step takes is learnt from the steps that were."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.step_cost import StepCost

TOKENS = st.integers(1, 128)


def learnt(base_s: float, token_s: float, sizes: list[int], scatter: float = 0.0, seed: int = 0) -> StepCost:
    """What is believed after steps of these sizes."""
    draw, cost = random.Random(seed), StepCost.guessed(100.0)
    for tokens in sizes:
        cost = cost.took(tokens, (base_s + tokens * token_s) * draw.uniform(1 - scatter, 1 + scatter))
    return cost


def test_before_any_step_a_token_takes_as_long_as_in_a_prefill_and_a_step_three_times_that_besides() -> None:
    assert StepCost.guessed(100.0).seconds(7) == pytest.approx(0.1)


@pytest.mark.parametrize(("base_s", "token_s"), [(0.1, 0.001), (0.02, 0.02), (0.001, 0.005)])
def test_steps_of_several_sizes_tell_apart_what_a_step_takes_and_what_a_token_does(
    base_s: float, token_s: float
) -> None:
    cost = learnt(base_s, token_s, [1, 64, 8, 128] * 25, scatter=0.1)
    for tokens in (1, 16, 128):
        assert cost.seconds(tokens) == pytest.approx(base_s + tokens * token_s, rel=0.2)


def test_steps_of_one_size_tell_how_long_these_take() -> None:
    assert learnt(0.1, 0.001, [4] * 50).seconds(4) == pytest.approx(0.104, rel=0.02)


def test_a_machine_that_became_slower_is_found_out() -> None:
    cost = learnt(0.02, 0.001, [1, 64] * 20)
    for tokens in [1, 64] * 20:
        cost = cost.took(tokens, 2 * (0.02 + tokens * 0.001))
    assert cost.seconds(64) == pytest.approx(0.168, rel=0.1)


def test_one_step_that_took_very_long_is_hardly_believed() -> None:
    cost = learnt(0.02, 0.001, [1, 64] * 20)
    assert cost.took(1, 100.0).seconds(1) < 2 * cost.seconds(1)


def test_what_is_known_for_certain_is_not_changed_by_a_step_that_took_no_time() -> None:
    sure = StepCost(0.0, 0.0, 0.0, 0.0)
    assert sure.took(1, 0.0) is sure


@given(st.floats(1.0, 1e5), st.lists(st.tuples(TOKENS, st.floats(0.0, 1e4)), max_size=60))
def test_whatever_steps_took_seconds_are_more_than_none_and_grow_with_tokens(
    prefill_tokens_s: float, steps: list[tuple[int, float]]
) -> None:
    cost = StepCost.guessed(prefill_tokens_s)
    for tokens, seconds in steps:
        cost = cost.took(tokens, seconds)
        assert cost.base_s > 0 and cost.token_s > 0
        assert cost.base_var >= 0 and cost.token_var >= 0
        assert cost.both_var**2 <= cost.base_var * cost.token_var * 1.001 + 1e-12, "they are what a filter's are"


@given(st.floats(1e-6, 10.0), st.floats(1e-6, 1.0), st.floats(0.0, 100.0))
def test_as_many_tokens_are_within_a_time_as_take_no_longer(base_s: float, token_s: float, within_s: float) -> None:
    cost = StepCost(base_s, token_s, 0.0, 0.0)
    tokens = cost.tokens_within(within_s)
    assert tokens >= 0
    assert tokens == 0 or cost.seconds(tokens) <= within_s * (1 + 1e-9)
    assert cost.seconds(tokens + 1) > within_s * (1 - 1e-9)
