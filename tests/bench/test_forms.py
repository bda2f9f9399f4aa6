"""The bench of answers that have to be JSON: every schema can be kept to, and a fault would be seen."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from preread.bench.forms import TASKS, _fault, bench
from preread.errors import UsageError


@pytest.mark.long
def test_a_model_that_knows_nothing_keeps_to_every_schema(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(bench(tiny_model, "tiny", len(TASKS), 64, 1, 3, Console(quiet=True)))
    told = json.loads(capsys.readouterr().out)
    assert told["validity"]["valid"] == told["validity"]["answers"] == len(TASKS), told["validity"]
    assert [row["guesses_and_forced_tokens"] for row in told["cost"]] == ["off", "on"]
    assert all(row["ratio"] > 0 for row in told["cost"])


def test_what_is_wrong_with_an_answer_is_seen() -> None:
    cat = TASKS[0].schema
    assert _fault('{"name": "Tom", "age": 3, "tags": []}', cat) == ""
    assert "no JSON" in _fault('{"name": "Tom", "age": 3, "tags": [', cat)
    assert "required" in _fault("{}", cat) and _fault('{"name": 1, "age": 3, "tags": []}', cat)


def test_where_answers_cannot_be_checked_that_is_said_first(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(UsageError, match="preread\\[bench\\]"):
        asyncio.run(bench(tiny_model, "tiny", 1, 16, 1, 0, Console(quiet=True)))
