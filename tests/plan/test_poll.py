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
    Tries,
    idle_bytes,
    listen_pause_s,
    listens,
    warm_due,
)

CHANCES = st.floats(0, 1)


@st.composite
def tried(draw: st.DrawFn) -> Tries:
    """Tries of which each began when it was time."""
    now_s, tries = 0.0, Tries.none(0.0)
    for answered in draw(st.lists(st.booleans(), max_size=50)):
        now_s += tries.pause_s(SYNC_S, chance=draw(CHANCES))
        tries = tries.failed(now_s, answered=answered)
    return tries


def failing(times: int, *, answered: bool) -> Tries:
    now_s, tries = 0.0, Tries.none(0.0)
    for _ in range(times):
        tries = tries.failed(now_s, answered=answered)
        now_s += tries.pause_s(SYNC_S)
    return tries


@pytest.mark.parametrize(
    ("failures", "pause_s"), [(0, SYNC_S), (1, 1), (2, 1.25), (3, 1.5625), (20, SYNC_S), (5000, SYNC_S)]
)
def test_a_cloud_that_answers_with_errors_is_asked_sooner_and_then_ever_more_rarely(
    failures: int, pause_s: float
) -> None:
    assert failing(failures, answered=True).pause_s(SYNC_S) == pause_s


@pytest.mark.parametrize(("failures", "pause_s"), [(1, 1), (100, 1), (500, 1), (1000, SYNC_S), (5000, SYNC_S)])
def test_a_cloud_that_is_away_is_looked_for_each_second_and_then_by_the_clock(failures: int, pause_s: float) -> None:
    assert failing(failures, answered=False).pause_s(SYNC_S) == pytest.approx(pause_s)


def test_ten_minutes_of_looking_take_no_more_than_the_allowance_and_an_hour_no_more_than_the_clock() -> None:
    now_s, tries, made = 0.0, Tries.none(0.0), 0
    while now_s < 3600:
        tries, made = tries.failed(now_s, answered=False), made + 1
        now_s += tries.pause_s(SYNC_S)
        assert made * ASKING_BYTES <= 60 * CONNECTION_BYTES + (now_s / SYNC_S + 1) * ASKING_BYTES
        if now_s < 600:
            assert made >= now_s - 1


def test_who_is_to_ask_rarely_looks_ever_more_rarely_too() -> None:
    assert failing(2, answered=False).pause_s(SYNC_S + 1) == 1.25
    assert failing(5000, answered=False).pause_s(3600) == 3600


def test_one_that_was_found_again_is_asked_by_the_clock_and_what_was_spent_stays_spent() -> None:
    looked = failing(300, answered=False)
    found = looked.succeeded()
    assert found.pause_s(SYNC_S) == SYNC_S and found.looks == looked.looks
    assert found.pause_s(SYNC_S, away=True) == 1, "a load has found that it is gone again"


def test_who_asks_often_asks_no_less_often_after_failures() -> None:
    assert [failing(failures, answered=True).pause_s(1.0) for failures in range(4)] == [1.0] * 4


@given(tried(), st.floats(0.1, 1e6), st.booleans(), CHANCES)
def test_edges_that_began_together_do_not_ask_together(tries: Tries, every_s: float, away: bool, chance: float) -> None:
    mean_s = tries.pause_s(every_s, away)
    assert mean_s * 0.8 <= tries.pause_s(every_s, away, chance) <= mean_s * 1.2 + 1e-9
    assert 0 < mean_s <= every_s


def test_who_is_told_to_ask_more_rarely_than_by_default_does_not_listen() -> None:
    assert listens(SYNC_S) and listens(0.2) and not listens(SYNC_S + 1)


@given(st.integers(1, 10_000), CHANCES)
def test_listening_goes_on_within_a_second_and_ever_later_where_nothing_is_heard(failures: int, chance: float) -> None:
    assert listen_pause_s(0, chance) <= 0.5 and listen_pause_s(1, chance) <= 1
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
