"""What an answer says of why its context was computed is what happened."""

from preread.edge.load import Loaded
from preread.edge.record import why_computed
from preread.errors import TransportError


def test_a_context_that_was_computed_within_a_round_trip_does_not_blame_the_link() -> None:
    reason = why_computed(Loaded(seconds=0.04))
    assert reason == "nothing came before it was computed, within 0.0 s"
    reason = why_computed(Loaded(seconds=0.2, seen_bytes=250_000))
    assert reason == "computing was sooner: in 0.2 s 0.25 MB came (10.00 Mbit/s)"
    assert "slow" not in reason


def test_a_failure_is_the_reason_whatever_came() -> None:
    failure = TransportError("the cloud hung up")
    assert why_computed(Loaded(seconds=1.0, seen_bytes=1000, failure=failure)) == "the cloud hung up"


def test_a_load_without_duration_has_a_reason_too() -> None:
    assert why_computed(Loaded(seen_bytes=1000)) == "computing was sooner: in 0.0 s 0.00 MB came"
