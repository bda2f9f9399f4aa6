"""Whether a source is worth asking: what it said it can, what came of it, and for how long nothing has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.health import FAILURES, Breaker
from preread.plan.seen import Seen
from preread.plan.task import Source

SOURCE = Source(1e6, 0.05, silence_s=0.5)
LONG_S = 0.5 + 4 * 0.05


def asked(at_s: float, source: Source = SOURCE) -> Seen:
    seen = Seen.begin(0, source, 0.0, 10.0)
    seen.asked[0, 0] = at_s
    return seen


@given(st.floats(0, 100), st.floats(0, 2))
def test_a_source_that_sends_nothing_is_left_alone_after_a_bounded_time(asked_s: float, waited_s: float) -> None:
    seen = asked(asked_s)
    seen.listen(asked_s + waited_s)
    assert seen.usable(asked_s + waited_s) == (asked_s + waited_s - asked_s <= LONG_S)


@pytest.mark.parametrize("rtt_s", [0.0, 0.3, 1.0])
def test_a_far_source_has_the_time_for_its_first_byte(rtt_s: float) -> None:
    seen = asked(0.0, Source(1e6, rtt_s, silence_s=0.5))
    seen.listen(4 * rtt_s + 0.5)  # a connection, TLS, and the request
    assert seen.usable(4 * rtt_s + 0.5)


def test_any_byte_breaks_the_silence() -> None:
    seen = asked(0.0)
    for step in range(1, 20):
        seen.flow.advance(step, step * 0.9 * LONG_S, True)
        seen.listen(step * 0.9 * LONG_S)
        assert seen.usable(step * 0.9 * LONG_S)


def test_silence_while_nothing_is_asked_for_means_nothing() -> None:
    seen = Seen.begin(0, SOURCE, 0.0, 10.0)
    seen.listen(1000.0)
    assert seen.breaker == Breaker()
    seen.asked[0, 0] = 1000.0
    seen.listen(1000.0 + LONG_S / 2)
    assert seen.breaker == Breaker()


def test_one_silence_counts_once_however_long_it_is() -> None:
    seen = asked(0.0)
    for step in range(1, 500):
        seen.listen(step * 0.02)
    assert seen.breaker.failures == FAILURES
    assert seen.usable(10.0), "one request may try again"
    seen.asked[1, 1], seen.breaker = 10.0, seen.breaker.asked()
    seen.listen(10.0 + LONG_S / 2)
    assert seen.breaker.failures == FAILURES
    seen.listen(10.1 + LONG_S)
    assert seen.breaker.failures == FAILURES + 1 and not seen.usable(10.2 + LONG_S)


def test_what_was_believed_of_a_source_that_failed_is_not_believed_any_more() -> None:
    assert Seen.begin(0, SOURCE, 0.0, 10.0).flow.bytes_s == pytest.approx(1e6)
    tripped = Source(1e6, 0.05, Breaker(FAILURES, -100.0))
    assert Seen.begin(0, tripped, 0.0, 10.0).flow.bytes_s == 0 and Seen.begin(0, tripped, 0.0, 10.0).usable(0.0)


def test_a_source_that_is_lost_is_not_asked_whatever_its_health() -> None:
    seen = Seen.begin(0, SOURCE, 0.0, 10.0)
    seen.lost = True
    assert not seen.usable(0.0)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_more_has_partly_come_than_is_owed(seen_bytes: int, whole_bytes: int, owed_bytes: int) -> None:
    seen = Seen.begin(0, SOURCE, 0.0, 10.0)
    seen.flow.advance(seen_bytes, 1.0, True)
    seen.whole_bytes, seen.owed_bytes = whole_bytes, owed_bytes
    assert 0 <= seen.partly_bytes <= owed_bytes
    if seen_bytes <= whole_bytes:
        assert seen.partly_bytes == 0
