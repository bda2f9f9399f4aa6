"""Which requests are sent when, what answers add up to, and how an answer is read: the pure parts of the load bench."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.bench.chat import Row as TurnRow
from preread.bench.chat import last_to_second
from preread.bench.corpus import cut
from preread.bench.events import read
from preread.bench.load import (
    Answer,
    Block,
    State,
    arrivals_s,
    doubts,
    percentile,
    ratios,
    rotated,
    split,
    summed,
    table,
    zipf,
)
from preread.bench.peers import Beside, peers, started_by
from preread.errors import RemoteError, UsageError

TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def test_contexts_are_as_popular_as_zipfs_law_says_and_follow_from_the_seed() -> None:
    drawn = zipf(random.Random(3), 60_000, 4)
    assert drawn == zipf(random.Random(3), 60_000, 4) != zipf(random.Random(4), 60_000, 4)
    counts = Counter(drawn)
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    for rank in range(4):
        assert counts[rank] / 60_000 == pytest.approx(1 / (rank + 1) / harmonic, rel=0.05)


def test_arrivals_are_a_poisson_process() -> None:
    times_s = arrivals_s(random.Random(1), 20_000, 5.0)
    gaps = np.diff([0.0, *times_s])
    assert (gaps >= 0).all() and times_s == arrivals_s(random.Random(1), 20_000, 5.0)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(0.2, rel=0.05), "as irregular as an exponential distribution is"


@given(TIMES, st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-9)


@given(st.integers(1, 200), st.integers(1, 20))
def test_blocks_hold_every_request_once_and_are_alike(count: int, parts: int) -> None:
    runs = split(count, parts)
    assert [number for run in runs for number in run] == list(range(count))
    lengths = [len(run) for run in runs]
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1 and len(runs) == min(count, parts)


@given(st.integers(1, 6))
def test_each_system_is_equally_often_in_each_place(count: int) -> None:
    turns = [rotated(count, turn) for turn in range(count)]
    assert all(sorted(turn) == list(range(count)) for turn in turns)
    assert all(len({turn[place] for turn in turns}) == count for place in range(count))


def answered(ttft_s: float, gap_s: float = 0.1, tokens: int = 5, way: str = "") -> Answer:
    return Answer(ttft_s, gap_s, 0.2 * (tokens - 1), tokens, 100, way)


def blocked(system: str, state: State, seconds: float, *answers: Answer, rate: float | None = None) -> Block:
    return Block(system, state, None if rate else 2, rate, seconds, answers)


def test_rows_add_up_over_blocks() -> None:
    ours = (
        blocked("preread", "cold", 2.0, answered(1.0, way="streamed"), answered(3.0, 0.7, way="resident")),
        blocked("peer", "cold", 4.0, answered(9.0)),
        blocked("preread", "cold", 3.0, answered(2.0, way="resident")),
    )
    row, other = summed(ours, {"preread": 12.5})
    assert (row.requests, row.failed, row.rps, row.tokens_s) == (3, 0, 0.6, 3.0)
    assert (row.ttft_p50_s, row.ttft_p99_s, row.longest_gap_s) == (2.0, 2.98, 0.7)
    assert row.tpot_p50_s == pytest.approx(0.2)
    assert (row.kv_memory_mb, other.kv_memory_mb) == (12.5, None)
    assert row.ways == {"resident": 2, "streamed": 1} and other.ways == {}
    assert table([row, other], "", "").row_count == 2


def test_a_system_that_answers_nothing_has_a_row_without_times() -> None:
    (row,) = summed([Block("peer", "warm", 2, None, 1.0, (), ("refused", "refused"))], {})
    assert (row.requests, row.failed, row.rps, row.ttft_p99_s, row.longest_gap_s) == (2, 2, 0.0, None, None)
    assert table([row], "", "").row_count == 1


def test_ratios_are_to_the_best_peer_of_each_state() -> None:
    blocks = [
        blocked("preread", "cold", 1.0, answered(1.0)),
        blocked("slow", "cold", 10.0, answered(1.0)),
        blocked("fast", "cold", 2.0, answered(1.0)),
        blocked("preread", "warm", 1.0, answered(1.0)),
        blocked("fast", "warm", 0.5, answered(1.0)),
        blocked("preread", "warm", 5.0, answered(1.0), rate=0.2),
        blocked("preread", "cut", 4.0, answered(1.0)),
        blocked("slow", "cut", 8.0, answered(1.0)),
    ]
    found = ratios(summed(blocks, {}), 2, None)
    assert found == {"cold": 2.0, "warm": 0.5, "cut": 0.5}, "fast was not cold again: its cold row counts"
    alone = [block for block in blocks if block.system == "preread"]
    assert ratios(summed(alone, {}), 2, None) == {}


def test_who_fails_is_not_compared_with() -> None:
    ours, peer = blocked("preread", "cold", 1.0, answered(1.0)), blocked("peer", "cold", 1.0, answered(1.0))
    assert ratios(summed([ours, peer], {}), 2, None) == {"cold": 1.0}
    assert ratios(summed([ours, replace(peer, failures=("no",))], {}), 2, None) == {}
    assert ratios(summed([replace(ours, failures=("no",)), peer], {}), 2, None) == {}


def test_what_is_not_comparable_is_said() -> None:
    rows = summed([blocked("preread", "cold", 1.0, answered(1.0)), blocked("peer", "cold", 1.0, answered(1.0))], {})
    assert doubts(rows, 5) == []
    short, long = replace(rows[1], answer_tokens=4.5), replace(rows[1], prompt_tokens=101.0)
    assert "peer (cold) gave 4.5 tokens" in doubts([rows[0], short], 5)[0]
    assert "preread 100, peer 101" in doubts([rows[0], long], 5)[0]


def event(**fields: Any) -> str:
    return "data: " + json.dumps(fields)


def said(content: str | None, finish: str | None = None) -> str:
    return event(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": finish}])


def test_an_answer_is_read_as_its_client_saw_it() -> None:
    used = {"prompt_tokens": 30, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 20}}
    lines = [
        (1.0, ": ping"),
        (1.5, event(choices=[{"delta": {"role": "assistant", "content": None}}])),
        (2.0, said("a ")),
        (2.25, said("b")),
        (3.0, said("c")),
        (3.5, said(None, "length")),
        (3.6, event(choices=[], usage=used)),
        (3.7, "data: [DONE]"),
    ]
    reply = read(lines, 0.5)
    assert reply.text == "a bc" and (reply.prompt_n, reply.cache_n) == (10, 20)
    assert reply.seen == Answer(1.5, 0.75, 1.0, 4, 30)
    timings = {"prompt_n": 7, "cache_n": 23, "way": "mixed", "bytes_received": 9}
    timed = read([*lines[:-1], (3.7, event(choices=[], timings=timings))], 0.5)
    assert (timed.prompt_n, timed.cache_n) == (7, 23)
    assert (timed.seen.way, timed.seen.received_bytes) == ("mixed", 9)
    assert read([(2.0, said("", "stop"))], 0.5).seen.ttft_s == 1.5, "no token had a text"


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (said("b"), "broke off"),
        (event(error={"message": "too much to do", "code": 429}), "too much to do"),
        ("data: {", "no event"),
        ("data: [1]", "no event"),
        (event(choices={}), "no event"),
    ],
)
def test_an_answer_that_is_none_is_an_error(last: str, why: str) -> None:
    with pytest.raises(RemoteError, match=why):
        read([(1.0, said("a")), (2.0, last)], 0.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("choices", "delta", "content", "usage", "error", "timings")), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.lists(st.text(max_size=20) | JSON.map(lambda value: "data: " + json.dumps(value)), max_size=5))
def test_whatever_comes_is_read_or_refused(lines: list[str]) -> None:
    try:
        reply = read([(float(number), line) for number, line in enumerate(lines)], 0.0)
    except RemoteError as refused:
        assert str(refused)
    else:
        assert reply.seen.ttft_s >= 0 and reply.seen.tokens >= 0


@given(st.text("ab c", min_size=30, max_size=90), st.integers(1, 12))
def test_documents_have_exactly_so_many_tokens(text: str, wanted: int) -> None:
    def tokens(part: str) -> int:
        return 5 + len(part) // 3

    found = cut(text, tokens, 5 + wanted // 2)
    assert text.startswith(found) and tokens(found) == 5 + wanted // 2


def test_a_document_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(UsageError, match="exactly 7 tokens"):
        cut("abcdefghij" * 9, lambda part: len(part) // 2 * 2, 7)


@pytest.mark.parametrize("command", ["server --port 1", "server '{port}", ""])
def test_commands_without_a_port_are_refused(command: str, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="--peer-command"):
        peers(Beside(commands=(command,)), tmp_path, tmp_path)


def test_a_command_that_cannot_be_read_is_told_of_by_the_option_that_had_it(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="--server-command needs"):
        started_by("server --port 1", {}, tmp_path / "log", "--server-command")
    absent = started_by("absent {port} {slots}", {"{slots}": "x"}, tmp_path / "log", "--server-command")
    with pytest.raises(UsageError, match="--server-command: absent cannot be started"):
        asyncio.run(absent.fresh())


def test_peers_have_names_of_their_own(tmp_path: Any) -> None:
    beside = Beside(("http://127.0.0.1:1/v1/", "http://127.0.0.1:2"), ("/bin/run --port {port}", "run {port} {model}"))
    found = peers(beside, tmp_path, tmp_path)
    assert [peer.name for peer in found] == ["127.0.0.1:1", "127.0.0.1:2", "run (3)", "run (4)"]
    assert found[0].url == "http://127.0.0.1:1" and [peer.restarts for peer in found] == [False, False, True, True]
    with pytest.raises(UsageError, match="not an address"):
        peers(Beside(("nowhere",)), tmp_path, tmp_path)


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=9))
def test_the_last_turn_is_compared_with_the_second(ttft_s: list[float]) -> None:
    rows = [TurnRow("preread", turn, seconds, None, None, "") for turn, seconds in enumerate(ttft_s, 1)]
    assert last_to_second(rows, "preread") == round(ttft_s[-1] / ttft_s[1], 3)
    assert last_to_second(rows[:1], "preread") is None and last_to_second(rows, "peer") is None
