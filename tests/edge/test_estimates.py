import pytest

from preread.edge.estimates import Estimates


def test_nothing_is_known_of_a_link_before_a_transfer() -> None:
    estimates = Estimates(100.0)
    estimates.round_trip(0.02)
    assert estimates.link is None
    estimates.transferred(1000, 0.1)  # too small to tell a rate
    assert estimates.link is None


def test_the_round_trip_is_not_held_against_the_rate() -> None:
    estimates = Estimates(100.0)
    estimates.round_trip(0.05)
    estimates.transferred(1_000_000, 0.15)
    assert estimates.link is not None
    assert estimates.link.bytes_s == pytest.approx(10e6)
    assert estimates.link.rtt_s == 0.05


def test_recent_transfers_weigh_more_and_old_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("preread.edge.estimates.time.monotonic", lambda: now)
    estimates = Estimates(100.0)
    for rate in (1e6, 1e6, 9e6, 9e6, 9e6):
        estimates.transferred(int(rate), 1.0)
    assert estimates.link is not None and estimates.link.bytes_s > 7e6
    now += 31
    assert estimates.link is None


def test_prefill_rates_of_short_prompts_do_not_count() -> None:
    estimates = Estimates(100.0)
    estimates.prefilled(5, 1.0)
    assert estimates.prefill_tokens_s == 100
    estimates.prefilled(500, 1.0)
    assert 100 < estimates.prefill_tokens_s < 500
