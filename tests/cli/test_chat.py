"""ask and run with a model of random weights and a real cloud, in this process."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from preread.edge import residents
from preread.plan.beliefs import Beliefs
from preread.testing.beliefs import slow_machine

Run = Any
QUESTION = "Which code has the pump?"


@pytest.fixture(autouse=True)
def beliefs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be streamed is: right after a start the cloud is given a part of the time that computing takes."""
    slow = slow_machine()
    monkeypatch.setattr(Beliefs, "of_machine", lambda _: slow)
    monkeypatch.setattr(residents, "_MOST_SETTLE_S", 60.0)
    monkeypatch.setattr(residents, "_SETTLE_SHARE", float("inf"))


@pytest.fixture(autouse=True)
def own_cache(preread: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setenv("PREREAD_MODEL", str(tiny_model))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_ask_streams_and_computes_the_same_answer(preread: Run, cloud: Any) -> None:
    asked = [
        "ask",
        QUESTION,
        "--context",
        "manual",
        "--cloud",
        cloud.url,
        "--rung",
        "lossless",
        "-n",
        "8",
        "-c",
        "1024",
    ]
    streamed = preread(*asked)
    assert streamed.code == 0 and streamed.out.strip()
    assert "tokens streamed, lossless" in streamed.err and "tokens/s" in streamed.err
    computed = preread(*asked, "--local", "--json")
    told = json.loads(computed.out)
    assert told["text"] == streamed.out.removesuffix("\n")
    assert told["timings"]["way"] == "computed" and told["timings"]["bytes_received"] == 0


def test_run_answers_a_pipe_line_after_line_and_survives_errors(preread: Run, cloud: Any) -> None:
    typed = f'{QUESTION}\n\n/context nope\n"""And\nthe fan?\n"""\n/show\n/clear\n/what\n/bye\nnever asked\n'
    arguments = ["--context", "manual", "--cloud", cloud.url, "-n", "4", "-c", "1024"]
    ran = preread("run", *arguments, stdin=typed.encode())
    assert ran.code == 0 and len(ran.out.splitlines()) >= 2 and ">>>" not in ran.out
    assert "tokens streamed, lossless" in ran.err and "tokens in memory" in ran.err
    assert "preread: unknown context 'nope'" in ran.err and "unknown command /what" in ran.err
    assert "said      4 messages" in ran.err and ran.err.count("first token after") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ask", "x", "--context", "manual"], "PREREAD_CLOUD"),
        (["run", "--context", "manual"], "PREREAD_CLOUD"),
        (["ask", " "], "the question is empty"),
        (["ask", "x", "--model", "nosuch"], "unknown model"),
        (["ask", "x", "--rung", "q99"], "unknown rung"),
        (["ask", "x", "--edge", "http://127.0.0.1:1"], "is `preread edge` running there?"),
        (["ask", "x", "--edge", "http://127.0.0.1:1", "--local"], "leave --edge away"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(preread: Run, arguments: list[str], told: str) -> None:
    ran = preread(*arguments)
    assert ran.code == 1 and ran.out == ""
    assert ran.err.startswith("preread: ") and ran.err.count("\n") == 1 and told in ran.err


def test_unknown_context_is_an_error_before_anything_is_generated(preread: Run, cloud: Any) -> None:
    ran = preread("ask", "x", "--context", "nope", "--cloud", cloud.url, "-c", "512")
    assert ran.code == 1 and re.search("unknown context 'nope'; known contexts: .*manual", ran.err)
