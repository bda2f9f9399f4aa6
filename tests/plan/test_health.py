import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.health import FAILURES, Breaker


def broken(at_s: float = 10.0) -> Breaker:
    breaker = Breaker()
    for n in range(FAILURES):
        breaker = breaker.failed(at_s - FAILURES + n, at_s - FAILURES + n + 1)
    return breaker


def test_it_opens_after_some_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker()
    for n in range(FAILURES - 1):
        breaker = breaker.failed(n, n + 0.5)
        assert breaker.allows(n + 0.5) and not breaker.tripped
    assert not breaker.succeeded().failed(9, 9).tripped
    assert breaker.failed(9, 9).tripped and not breaker.failed(9, 9).allows(9.5)


def test_requests_that_were_under_way_together_fail_once() -> None:
    breaker = Breaker()
    for n in range(100):
        breaker = breaker.failed(1.0, 2.0 + n / 100)
    assert breaker.failures == 1


def test_requests_that_overlap_without_end_count_once_a_round() -> None:
    breaker = Breaker()
    for n in range(100):
        breaker = breaker.failed(n * 0.1 - 0.5, n * 0.1)
    assert breaker.tripped


def test_after_a_while_one_request_may_try() -> None:
    breaker = broken(at_s=10.0)
    assert breaker.retry_s == 11.0 and not breaker.allows(10.9) and breaker.allows(11.0)
    trying = breaker.asked()
    assert not trying.allows(12.0)
    assert trying.succeeded() == Breaker() and trying.succeeded().allows(12.0)
    again = trying.failed(11.5, 12.0)
    assert not again.allows(13.9) and again.allows(14.0)


def test_a_closed_breaker_is_asked_as_often_as_one_likes() -> None:
    closed = Breaker(FAILURES - 1, 100.0)
    assert closed.asked() == closed and closed.retry_s == float("-inf") and closed.allows(100.0)


@given(st.integers(0, 200))
def test_the_backoff_is_bounded(failures: int) -> None:
    breaker = Breaker(FAILURES + failures, 100.0)
    assert 101.0 <= breaker.retry_s <= 160.0
    assert breaker.retry_s == pytest.approx(100 + min(60, 2.0**failures))


@given(st.integers(0, 100))
def test_silence_opens_it_at_once_and_again_for_longer(failures: int) -> None:
    silent = Breaker(failures).silent(10.0)
    assert silent.tripped and not silent.allows(10.5) and silent.failures > failures
    again = silent.asked().silent(20.0)
    assert again.retry_s - 20.0 >= min(60.0, 2 * (silent.retry_s - 10.0))
    assert not again.trying and again.succeeded() == Breaker()
