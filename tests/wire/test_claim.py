"""When a claim stands, and when the next may be created."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData
from preread.wire import claim as claims
from preread.wire.claim import LEASE_MS, Claim, next_number

moments = st.integers(0, 2**53)
made = st.builds(
    Claim, st.text("0123456789abcdef", min_size=1, max_size=64), st.just("boot/1"), st.integers(1, 99), moments
)


@given(st.integers(0, 10**9), made, moments, st.booleans())
def test_a_claim_stands_until_it_is_over_or_its_owner_is_gone(number: int, one: Claim, now: int, gone: bool) -> None:
    found = next_number((number, one), now, lambda claim: gone)
    stands = not gone and now < one.until_ms <= now + 2 * LEASE_MS
    assert found == (None if stands else number + 1)


@given(moments, st.integers(0, 10**9))
def test_where_there_is_none_or_nonsense_one_may_be_created(now: int, number: int) -> None:
    assert next_number(None, now, lambda claim: False) == 0
    assert next_number((number, None), now, lambda claim: False) == number + 1


@given(made)
def test_no_claim_blocks_for_longer_than_two_leases_of_our_clock(one: Claim) -> None:
    now = one.until_ms + 1 - 2 * LEASE_MS
    if now > 0 and next_number((0, one), now, lambda claim: False) is None:
        assert next_number((0, one), now + 2 * LEASE_MS, lambda claim: False) == 1


@given(made)
def test_round_trip(one: Claim) -> None:
    assert claims.loads(claims.dumps(one)) == one


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        claims.loads(data)
