"""What is said about a request of a chaos run, from what came back and what is right."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.bench.crowd import Query
from preread.bench.faults import Document, schedule
from preread.bench.reference import Right
from preread.bench.verdicts import Outcome, Said, Tally, awake_s, bound_s, judged, prompt_tokens

TURN = next(schedule(1, 1, 20, 90))
OLD, NEW = (Right(text, (text,), ({text: -0.1},)) for text in ("old", "new"))
TIMES = st.floats(0, 1e3)


def outcome(said: Said, local_s: float = 1.0) -> Outcome:
    return judged(TURN, Query(3, Document("c0", 1, 50, 0.0), 2), said, {1: OLD, 2: NEW}, local_s, 0.5)


def said(text: str, version: int = 1, seconds: float = 0.1) -> Said:
    return Said(version, seconds, text, (text,), 60, {"way": "resident", "reason": None})


def test_an_answer_about_any_text_of_the_name_is_right_and_stale_if_that_was_replaced_when_it_was_asked() -> None:
    assert [outcome(said("old", 1)).verdict, outcome(said("new", 1)).verdict] == ["ok", "ok"]
    assert not outcome(said("old", 1)).stale, "that is what was published"
    assert not outcome(said("new", 1)).stale, "it was replaced meanwhile"
    assert not outcome(said("new", 2)).stale and outcome(said("old", 2)).stale


def test_an_answer_is_forked_that_is_right_though_the_reference_gave_another() -> None:
    right = {1: Right("old", ("old",), ({"old": -0.7, "odd": -1.0},))}
    query = Query(3, Document("c0", 1, 50, 0.0), 2)
    within, beyond = (judged(TURN, query, said("odd"), right, 1.0, nats) for nats in (0.5, 0.2))
    assert (within.verdict, within.forked) == ("ok", True) and (beyond.verdict, beyond.forked) == ("wrong", False)
    assert not outcome(said("old")).forked


def test_a_wrong_answer_says_what_is_right() -> None:
    wrong = outcome(said("bad", 2))
    assert (wrong.verdict, wrong.stale, wrong.client, wrong.way) == ("wrong", False, 3, "resident")
    assert "'bad'" in wrong.reason and "'old'" in wrong.reason and "'new'" in wrong.reason


def test_no_answer_is_an_error_however_long_it_took() -> None:
    failed = outcome(Said(1, 60.0, failure="gone", tries=2))
    assert (failed.verdict, failed.reason, failed.tries, failed.stale) == ("error", "gone", 2, False)


def test_late_is_what_takes_half_more_than_all_and_half_a_second() -> None:
    assert bound_s(2.0) == pytest.approx(3.5)
    assert outcome(said("old", seconds=3.5), 2.0).verdict == "ok"
    assert outcome(said("old", seconds=3.51), 2.0).verdict == "late"
    assert outcome(said("bad", seconds=3.51), 2.0).verdict == "wrong"


def test_all_prompts_of_a_turn_may_have_to_be_computed_before_one_is_answered() -> None:
    query = Query(0, Document("c0", 1, 50, 0.0), 2)
    assert prompt_tokens((query, query, query), (said("old"), Said(1, 0.0, failure="gone"), said("bad"))) == 170


def test_time_in_which_the_edge_is_stopped_is_not_counted() -> None:
    assert awake_s(1.0, 5.0, (2.0, 4.0)) == 2.0
    assert awake_s(3.0, 5.0, (2.0, 4.0)) == 1.0, "it began meanwhile"
    assert awake_s(1.0, 3.0, (2.0, math.inf)) == 1.0, "it came from what had been sent before"
    assert awake_s(4.0, 5.0, (2.0, 4.0)) == awake_s(0.0, 1.0, (2.0, 4.0)) == 1.0
    assert awake_s(1.0, 5.0, (math.inf, math.inf)) == 4.0


@given(st.tuples(TIMES, TIMES).map(sorted), st.tuples(TIMES, TIMES).map(sorted))
def test_nothing_takes_less_than_no_time_or_longer_than_it_took(span: list[float], asleep: list[float]) -> None:
    assert -1e-9 <= awake_s(span[0], span[1], (asleep[0], asleep[1])) <= span[1] - span[0]


def test_a_tally_counts_each_request() -> None:
    tally = Tally()
    for one in (said("old"), said("old", 2), said("bad"), said("old", seconds=9.0), replace(said("new"), tries=2)):
        tally.take(outcome(one))
    summary = tally.summary()
    assert {name: summary[name] for name in ("requests", "wrong", "errors", "late", "stale", "retried")} == {
        "requests": 5, "wrong": 1, "errors": 0, "late": 1, "stale": 1, "retried": 1
    }  # fmt: skip
    assert (summary["ok_fraction"], summary["ways"]) == (0.6, {"resident": 5})
