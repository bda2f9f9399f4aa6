"""When an edge listens to its cloud, when it asks, and what both take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.poll import (
    ASKING_BYTES,
    CONNECTION_BYTES,
    DEAF_S,
    IN_USE_S,
    MONTH_BYTES,
    MONTH_S,
    SILENCE_S,
    SYNC_S,
    WARM_S,
    Allowance,
    idle_bytes,
    listen_pause_s,
    listens,
    sync_pause_s,
    warm_due,
)

CHANCES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("failures", "pause_s"), [(0, SYNC_S), (1, 1), (2, 1.25), (3, 1.5625), (20, SYNC_S), (5000, SYNC_S)]
)
def test_after_a_failure_it_asks_sooner_and_then_ever_more_rarely(failures: int, pause_s: float) -> None:
    assert sync_pause_s(SYNC_S, failures) == pause_s


def test_who_asks_often_asks_no_less_often_after_failures() -> None:
    assert [sync_pause_s(1.0, failures) for failures in range(4)] == [1.0] * 4


@given(st.floats(0.1, 1e6), st.integers(0, 10_000), CHANCES)
def test_edges_that_began_together_do_not_ask_together(every_s: float, failures: int, chance: float) -> None:
    mean_s = sync_pause_s(every_s, failures)
    assert mean_s * 0.8 <= sync_pause_s(every_s, failures, chance) <= mean_s * 1.2 + 1e-9
    assert mean_s <= every_s


def test_who_is_told_to_ask_more_rarely_than_by_default_does_not_listen() -> None:
    assert listens(SYNC_S) and listens(0.2) and not listens(SYNC_S + 1)


@given(st.integers(1, 10_000), CHANCES)
def test_listening_goes_on_within_a_second_and_ever_later_where_nothing_is_heard(failures: int, chance: float) -> None:
    assert listen_pause_s(1, chance) <= 1
    assert 0 < listen_pause_s(failures, chance) <= listen_pause_s(failures + 1, chance) <= 60


def test_an_idle_month_keeps_its_budget_though_a_connection_is_lost_each_day_and_more() -> None:
    assert idle_bytes(30) < 16_000_000 and idle_bytes(450) <= MONTH_BYTES
    assert SILENCE_S < DEAF_S < 60, "what is between closes what is silent for a minute"


@given(st.lists(st.floats(0, 100), max_size=300))
def test_connections_that_do_not_last_take_no_more_than_asking_would(lasted_s: list[float]) -> None:
    now_s, made = 0.0, 0
    allowance = Allowance.full(now_s)
    for seconds in lasted_s:
        assert allowance.wait_s(now_s) >= 0
        now_s += allowance.wait_s(now_s)
        allowance, made = allowance.spent(now_s), made + 1
        assert allowance.left_bytes >= -1e-6
        now_s += seconds
        assert made * CONNECTION_BYTES <= 60 * CONNECTION_BYTES + now_s / SYNC_S * ASKING_BYTES + 1e-3


def test_a_month_without_loss_makes_room_for_many_connections_at_once() -> None:
    allowance = Allowance.full(0.0)
    for _ in range(60):
        assert allowance.wait_s(MONTH_S) == 0
        allowance = allowance.spent(MONTH_S)
    assert allowance.wait_s(MONTH_S) == pytest.approx(CONNECTION_BYTES / ASKING_BYTES * SYNC_S)


def test_connections_are_touched_at_the_start_and_while_they_are_in_use() -> None:
    assert warm_due(0.0, None, None)
    assert not warm_due(1e6, 0.0, None), "nothing was ever loaded"
    assert warm_due(100.0, 100.0 - WARM_S, 90.0) and not warm_due(100.0, 99.0, 90.0)
    assert not warm_due(90.0 + IN_USE_S, 0.0, 90.0), "nothing was loaded lately"
