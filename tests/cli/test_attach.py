"""`preread attach` says what is wrong before it begins, and attaches to a server that is not there yet."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest


def test_a_folder_that_is_not_there_is_told_at_once(preread: Any, tmp_path: Path) -> None:
    ran = preread("attach", "--server", "http://127.0.0.1:9", "--slots", str(tmp_path / "none"), "--port", "0")
    assert ran.code == 1 and "--slot-save-path" in ran.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--server", "nonsense", "--slots", "{folder}"), "is not an address"),
        (("--server", "http://127.0.0.1:9", "--slots", "{folder}", "--rung", "x y"), "unknown rung"),
        (("--server", "http://127.0.0.1:9", "--slots", "{folder}", "--host", "0.0.0.0"), "--insecure"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    preread: Any, tmp_path: Path, arguments: tuple[str, ...], why: str
) -> None:
    ran = preread("attach", *(each.format(folder=tmp_path) for each in arguments), "--port", "0")
    assert ran.code == 1 and why in ran.err and ran.err.count("\n") == 1


def test_it_waits_for_a_server_that_is_not_there_yet_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    slots = tmp_path / "slots"
    slots.mkdir()
    command = [sys.executable, "-m", "preread.cli", "attach", "--server", "http://127.0.0.1:9", "--slots", str(slots)]
    command += ["--model", str(tiny_model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            found = re.search(r"on (http://127\.0\.0\.1:\d+)", line)
            assert found is not None, line
            told = httpx2.get(f"{found[1]}/preread", trust_env=False).json()
            assert not told["restoring"] and told["contexts"] == 0
            assert httpx2.get(f"{found[1]}/health", trust_env=False).status_code == 504
            ready = httpx2.get(f"{found[1]}/readyz", trust_env=False)
            assert ready.status_code == 503 and "is llama-server running there?" in ready.text
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert list(slots.iterdir()) == []
