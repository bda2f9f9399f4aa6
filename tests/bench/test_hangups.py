"""Killed clients, in small: nothing of them stays. And the judge finds what would stay, or go on."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from preread.bench.aftermath import MOST_TOKENS, Kind, Phase, Reading, aftermath, failings, phase, reading
from preread.bench.hangups import Options, bench, tell
from preread.edge.core import Stats
from preread.edge.metrics import Memory, Metrics
from preread.errors import RemoteError
from preread.plan.share import STEP_TOKENS

START = Reading(0, 0, 0, free_sequences=9, context_cells=400, other_cells=0, answer_tokens=10, read_tokens=100)
LAST = replace(START, running=2, free_sequences=7, other_cells=60, answer_tokens=50, read_tokens=900)
AFTER = replace(LAST, running=0, free_sequences=8, context_cells=800, other_cells=0)


@pytest.mark.timeout(300)  # a busy machine is slow
@pytest.mark.long
def test_clients_that_are_killed_leave_nothing_behind(smollm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = asyncio.run(bench(Options(smollm, "tiny", times=12, seed=1), lambda *_: None))
    expected = {"times": 12, "went_on": 0, "leaked_cells": 0, "leaked_sequences": 0, "late": 0, "same_answer": True}
    assert {key: told[key] for key in expected} == expected
    assert told["bench"] == "hangups" and '"bench": "hangups"' in capsys.readouterr().out


def test_metrics_are_read_as_an_edge_writes_them() -> None:
    cells = {"contexts": 5, "conversations": 20, "requests": 1, "free": 99}
    tokens = {"prompt": 1, "context": 20, "answer": 7, "wrong_guess": 3}
    metrics = Metrics(lambda: Stats(1, 2, 3, 4, cells, 0, 11, tokens), lambda: Memory(0, 0, {"cloud": 12}))
    assert reading(metrics.text().decode()) == Reading(1, 2, 3, 4, 5, 21, answer_tokens=7, read_tokens=21)


@pytest.mark.parametrize(
    ("told", "kind", "seen", "answering", "struck"),
    [
        (b"ste", "plain", AFTER, 0, "over"),
        (b"st", "about", replace(LAST, loading=1, waiting=1), 1, "decode"),
        (b"s", "about", replace(LAST, loading=1, waiting=1), 1, "loading"),
        (b"s", "plain", replace(LAST, loading=1, waiting=2), 1, "queued"),
        (b"s", "long", LAST, 1, "prefill"),
        (b"s", "long", LAST, 2, "arriving"),
    ],
    ids=str,
)
def test_what_a_client_was_killed_in(told: bytes, kind: Kind, seen: Reading, answering: int, struck: Phase) -> None:
    assert phase(told, kind, seen, answering) == struck


def test_contexts_may_stay_and_what_had_begun_may_end() -> None:
    seen = replace(AFTER, answer_tokens=50 + 2 * MOST_TOKENS, read_tokens=900 + STEP_TOKENS)
    found = aftermath(START, LAST, seen, 2, 400)
    assert found.over and not found.went_on and failings([found], same_answer=True) == []
    assert (found.answer_tokens, found.read_tokens) == (2 * MOST_TOKENS, STEP_TOKENS)


@pytest.mark.parametrize(
    ("seen", "failing"),
    [
        (replace(AFTER, answer_tokens=51 + 2 * MOST_TOKENS), "1 groups for which too much was computed"),
        (replace(AFTER, read_tokens=901 + STEP_TOKENS), "1 groups for which too much was computed"),
        (replace(AFTER, other_cells=1), "1 groups that left cells"),
        (replace(AFTER, context_cells=801), "1 groups that left cells"),
        (replace(AFTER, context_cells=1200, free_sequences=7), "1 groups that left cells"),
        (replace(AFTER, free_sequences=7), "1 groups that left sequences"),
        (replace(AFTER, free_sequences=9), "1 groups that left sequences"),
        (replace(AFTER, waiting=1), "1 groups that were not over in time"),
        (replace(AFTER, loading=1), "1 groups that were not over in time"),
    ],
    ids=str,
)
def test_what_goes_on_or_stays_is_found(
    seen: Reading, failing: str, capsys: pytest.CaptureFixture[str], smollm: Path
) -> None:
    clean, found = aftermath(START, LAST, AFTER, 2, 400), aftermath(START, LAST, seen, 2, 400)
    assert failings([clean, found], same_answer=True) == [failing]
    with pytest.raises(RemoteError, match=failing):
        tell(Options(smollm, "tiny"), Counter({"decode": 2}), [clean, found], True, 1.0)
    assert '"bench": "hangups"' in capsys.readouterr().out


def test_another_answer_than_before_is_found() -> None:
    assert failings([aftermath(START, LAST, AFTER, 2, 400)], same_answer=False) == ["1 other answer than before"]
