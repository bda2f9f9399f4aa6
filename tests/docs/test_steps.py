"""What the first pages tell a reader to type is typed in order, and works: with a model of random weights."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from docsite import markdown

from preread.testing.tiny import write_tiny

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ELSEWHERE = re.compile(r"^(apt-get|make|source|preread demo|preread run)\b")
"""What other tests try: installing, the demo; and what waits for somebody who types."""
SERVER = re.compile(r"^preread (cloud|edge)\b")


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody who follows a page, in a folder that has the repository's documents.

    Attributes:
        folder: where the commands are typed.
        told: what stands in the page, and what it is here: a model's file, free ports.
    """

    folder: Path
    told: dict[str, str]

    def follow(self, page: str, *, only: str = "") -> Iterator[tuple[str, str]]:
        """Each block of the page, or of those in language `only`, and what it said on both of its outputs."""
        with ExitStack() as running:
            exported = ""
            for block in markdown.code((ROOT / page).read_text()):
                text = self._here(block.text)
                if block.kind == "inline" or (only and block.language != only) or ELSEWHERE.match(text):
                    continue
                if block.language == "python":
                    yield text, self._said([sys.executable, "-c", text])
                elif SERVER.match(text):
                    yield text, running.enter_context(self._server(exported + text))
                elif block.language == "sh":
                    exported += "".join(re.findall(r"^export .*\n", text, re.M))
                    yield text, self._said(["sh", "-ec", exported + text])

    def _here(self, text: str) -> str:
        for stands, here in self.told.items():
            text = text.replace(stands, here)
        return text

    def _said(self, command: list[str]) -> str:
        ran = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command[-1]}\n{ran.stdout}{ran.stderr}"
        return ran.stdout + ran.stderr

    @contextmanager
    def _server(self, command: str) -> Iterator[str]:
        """A server, from when it says that it is ready on."""
        with subprocess.Popen(
            ["sh", "-ec", command.replace("preread ", "exec preread ", 1)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            ready = process.stdout.readline()
            try:
                assert "http://" in ready, f"{command} ended"
                yield ready
            finally:
                process.terminate()


@pytest.fixture
def reader(tmp_path: Path, smollm: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    if shutil.which("curl") is None:
        pytest.skip("needs curl: on Debian, apt-get install curl")
    model = str(write_tiny(tmp_path / "tiny.gguf", smollm, hidden=512))  # all of its words: the page fits its window
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "preread").write_text(f'#!/bin/sh\nexec {sys.executable} -m preread.cli "$@"\n')
    (tmp_path / "bin" / "preread").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PREREAD_MODEL", model)
    cloud, edge = free_port(), free_port()
    here = {"smollm2-135m-instruct": model, ":8000": f":{cloud}", ":8080": f":{edge}"}
    started = {"preread cloud": f"preread cloud --port {cloud}", "preread edge": f"preread edge --port {edge}"}
    return Reader(tmp_path, here | started)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_quick_start_works_as_it_is_told(reader: Reader) -> None:
    said = list(reader.follow("docs/quickstart.md"))
    streamed, local = (text for command, text in said if command.startswith("preread ask"))
    assert re.search(r"streamed|mixed", streamed) and "computed" in local
    assert any(command.startswith("preread edge") for command, _ in said)
    assert any('"cached_tokens":' in text for command, text in said if command.startswith("curl"))
    assert any(command.startswith("from openai") for command, _ in said)


def test_the_first_steps_of_the_readme_work_as_they_are_told(reader: Reader) -> None:
    commands = [command.split()[1] for command, _ in reader.follow("README.md") if command.startswith("preread ")]
    assert commands == ["cloud", "edge"]


def test_a_cloud_with_keys_is_set_up_as_operators_are_told(reader: Reader) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: on Debian, apt-get install openssl")
    unfitted = replace(reader, told=reader.told | {"--host 0.0.0.0": "--host 0.0.0.0 --rungs lossless"})
    said = dict(unfitted.follow("docs/guides/operators.md", only="sh"))
    assert any("published 'start'" in text for text in said.values())
    assert any("Streaming" in text for command, text in said.items() if command.startswith("preread doctor"))


def test_the_programs_of_the_librarys_page_run(reader: Reader) -> None:
    with ExitStack() as cloud:
        steps = reader.follow("docs/quickstart.md")
        cloud.callback(steps.close)
        for command, _ in steps:
            if command.startswith("preread publish"):
                break
        programs = list(reader.follow("docs/guides/library.md", only="python"))
    assert len(programs) >= 5
    assert all("Traceback" not in said for _, said in programs)
