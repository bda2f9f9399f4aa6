from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import UsageError
from preread.testing.toxics import Link
from preread.testing.traces import TRACES, Step, Trace, capacity_bytes, since, trace_from_json

NAMES = st.sampled_from(sorted(TRACES))
SEEDS = st.integers(0, 1000)
SECONDS = st.floats(0.5, 200)
STEPS = st.lists(
    st.builds(Step, st.floats(0.01, 5), st.builds(Link, st.floats(0, 100), st.floats(0, 100))), min_size=1, max_size=9
).map(tuple)


@given(NAMES, SEEDS, SECONDS)
def test_a_trace_follows_from_its_seed_and_is_as_long_as_asked(name: str, seed: int, seconds: float) -> None:
    trace = TRACES[name](seed, seconds)
    assert trace == TRACES[name](seed, seconds)
    assert sum(step.seconds for step in trace) == pytest.approx(seconds, abs=0.01)


@given(NAMES, SEEDS)
def test_a_longer_trace_begins_like_a_shorter_one(name: str, seed: int) -> None:
    short, long = TRACES[name](seed, 20), TRACES[name](seed, 60)
    assert capacity_bytes(long, 20) == pytest.approx(capacity_bytes(short, 20), rel=1e-6, abs=1)


@pytest.mark.parametrize("name", sorted(TRACES))
def test_rates_are_those_of_such_links_and_there_are_outages(name: str) -> None:
    trace = TRACES[name](7, 3600)
    mean_mbps = capacity_bytes(trace, 3600) / 3600 * 8e-6
    black_s = sum(step.seconds for step in trace if step.link.mbps == 0)
    assert 10 < mean_mbps < 120
    assert 0.001 < black_s / 3600 < 0.2
    assert TRACES[name](8, 60) != TRACES[name](7, 60)


@given(STEPS, st.floats(0, 20), st.floats(0, 20))
def test_what_is_left_carries_the_rest(trace: Trace, before_s: float, after_s: float) -> None:
    whole_s = sum(step.seconds for step in trace)
    before_s, after_s = min(before_s, whole_s * 0.9), min(after_s, whole_s * 0.05)
    rest = since(trace, before_s)
    both = capacity_bytes(trace, before_s) + capacity_bytes(rest, after_s)
    assert both == pytest.approx(capacity_bytes(trace, before_s + after_s), rel=1e-6, abs=10)


def test_after_its_end_a_trace_stays_as_it_ended() -> None:
    trace = (Step(1, Link(mbps=5)), Step(2, Link(mbps=7)))
    assert since(trace, 100) == (Step(2, Link(mbps=7)),)


@given(STEPS)
def test_traces_survive_json(trace: Trace) -> None:
    assert trace_from_json([[step.seconds, asdict(step.link)] for step in trace]) == trace


@pytest.mark.parametrize("value", [[], {}, [1], [[1]], [[0, {}]], [["1", {}]], [[1, {"mbps": -1}]], [[1, {"x": 1}]]])
def test_what_is_no_trace_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        trace_from_json(value)
