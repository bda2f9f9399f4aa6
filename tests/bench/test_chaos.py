"""A run of random faults: all answers are right. How fast they come is for the bench to say, and not for a test."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from preread.bench import chaos
from preread.bench.chaos import Options, bench
from preread.bench.faults import Document, schedule
from preread.bench.reference import Reference

QUIET = Console(quiet=True)


def options(smollm: Path, requests: int) -> Options:
    return Options(smollm, "tiny", requests, seed=4, context_tokens=(150, 400), answer_tokens=3, shelf_mib=0)


@pytest.mark.timeout(600)  # a busy machine is slow
def test_no_answer_of_300_is_wrong_or_missing_whatever_breaks(smollm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = asyncio.run(bench(options(smollm, 300), Console(width=200), lambda *_: None))
    shown = capsys.readouterr().out
    assert (told["requests"], told["wrong"], told["errors"]) == (300, 0, 0), shown
    faults, ways = told["faults"], told["ways"]
    assert isinstance(faults, dict) and isinstance(ways, dict)
    expected = {turn.episode.kind for turn in schedule(4, 300, 150, 400)}
    assert faults.keys() == expected and len(expected) >= 12
    assert ways["computed"] > 10 and ways["resident"] > 10, ways
    assert sum(ways.values()) - ways["computed"] - ways["resident"] > 10, "some come from the cloud"
    assert told["retried"], "the edge was killed in the middle of a request"


def test_a_wrong_answer_is_found_and_can_be_played_again(
    smollm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Reference.right

    def other(self: Reference, name: str, number: int) -> dict[int, str]:
        return {version: text + "?" for version, text in right(self, name, number).items()}

    monkeypatch.setattr(Reference, "right", other)
    told = asyncio.run(bench(replace(options(smollm, 40), only=30), Console(width=400), lambda *_: None))
    assert (told["requests"], told["wrong"], told["ok_fraction"]) == (1, 1, 0.0)
    assert "request 30 wrong" in (out := capsys.readouterr().out) and "--seed 4 --only 30" in out


def test_an_error_and_a_late_answer_are_found(smollm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(document: Document, number: int) -> dict[str, object]:
        return {"context": "nowhere", "messages": [{"role": "user", "content": "?"}]}

    monkeypatch.setattr(chaos, "asked", unknown)
    told = asyncio.run(bench(options(smollm, 1), QUIET, lambda *_: None))
    assert (told["errors"], told["late"]) == (1, 0)
    monkeypatch.undo()
    monkeypatch.setattr(chaos, "_bound_s", lambda local_s: local_s / 1e6)
    told = asyncio.run(bench(options(smollm, 1), QUIET, lambda *_: None))
    assert (told["errors"], told["late"]) == (0, 1)
