"""A cloud and an edge that put control characters wherever they can: none reaches the terminal."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from preread.testing.cloud import serving

Run = Any
ESC = "\x1b]0;owned\x07"
EVIL = ESC + "\x9b2J\u202e"


@pytest.fixture
def hostile() -> Iterator[tuple[str, dict[str, str]]]:
    """URL of a server that answers every request to a path with what is set for it."""
    answers: dict[str, str] = {}

    async def answer(request: Request) -> Response:
        kind = "text/event-stream" if "chat" in request.url.path else "application/json"
        return Response(answers[request.url.path], media_type=kind)

    with serving(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST", "DELETE"])])) as url:
        yield url, answers


def check(ran: Any) -> None:
    """Nothing acted, and the server's words were shown."""
    text = ran.out + ran.err
    assert not [letter for letter in text if not (letter.isprintable() or letter in "\n\t")], text
    assert "]0;owned" in text, text


@pytest.mark.parametrize("command", [["ls"], ["show", "manual"]])
def test_a_field_of_a_catalogue(preread: Run, hostile: Any, command: list[str]) -> None:
    url, answers = hostile
    fields = {"contexts": [], "format": "preread-catalogue", "version": 1, EVIL: 1}
    answers["/v1/catalogue"] = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    check(preread("contexts", *command, "--cloud", url))


PUBLISHED = {
    "event": "published",
    "entry": {
        "name": f"manual{EVIL}",
        "context": "a" * 64,
        "form": "text",
        "fingerprint": "a" * 64,
        "vocabulary": "a" * 64,
        "model": "model",
        "token_count": 5,
        "manifest": {"bytes": 1, "id": "a" * 64},
        "tokens": {"bytes": 1, "id": "a" * 64},
    },
    "bytes": {EVIL: 1},
    "seconds": 1.0,
    "notes": [EVIL],
    "bases": {EVIL: EVIL},
}
PROGRESS = {"event": "progress", "stage": EVIL, "done": 1, "total": 1}


@pytest.mark.parametrize(
    "events",
    [
        [PROGRESS, PUBLISHED],
        [PROGRESS | {"event": EVIL}],
        [PROGRESS | {EVIL: 1}, PUBLISHED],
        [{"event": "error", "error": {"message": EVIL, "type": EVIL, "code": EVIL}}],
    ],
    ids=["words", "tag", "field", "error"],
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_events_of_a_publication(preread: Run, hostile: Any, events: list[Any], as_json: list[str]) -> None:
    url, answers = hostile
    answers["/v1/contexts"] = "".join(json.dumps(event) + "\n" for event in events)
    check(preread("publish", "-", "--name", "manual", "--cloud", url, *as_json, stdin=b"text"))


@pytest.mark.parametrize("options", [[], ["--json"], ["--verbose"]])
def test_an_answer_of_an_edge(preread: Run, hostile: Any, options: list[str]) -> None:
    url, answers = hostile
    timings = {"context": EVIL, "way": "computed", "reason": EVIL, "context_n": 5}
    chunks = [{"choices": [{"delta": {"content": f"one{EVIL}\n\ttwo"}}]}, {"choices": [], "timings": timings}]
    answers["/v1/chat/completions"] = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    ran = preread("ask", "question", "--edge", url, *options)
    check(ran)
    assert ran.code == 0 and ("\n\ttwo" in ran.out or options == ["--json"])


def test_what_is_logged(tmp_path: Path) -> None:
    """In a process of its own, since where tests run others have set up logging before."""
    file = tmp_path / f"keys{EVIL}"
    file.write_text("key")
    file.chmod(0o644)
    ask = ["contexts", "ls", "--cloud", "http://127.0.0.1:1", "--api-key-file", str(file)]
    command = [sys.executable, "-c", "from preread.cli import main; main()", *ask]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert "WARNING" in ran.stderr and "chmod 600" in ran.stderr and "]0;owned" in ran.stderr
    assert all(line.isprintable() for line in ran.stderr.splitlines()) and "\x1b" not in ran.stderr
