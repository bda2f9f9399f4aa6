"""Each program of examples/ is run as its usage says, against a real cloud and edge; what is said is not looked at."""

import asyncio
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preread.cloud import client
from preread.cloud.app import create_app
from preread.store.objects import open_store
from preread.testing.cloud import RandomPublisher, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"})
QUESTION = "What code does the fan have?"

Run = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy is between, and what an edge keeps is kept here."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Lines that a program prints: `run("ask.py", argument…)`. Python's run in this process, which is quicker."""

    def start(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return start


def shell(name: str, *arguments: str, **env: str) -> str:
    """What a program of the shell prints; `preread` is that of this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["sh", EXAMPLES / name, *arguments], env=os.environ | {"PATH": path, **env}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_the_library_answers(run: Run, cloud: Any, tiny_model: Path) -> None:
    *_, told = run("ask.py", str(tiny_model), cloud.url, "manual", QUESTION)
    assert re.fullmatch(r"manual: (streamed|mixed|computed), \d+ bytes, \d+ ms to the first token", told)


def test_two_answers_are_streamed(run: Run, cloud: Any, tiny_model: Path) -> None:
    lines = run("stream.py", str(tiny_model), cloud.url, "manual", "One?", "Two?")
    assert {line[:4] for line in lines} == {"One?", "Two?"}


def test_openais_client_names_a_context(run: Run, edge: Any) -> None:
    *_, told = run("openai_context.py", edge.url, "manual", QUESTION)
    cached, of, total, *_ = told.split()
    assert of == "of" and 200 < int(cached) < int(total)


def test_a_client_that_only_knows_models_names_a_context(run: Run, edge: Any) -> None:
    *_, told = run("anthropic_model.py", edge.url, "preread@manual", QUESTION)
    assert int(told.split()[0]) > 200


def test_an_answer_keeps_to_a_schema(run: Run, edge: Any) -> None:
    *_, told = run("json_schema.py", edge.url, "manual", QUESTION)
    assert re.fullmatch(r"-?\d+ with(out)? TLS", told)


def test_decisions_have_probabilities(run: Run, edge: Any) -> None:
    predicate, choice = (json.loads(line) for line in run("decisions.py", edge.url, "manual"))
    assert 0 <= predicate["probability"] <= 1 and choice["choice"] in {"8000", "8080", "443"}


def test_a_folder_is_published_and_kept_in_step(tmp_path: Path) -> None:
    folder, store = tmp_path / "handbook", open_store(str(tmp_path / "store"))
    publisher = RandomPublisher(store)
    folder.mkdir()
    (folder / "fan.md").write_text("# Fan\nPress its key twice.\n")
    with serving(create_app(store, publisher, counter=publisher.counted)) as url:
        for name in ("handbook.gone", "other"):
            list(client.publish(url, name, text="Once there was a document."))
        said = shell("publish_folder.sh", str(folder), "handbook.", PREREAD_CLOUD=url)
    assert "published 'handbook.fan'" in said
    assert {entry.name for entry in asyncio.run(store.names())} == {"handbook.fan", "other"}


def test_curl_is_enough(edge: Any) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl: on Debian, apt-get install curl")
    said = shell("curl.sh", edge.url, "manual", QUESTION)
    assert "data: [DONE]" in said and "@manual" in said and '"way":' in said


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_it_is_short_says_how_it_is_run_and_is_listed_and_tested(program: Path) -> None:
    text = program.read_text()
    assert len(text.splitlines()) <= 40
    assert f"examples/{program.name} " in text.split("\n\n\n")[0], "its usage is not at its top"
    assert f"]({program.name})" in (EXAMPLES / "README.md").read_text()
    assert f'"{program.name}"' in Path(__file__).read_text()
