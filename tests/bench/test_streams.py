"""The benches of many streams, and of one beside a load, run through. How they judge is pure."""

import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from preread.bench import gap, streams
from preread.bench.deployment import Setting
from preread.bench.events import Reply
from preread.bench.gap import row
from preread.bench.load import Answer
from preread.bench.reference import Right
from preread.bench.streams import compared

QUIET = Console(quiet=True)
ODDS: Mapping[str, float] = {"a": -1.0, "b": -1.25, "c": -3.0}


def reply(text: str, ttft_s: float = 0.5, gaps_s: tuple[float, ...] = (0.1, 0.1, 0.1, 0.3)) -> Reply:
    seen = Answer(ttft_s, max(gaps_s, default=0.0), sum(gaps_s), len(text), 10)
    return Reply(seen, text, None, None, tuple(text), (), gaps_s)


def test_an_answer_may_differ_from_where_two_tokens_are_as_likely_and_nowhere_else() -> None:
    right = Right("aaa", ("a", "a", "a"), (ODDS, ODDS, ODDS))
    assert right.fork_nats("aaa") is None
    assert right.fork_nats("aba") == 0.25
    assert right.fork_nats("axa") == math.inf
    answers = [(0, reply(text)) for text in ("aaa", "aba", "aac", "aax", "aa", "aaa")]
    found = compared([right], answers)
    assert (found.same, found.forked, found.wrong) == (2, 1, 3), "another token, an unlikely one, and an end too soon"
    assert found.most_fork_nats == 0.25


def test_a_round_is_judged_by_the_streams_own_pace() -> None:
    judged = row(reply("aaaaa"), reply("b", 0.25), 0.5)
    assert (judged.tpot_p50_s, judged.longest_gap_s, judged.bound_s, judged.counts) == (0.1, 0.3, 0.4, True)
    assert not row(reply("aaaaa"), reply("b", 0.75), 0.5).counts, "the stream had ended before the load did"


@pytest.mark.long
def test_streams_are_those_of_one_user_alone(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting = Setting(tiny_model, "tiny", 80, ("lossless",))
    options = streams.Options(setting, users=6, seconds=1.0, contexts=2, questions=5, answer_tokens=8)
    told: dict[str, Any] = asyncio.run(streams.bench(options, QUIET, lambda *_: None))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    assert told["answers"] >= 6 and told["failed"] == told["wrong"] == 0
    assert told["answers"] == told["same"] + told["forked"]
    assert told["peak_mib"] >= told["last_mib"] > 0


@pytest.mark.long
def test_a_stream_goes_on_beside_a_load(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = gap.Options(Setting(tiny_model, "tiny", 200, ("lossless",), mbps=20), rounds=2, stream_tokens=120)
    told: dict[str, Any] = asyncio.run(gap.bench(options, QUIET, lambda *_: None))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    assert len(told["rows"]) == 2 and all(0 < one["tpot_p50_s"] <= one["longest_gap_s"] for one in told["rows"])
