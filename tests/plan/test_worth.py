"""A context of which fetching would save next to nothing is computed, as if there was no link."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.cost import Link
from preread.plan.health import Breaker
from preread.plan.plan import Plan
from preread.plan.task import Task
from preread.plan.worth import LEAST_SAVED, LONGER, worth_loading

from .simulate import MBIT, Machine, layered, steady, task_for

LOSSLESS = 12288.0
MACHINE = Machine()


def task(tokens: int, mbps: float) -> Task:
    return task_for(tokens, MACHINE, LOSSLESS, [Link(mbps * MBIT, 0.02)])


def test_over_a_link_that_brings_next_to_nothing_all_is_computed() -> None:
    assert not worth_loading(Plan(task(1000, 0.1), 0.0)) and worth_loading(Plan(task(1000, 20), 0.0))


def test_a_link_of_which_nothing_is_known_or_that_has_failed_is_tried() -> None:
    slow = task(1000, 0.1)
    (source,) = slow.sources
    for other in (replace(source, bytes_s=None), replace(source, breaker=Breaker(1, 0.0))):
        assert worth_loading(Plan(replace(slow, sources=(other,)), 1.0))


@given(
    st.integers(64, 3000), st.floats(0.05, 300), st.floats(0.05, 300), st.booleans(), st.floats(0, 1), st.floats(1, 2)
)
def test_a_faster_link_saves_no_less(
    tokens: int, one: float, other: float, splits: bool, share: float, longer: float
) -> None:
    of = layered if splits else lambda task: task
    slower, faster = (Plan(of(task(tokens, mbps)), 0.0) for mbps in sorted((one, other)))
    assert faster.saves(share - 1e-9, longer) or not slower.saves(share, longer)
    assert not faster.saves(1.0, 1.0)


@given(st.integers(64, 3000), st.floats(0.05, 300), st.floats(0, 1), st.floats(1, 2))
def test_what_is_computed_beside_it_may_be_all_that_is_saved(
    tokens: int, mbps: float, share: float, longer: float
) -> None:
    plan = Plan(layered(task(tokens, mbps)), 0.0)
    assert plan.saves(share, 1.0) or not plan.saves(share, longer)
    close = Plan(task(1000, 3), 0.0)
    assert close.saves(LEAST_SAVED, 1.0) and not close.saves(LEAST_SAVED, LONGER)


@pytest.mark.parametrize("mbps", [0.1, 0.5, 1, 2, 5])
@pytest.mark.parametrize("tokens", [150, 300, 1000, 3000])
def test_what_is_not_loaded_would_have_been_little_sooner_over_the_best_of_links(tokens: int, mbps: float) -> None:
    outcome, _, local_s = steady(tokens, MACHINE, LOSSLESS, mbps, 0.02)
    if not worth_loading(Plan(task(tokens, mbps), 0.0)):
        assert outcome.ttft_s > (1 - LEAST_SAVED - 0.03) / LONGER * local_s
