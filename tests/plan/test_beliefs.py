from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.beliefs import CLOUD, DISK, Beliefs, Heard
from preread.plan.cost import Link
from preread.plan.flow import Flow
from preread.plan.health import FAILURES, Breaker
from preread.plan.task import Source

NOTHING = Beliefs.of_machine(100.0)
MIB = 2**20


def test_nothing_is_known_of_a_link_before_a_transfer() -> None:
    beliefs = NOTHING.answered(0.02)
    assert beliefs.link(0.0) is None and beliefs.last_link is None and beliefs.rtt_s == 0.02
    assert NOTHING.rtt_s > 0 and NOTHING.source(CLOUD, 0.0) == Source(None, NOTHING.rtt_s)


def test_recent_transfers_weigh_more_and_old_ones_are_not_trusted() -> None:
    beliefs = NOTHING.answered(0.05)
    for rate in (1e6, 1e6, 9e6, 9e6, 9e6):
        beliefs = beliefs.flowed(int(rate), rate, 1000.0)
    assert beliefs.bytes_s is not None and 7e6 < beliefs.bytes_s < 9e6
    assert beliefs.link(1029.0) == Link(beliefs.bytes_s, 0.05) and beliefs.link(1031.0) is None
    assert beliefs.last_link == Link(beliefs.bytes_s, 0.05)
    assert beliefs.source(CLOUD, 1029.0).bytes_s == beliefs.bytes_s and beliefs.source(CLOUD, 1031.0).bytes_s is None


@pytest.mark.parametrize(
    ("size_bytes", "bytes_s", "told"),
    [(40_000, 62_500.0, True), (40_000, 1e6, False), (10_000, 5_000.0, False), (70_000, 1e8, True)],
)
def test_a_slow_link_is_known_by_few_bytes_and_a_fast_one_by_many(size_bytes: int, bytes_s: float, told: bool) -> None:
    assert (NOTHING.flowed(size_bytes, bytes_s, 0.0).last_link is not None) == told


def test_what_was_measured_of_a_link_can_be_forgotten() -> None:
    assert NOTHING.flowed(MIB, 1e6, 0.0).without_link().last_link is None


def test_the_shortest_round_trips_count() -> None:
    beliefs = NOTHING.answered(0.1).answered(0.02)
    assert beliefs.rtt_s == 0.02
    assert 0.02 < beliefs.answered(0.1).rtt_s < 0.1


def heard(name: str = CLOUD, seen_bytes: int = 0, bytes_s: float = 0.0, asked: bool = True) -> Heard:
    """Of a source that brought so many bytes at this rate, and was believed to."""
    flow = Flow.begin(bytes_s or None, 0.02, 0.0, 1.0)
    if seen_bytes:
        flow.advance(seen_bytes, seen_bytes / bytes_s, busy=True)
    return Heard(name, flow, Breaker(), asked)


def test_a_load_teaches_how_each_of_its_sources_is() -> None:
    broken = Breaker(FAILURES, 5.0)
    after = NOTHING.loaded(
        [heard(DISK, MIB, 3e8), replace(heard(seen_bytes=MIB, bytes_s=2e6), breaker=broken)], 1.0, 9.0
    )
    assert after.link(10.0) == Link(pytest.approx(2e6), 0.0) and after.breaker == broken
    assert after.source(CLOUD, 10.0).breaker == broken
    assert after.source(DISK, 10.0) == replace(NOTHING.source(DISK, 0.0), bytes_s=pytest.approx(3e8))
    assert after.source("near:a", 10.0) == NOTHING.source("near:a", 0.0) != NOTHING.source(DISK, 0.0)
    assert after.answered(0.01).breaker == Breaker()


@pytest.mark.parametrize(
    ("lasted_s", "asked", "bytes_s"),
    [(5.0, True, 0.0), (0.3, True, 1e6), (5.0, False, 1e6)],
    ids=["silent", "too short to tell", "not asked"],
)
def test_a_link_that_was_silent_throughout_a_load_carries_nothing(lasted_s: float, asked: bool, bytes_s: float) -> None:
    before = NOTHING.flowed(MIB, 1e6, 0.0)
    assert before.loaded([heard(asked=asked)], lasted_s, 7.0).bytes_s == bytes_s


def test_what_was_believed_before_a_load_weighs_once() -> None:
    """The flow of a load begins with what was believed; what it has shown by itself is what is learnt."""
    flow = Flow.begin(1e6, 0.0, 0.0, 1.0)
    flow.asked(0.0)
    flow.advance(200_000, 0.05, busy=True)
    assert flow.shown_bytes_s == pytest.approx(4e6) and 1e6 < flow.bytes_s < 4e6
    after = NOTHING.flowed(MIB, 1e6, 0.0).loaded([Heard(CLOUD, flow, Breaker(), True)], 0.05, 1.0)
    assert after.bytes_s == pytest.approx(1e6 + 0.4 * 3e6)


def test_of_too_little_no_rate_is_told() -> None:
    flow = Flow.begin(1e6, 0.0, 0.0, 1.0)
    flow.advance(50_000, 0.001, busy=True)
    assert flow.shown_bytes_s == flow.bytes_s


def test_a_careful_start_shows_only_what_a_link_carries_at_least() -> None:
    """Over a long round trip, little under way at once comes slowly, however fast the link is; over a slow link not."""

    def first(bytes_s: float, believed: Beliefs = NOTHING) -> Beliefs:
        flow = Flow.begin(None, 0.1, 0.0, 1.0)
        flow.advance(int(bytes_s), 1.0, busy=True)
        return believed.loaded([Heard(CLOUD, flow, Breaker(), True)], 1.0, 1.0)

    fast, slow = first(2e6), first(1e5)
    assert fast.at_least and fast.bytes_s == pytest.approx(2e6)
    assert fast.flowed(MIB, 4e6, 2.0) == replace(fast, bytes_s=4e6, at_least=False, seen_s=2.0), "all of it is new"
    assert not slow.at_least and slow.bytes_s == pytest.approx(1e5)
    known = NOTHING.flowed(MIB, 4e6, 0.0)
    assert first(2e6, known) == replace(known, seen_s=1.0), "which was long ago, and is not contradicted"
    assert first(1e5, known).bytes_s == pytest.approx(4e6 - 0.4 * 3.9e6)


@given(st.lists(st.tuples(st.floats(1e3, 1e9), st.booleans()), min_size=1, max_size=9))
def test_what_is_believed_of_a_link_lies_within_what_it_has_shown(shown: list[tuple[float, bool]]) -> None:
    beliefs = NOTHING
    for bytes_s, limited in shown:
        beliefs = beliefs.flowed(MIB, bytes_s, 0.0, limited=limited)
    assert beliefs.bytes_s is not None
    rates = [bytes_s for bytes_s, _ in shown]
    assert min(rates) * (1 - 1e-9) <= beliefs.bytes_s <= max(rates) * (1 + 1e-9)


def test_decoding_is_learnt_by_rung() -> None:
    beliefs = NOTHING.decoded("q8", 1000, 0.0).decoded("q8", 0, 1.0)
    assert beliefs == NOTHING
    assert NOTHING.decode_bytes_s("lossless") > NOTHING.decode_bytes_s("b1.2")
    beliefs = NOTHING.decoded("q8", 1000, 1.0)
    assert beliefs.decode_bytes_s("q8") == 1000 and beliefs.decode_bytes_s("q4") == NOTHING.decode_bytes_s("q4")
    assert 1000 < beliefs.decoded("q8", 3000, 1.0).decode_bytes_s("q8") < 3000


def test_prefill_rates_of_short_prompts_do_not_count() -> None:
    beliefs = NOTHING.prefilled(5, 1.0).prefilled(500, 0.0)
    assert beliefs == NOTHING and beliefs.prefill.seconds(0, 1000) == pytest.approx(11, rel=0.1)
    assert 1 < beliefs.prefilled(500, 1.0).prefill.seconds(0, 1000) < 9


def took(token_s: float, position_s: float, tokens: int, start: int = 0) -> float:
    return tokens * (token_s + position_s * (start + tokens / 2))


def test_contexts_of_several_lengths_teach_what_positions_cost() -> None:
    beliefs = Beliefs.of_machine(60.0)
    for tokens in (300, 1000, 4000) * 3:
        beliefs = beliefs.prefilled(tokens, took(0.01, 4e-6, tokens))
    for tokens in (300, 2000, 6000):
        assert beliefs.prefill.seconds(0, tokens) == pytest.approx(took(0.01, 4e-6, tokens), rel=0.08)


def test_a_machine_that_becomes_slower_is_believed_within_a_few_requests() -> None:
    beliefs = NOTHING
    for seconds in (10.0, 10.0, 20.0, 20.0, 20.0):
        beliefs = beliefs.prefilled(1000, seconds)
    assert beliefs.prefill.seconds(0, 1000) > 15


def test_a_prompt_is_expected_to_take_about_what_was_measured_in_tiles() -> None:
    """Of 32 tokens with Qwen2.5-0.5B behind 300, 1,000 and 4,000, where contexts begin at 340 tokens a second."""
    for position, seconds in ((300, 0.113), (1000, 0.122), (4000, 0.157)):
        assert Beliefs.of_machine(340.0).prompt_s(position, 32) == pytest.approx(seconds, rel=0.2)


# The first as measured with Qwen2.5-0.5B and llama.cpp's own attention, the second in tiles on another machine.
@pytest.mark.parametrize(
    ("rate", "took_s"), [(97.0, {300: 0.36, 1000: 0.56, 4000: 1.33}), (340.0, {300: 0.113, 1000: 0.122, 4000: 0.157})]
)
def test_prompts_behind_long_contexts_are_learnt_apart_from_contexts(rate: float, took_s: dict[int, float]) -> None:
    beliefs = Beliefs.of_machine(rate)
    before = beliefs.prefill.seconds(0, 4000)
    for _ in range(3):
        for position, seconds in took_s.items():
            beliefs = beliefs.prompted(position, 32, seconds)
    for position, seconds in took_s.items():
        assert beliefs.prompt_s(position, 32) == pytest.approx(seconds, rel=0.1)
    assert beliefs.prefill.seconds(0, 4000) == before
    assert beliefs.prompt_s(0, 128) == beliefs.prefill.seconds(0, 128)  # long prompts are computed as contexts are
    assert beliefs.prompted(0, 128, 9.0).prefill != beliefs.prefill


def test_very_short_prompts_tell_nothing() -> None:
    assert NOTHING.prompted(1000, 2, 3.0) == NOTHING == NOTHING.prompted(1000, 32, 0.0)


@given(st.lists(st.tuples(st.integers(8, 8000), st.integers(0, 8000), st.floats(1e-4, 1e3)), min_size=1, max_size=30))
def test_whatever_is_measured_computing_takes_time_and_later_tokens_no_less(
    measured: list[tuple[int, int, float]],
) -> None:
    beliefs = NOTHING
    for tokens, position, seconds in measured:
        beliefs = beliefs.prefilled(tokens, seconds).prompted(position, tokens, seconds)
    assert 0 < beliefs.prefill.seconds(0, 100) <= beliefs.prefill.seconds(1000, 100) < float("inf")
    assert 0 < beliefs.prompt_s(0, 16) <= beliefs.prompt_s(4000, 16) < float("inf")
