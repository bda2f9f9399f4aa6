"""Whether a context's KV comes sooner than the server would compute it."""

from hypothesis import given
from hypothesis import strategies as st

from preread.attach.pace import GRACE_S, TRUST_S, Progress, worth_asking, worth_waiting

SECONDS = st.floats(0.001, 1000)
SIZES = st.integers(1, 10**9)


@given(SECONDS, SIZES, SIZES, SECONDS)
def test_who_waits_waits_no_longer_than_computing_takes_at_the_rate_so_far(
    elapsed_s: float, came_bytes: int, more_bytes: int, compute_s: float
) -> None:
    progress = Progress(elapsed_s, came_bytes, came_bytes + more_bytes, compute_s)
    left_s = more_bytes * elapsed_s / came_bytes
    if elapsed_s > GRACE_S:
        assert worth_waiting(progress) == (left_s <= compute_s) or abs(left_s / compute_s - 1) < 1e-6


@given(st.floats(3.001, 1000), SIZES, SECONDS)
def test_a_silent_link_is_given_up(elapsed_s: float, size_bytes: int, compute_s: float) -> None:
    assert not worth_waiting(Progress(elapsed_s, 0, size_bytes, compute_s))


@given(SIZES, SECONDS, st.floats(1, 1e9), st.floats(0, 1000))
def test_a_link_that_was_too_slow_is_left_alone_for_a_while(
    size_bytes: int, compute_s: float, bytes_s: float, ago_s: float
) -> None:
    worth = worth_asking(size_bytes, compute_s, bytes_s, ago_s)
    assert worth == (ago_s > TRUST_S or size_bytes / bytes_s <= compute_s) or (
        abs(size_bytes / bytes_s / compute_s - 1) < 1e-6
    )
    assert worth_asking(size_bytes, compute_s, None, 0)
