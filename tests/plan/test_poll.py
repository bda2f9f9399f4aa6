"""How often an idle edge asks its cloud."""

import pytest

from preread.plan.poll import IN_USE_S, SYNC_S, WARM_S, sync_pause_s, warm_due


@pytest.mark.parametrize(
    ("failures", "pause_s"), [(0, SYNC_S), (1, 5), (2, 10), (3, 20), (4, 40), (5, SYNC_S), (5000, SYNC_S)]
)
def test_after_a_failure_it_asks_sooner_and_then_ever_more_rarely(failures: int, pause_s: float) -> None:
    assert sync_pause_s(SYNC_S, failures) == pause_s


def test_who_asks_often_asks_no_less_often_after_failures() -> None:
    assert [sync_pause_s(1.0, failures) for failures in range(4)] == [1.0] * 4


def test_connections_are_touched_at_the_start_and_while_they_are_in_use() -> None:
    assert warm_due(0.0, None, None)
    assert not warm_due(1e6, 0.0, None), "nothing was ever loaded"
    assert warm_due(100.0, 100.0 - WARM_S, 90.0) and not warm_due(100.0, 99.0, 90.0)
    assert not warm_due(90.0 + IN_USE_S, 0.0, 90.0), "nothing was loaded lately"
