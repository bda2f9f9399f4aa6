import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_recent_transfers_weigh_more_and_old_ones_are_forgotten() -> None:
    now = 1000.0
    estimates = Estimates(100.0, clock=lambda: now)
    for rate in (1e6, 1e6, 9e6, 9e6, 9e6):
        estimates.transferred(int(rate), 1.0)
    assert estimates.link is not None and estimates.link.bytes_s > 7e6
    now += 31
    assert estimates.link is None


@pytest.mark.parametrize(
    ("size_bytes", "bytes_s", "told"),
    [(40_000, 62_500.0, True), (40_000, 1e6, False), (10_000, 5_000.0, False), (70_000, 1e8, True)],
)
def test_a_slow_link_is_known_by_few_bytes_and_a_fast_one_by_many(size_bytes: int, bytes_s: float, told: bool) -> None:
    estimates = Estimates(100.0)
    estimates.flowed(size_bytes, bytes_s)
    assert (estimates.link is not None) == told


def test_what_was_measured_of_a_link_can_be_forgotten() -> None:
    estimates = Estimates(100.0)
    estimates.transferred(1_000_000, 1.0)
    estimates.forget_link()
    assert estimates.link is None


def test_prefill_rates_of_short_prompts_do_not_count() -> None:
    estimates = Estimates(100.0)
    estimates.prefilled(5, 1.0)
    assert estimates.prefill.seconds(0, 1000) == pytest.approx(11, rel=0.1)
    estimates.prefilled(500, 1.0)
    assert 1 < estimates.prefill.seconds(0, 1000) < 9


def took(token_s: float, position_s: float, tokens: int, start: int = 0) -> float:
    return tokens * (token_s + position_s * (start + tokens / 2))


def test_contexts_of_several_lengths_teach_what_positions_cost() -> None:
    estimates = Estimates(60.0)
    for tokens in (300, 1000, 4000) * 3:
        estimates.prefilled(tokens, took(0.01, 4e-6, tokens))
    for tokens in (300, 2000, 6000):
        assert estimates.prefill.seconds(0, tokens) == pytest.approx(took(0.01, 4e-6, tokens), rel=0.08)


def test_a_machine_that_becomes_slower_is_believed_within_a_few_requests() -> None:
    estimates = Estimates(100.0)
    for seconds in (10.0, 10.0, 20.0, 20.0, 20.0):
        estimates.prefilled(1000, seconds)
    assert estimates.prefill.seconds(0, 1000) > 15


def test_a_prompt_is_expected_to_take_about_what_was_measured_in_tiles() -> None:
    """Of 32 tokens with Qwen2.5-0.5B behind 300, 1,000 and 4,000, where contexts begin at 340 tokens a second."""
    for position, seconds in ((300, 0.113), (1000, 0.122), (4000, 0.157)):
        assert Estimates(340.0).prompt_s(position, 32) == pytest.approx(seconds, rel=0.2)


# The first as measured with Qwen2.5-0.5B and llama.cpp's own attention, the second in tiles on another machine.
@pytest.mark.parametrize(
    ("rate", "took_s"), [(97.0, {300: 0.36, 1000: 0.56, 4000: 1.33}), (340.0, {300: 0.113, 1000: 0.122, 4000: 0.157})]
)
def test_prompts_behind_long_contexts_are_learnt_apart_from_contexts(rate: float, took_s: dict[int, float]) -> None:
    estimates = Estimates(rate)
    before = estimates.prefill.seconds(0, 4000)
    for _ in range(3):
        for position, seconds in took_s.items():
            estimates.prompted(position, 32, seconds)
    for position, seconds in took_s.items():
        assert estimates.prompt_s(position, 32) == pytest.approx(seconds, rel=0.1)
    assert estimates.prefill.seconds(0, 4000) == before
    assert estimates.prompt_s(0, 128) == estimates.prefill.seconds(0, 128)  # long prompts are computed as contexts are


def test_very_short_prompts_tell_nothing() -> None:
    estimates = Estimates(100.0)
    before = estimates.prompt_s(1000, 32)
    estimates.prompted(1000, 2, 3.0)
    assert estimates.prompt_s(1000, 32) == before


@given(st.lists(st.tuples(st.integers(8, 8000), st.integers(0, 8000), st.floats(1e-4, 1e3)), min_size=1, max_size=30))
def test_whatever_is_measured_computing_takes_time_and_later_tokens_no_less(
    measured: list[tuple[int, int, float]],
) -> None:
    estimates = Estimates(100.0)
    for tokens, position, seconds in measured:
        estimates.prefilled(tokens, seconds)
        estimates.prompted(position, tokens, seconds)
    assert 0 < estimates.prefill.seconds(0, 100) <= estimates.prefill.seconds(1000, 100) < float("inf")
    assert 0 < estimates.prompt_s(0, 16) <= estimates.prompt_s(4000, 16) < float("inf")
