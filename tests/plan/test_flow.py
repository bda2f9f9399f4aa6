"""What is believed of a link's rate: what came lately, as long as something was under way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.flow import Flow

RATES = st.floats(1e3, 1e9)


def test_a_link_of_which_nothing_is_known_carries_nothing_until_it_shows_otherwise() -> None:
    flow = Flow.begin(None, 0.02, 0.0, 10.0)
    assert flow.bytes_s == 0
    flow.asked(0.0)
    flow.advance(100_000, 0.12, True)
    assert flow.bytes_s == pytest.approx(1e6)
    assert Flow.begin(0.0, 0.02, 0.0, 10.0).bytes_s == 0


@given(RATES, st.floats(0, 1), st.lists(st.floats(0.001, 0.5), min_size=1, max_size=20))
def test_a_link_that_is_as_was_believed_is_believed_to_stay_so(rate: float, rtt_s: float, steps: list[float]) -> None:
    flow, now_s = Flow.begin(rate, rtt_s, 10.0, 10.0), 10.0
    flow.asked(now_s)
    began_s = now_s + rtt_s
    for step_s in steps:
        now_s += step_s
        flow.advance(int(max(0.0, now_s - began_s) * rate), now_s, True)
        assert flow.bytes_s == pytest.approx(rate, rel=0.02, abs=10)


@given(RATES, st.floats(0.1, 5))
def test_what_is_believed_fades_only_while_something_is_under_way(rate: float, passed_s: float) -> None:
    idle, busy = Flow.begin(rate, 0.02, 0.0, 10.0), Flow.begin(rate, 0.02, 0.0, 10.0)
    idle.advance(0, passed_s, False)
    busy.advance(0, passed_s, True)
    assert idle.bytes_s == pytest.approx(rate) and busy.bytes_s < idle.bytes_s
    idle.asked(passed_s)
    idle.advance(0, passed_s + 0.02, True)
    assert idle.bytes_s == pytest.approx(rate), "nothing can come within a round trip"


def test_a_first_answer_that_takes_a_little_longer_than_a_round_trip_is_not_held_against_the_link() -> None:
    flow = Flow.begin(1e6, 0.02, 0.0, 10.0)
    flow.asked(0.0)
    for at_s in (0.02, 0.05, 0.08, 0.119):
        flow.advance(0, at_s, True)
        assert flow.bytes_s == pytest.approx(1e6)
    flow.advance(0, 0.3, True)
    assert flow.bytes_s < 6e5, "but then it is"


def test_being_told_twice_at_one_time_changes_nothing() -> None:
    flow = Flow.begin(1e6, 0.0, 0.0, 10.0)
    flow.advance(50_000, 0.1, True)
    rate = flow.bytes_s
    flow.advance(50_000, 0.1, True)
    assert flow.bytes_s == rate and flow.seen_bytes == 50_000


def test_a_count_that_went_back_takes_nothing_back() -> None:
    flow = Flow.begin(None, 0.0, 0.0, 10.0)
    flow.advance(50_000, 0.1, True)
    flow.advance(20_000, 0.2, True)
    assert flow.seen_bytes == 50_000 and flow.heard_s == 0.1


def test_bytes_that_nobody_waits_for_any_more_are_bytes_of_the_link() -> None:
    flow = Flow.begin(None, 0.0, 0.0, 10.0)
    flow.advance(50_000, 0.1, False)
    assert flow.bytes_s > 0 and flow.heard_s == 0.1


def test_a_window_is_some_cells_while_nothing_is_known_and_then_what_the_link_holds() -> None:
    unknown = Flow.begin(None, 0.1, 0.0, 10.0)
    assert [unknown.window_bytes(cell, 0.0) for cell in (1000, 48 * 1024, 10**6)] == [8000, 192 * 1024, 2 * 10**6]
    near, far = Flow.begin(1e6, 0.01, 0.0, 10.0), Flow.begin(1e6, 0.1, 0.0, 10.0)
    assert near.window_bytes(1000, 0.0) >= 2000 + 1e6 * 0.01
    assert far.window_bytes(1000, 0.0) - near.window_bytes(1000, 0.0) >= 1e6 * 0.09


def test_what_follows_is_asked_for_as_the_link_can_carry_it() -> None:
    flow = Flow.begin(1e6, 0.1, 0.0, 10.0)
    flow.asked(2.0)
    at_once, later, much_later = (flow.window_bytes(1000, at_s, 20_000) for at_s in (2.0, 2.04, 3.0))
    assert 19_000 <= at_once < 20_000 + 10_000, "what comes first has the link to itself at first"
    assert later - at_once >= 1e6 * 0.04
    assert much_later == flow.window_bytes(1000, 9.0, 0.0) < flow.window_bytes(1000, 9.0), "no more than it needs"


def test_a_small_load_forgets_sooner_what_was_believed_than_a_large_one() -> None:
    small, large = Flow.begin(1e7, 0.0, 0.0, 0.5), Flow.begin(1e7, 0.0, 0.0, 30.0)
    for flow in (small, large):
        flow.advance(10_000, 0.1, True)
    assert small.bytes_s < 1e6 < large.bytes_s
