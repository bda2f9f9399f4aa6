"""A run of random faults: all answers are right. How fast they come is for the bench to say, and not for a test."""

import asyncio
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console

from preread.bench import chaos, verdicts
from preread.bench.chaos import Options, bench
from preread.bench.crowd import Query
from preread.bench.faults import Turn, schedule
from preread.bench.processes import Server
from preread.bench.reference import Reference, Right
from preread.bench.verdicts import Outcome, Said

QUIET = Console(quiet=True)


def options(smollm: Path, requests: int, seed: int = 4) -> Options:
    return Options(smollm, "tiny", requests, seed=seed, context_tokens=(100, 250), answer_tokens=3, offload_mib=0)


# How many answers are computed, streamed or asked for again is a matter of time, and not tested.
@pytest.mark.long
@pytest.mark.parametrize(("requests", "seed", "kinds"), [(30, 231, 9), (300, 4, 12)], ids=str)
def test_no_answer_is_wrong_or_missing_whatever_breaks(
    smollm: Path, capsys: pytest.CaptureFixture[str], requests: int, seed: int, kinds: int
) -> None:
    told = asyncio.run(bench(options(smollm, requests, seed), Console(width=200), lambda *_: None))
    shown = capsys.readouterr().out
    assert (told["requests"], told["wrong"], told["errors"]) == (requests, 0, 0), shown
    faults, ways = told["faults"], told["ways"]
    assert isinstance(faults, dict) and isinstance(ways, dict)
    expected = {turn.episode.kind for turn in schedule(seed, requests, 100, 250)}
    assert faults.keys() == expected and len(expected) >= kinds and {"edge-kill", "cloud-kill"} < expected
    assert sum(ways.values()) == requests and "none" not in ways


@pytest.mark.long
def test_a_wrong_answer_is_found_and_can_be_played_again(
    smollm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Reference.right

    def other(self: Reference, name: str, number: int) -> dict[int, Right]:
        return {version: replace(one, text=f"{one.text}?") for version, one in right(self, name, number).items()}

    monkeypatch.setattr(Reference, "right", other)
    told = asyncio.run(bench(replace(options(smollm, 40), only=30), Console(width=400), lambda *_: None))
    assert (told["requests"], told["wrong"], told["ok_fraction"]) == (1, 1, 0.0)
    assert "turn 30, client 0 wrong" in (out := capsys.readouterr().out)
    assert "--requests 40 --clients 1 --seed 4 --only 30" in out


@pytest.mark.long
def test_an_error_and_a_late_answer_are_found(smollm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = chaos.asked
    asked = iter([{"context": "nowhere", "messages": [{"role": "user", "content": "?"}]}])
    monkeypatch.setattr(chaos, "asked", lambda document, number: next(asked, None) or right(document, number))
    monkeypatch.setattr(verdicts, "bound_s", lambda local_s: local_s / 1e6)
    told = asyncio.run(bench(options(smollm, 2), QUIET, lambda *_: None))
    assert (told["errors"], told["late"]) == (1, 1)


def test_many_ask_at_once_and_none_is_answered_wrongly(
    smollm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill, replaced, *_ = schedule(478, 5, 100, 250)
    assert (kill.episode.kind, kill.after_s, replaced.replaces is not None) == ("edge-kill", 0.0, True)
    newest, judged = dict[tuple[int, str], int](), chaos.judged

    def noted(turn: Turn, query: Query, said: Said, right: dict[int, Right], local_s: float, nats: float) -> Outcome:
        newest[turn.index, query.document.name] = max(right)
        return judged(turn, query, said, right, local_s, nats)

    monkeypatch.setattr(chaos, "judged", noted)
    chosen = replace(options(smollm, 36, 478), clients=8)
    told = asyncio.run(bench(chosen, Console(width=200), lambda *_: None))
    shown = capsys.readouterr().out
    assert (told["requests"], told["clients"], told["wrong"], told["errors"]) == (36, 8, 0, 0), shown
    assert told["retried"] == 8, "all were cut off by the kill, and asked again"
    assert newest[1, replaced.document.name] == 1, "who asks meanwhile may be told of the new text"


@pytest.mark.long
def test_an_edge_that_is_stuck_is_ended_once_and_one_that_ends_by_itself_is_an_error(
    smollm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abort, post, aborted, calls = Server.abort, httpx2.AsyncClient.post, list[Server](), count()

    async def counted(self: Server) -> list[str]:
        aborted.append(self)
        return await abort(self)

    async def broken(self: httpx2.AsyncClient, *args: Any, **named: Any) -> httpx2.Response:
        if (call := next(calls)) < 3:
            raise httpx2.ReadTimeout("nothing came")
        if call == 3:
            aborted[0].kill()
        return await post(self, *args, **named)

    monkeypatch.setattr(Server, "abort", counted)
    monkeypatch.setattr(httpx2.AsyncClient, "post", broken)
    told = asyncio.run(bench(replace(options(smollm, 9), clients=3), QUIET, lambda *_: None))
    assert (told["requests"], told["errors"], told["wrong"], told["retried"]) == (9, 6, 0, 0)
    assert len(aborted) == 1


def test_another_answer_is_right_only_from_where_rounding_may_decide() -> None:
    right = Right("ab", ("a", "b"), ({"a": -1.0, "x": -1.2}, {"b": -0.1, "y": -3.0}))
    assert right.agrees("ab", ("a", "b")) and right.agrees("xz", ("x", "z"))
    assert not right.agrees("ay", ("a", "y")), "that was far from likely"
    assert not right.agrees("zb", ("z", "b")) and not right.agrees("abc", ("a", "b", "c"))
    assert not right.agrees("a", ("a",))
    assert right.agrees("ay", ("a", "y"), 3.0), "a model with which rounding decides that much"


def test_what_rounding_decides_is_how_far_two_computations_of_the_same_are_apart() -> None:
    right = Right("ab", ("a", "b"), ({"a": -1.0, "x": -1.2, "far": -9.0}, {"b": -0.1, "y": -0.6}))
    same = Right("", ("a", "b"), ({"a": -1.0, "x": -1.3, "far": -7.0}, {"b": -0.1, "y": -0.4}))
    assert right.apart_nats(same) == pytest.approx([-0.1, 0.2])
    forked = Right("", ("x", "b"), ({"x": -1.0, "a": -1.1}, {"b": -0.1, "y": -9.0}))
    assert right.apart_nats(forked) == pytest.approx([0.3]), "what comes after a fork is another answer"
    assert right.apart_nats(Right("", ("z",), ({"z": -0.1},))) == []
