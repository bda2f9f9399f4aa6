"""Where README, quick start and operators' guide lead a newcomer: their commands are run in a shell, in turn."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from docsite import markdown

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("make ", "apt-get ", "source ", "preread demo")
"""What has tests of its own, or changes this machine."""
LONGEST_S = 300
SERVERS = ("preread cloud", "preread edge")

pytestmark = pytest.mark.long


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(command: str, env: dict[str, str], folder: Path, log: Path) -> Iterator[None]:
    """A server that a block starts; it has printed its address."""
    with log.open("wb") as told:
        server = subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=folder, env=env, stdout=told, stderr=told)
    try:
        until = time.monotonic() + LONGEST_S
        while not re.search(r"^preread (cloud|edge): .* on http", log.read_text(), re.MULTILINE):
            assert server.poll() is None and time.monotonic() < until, f"{command}\n{log.read_text()}"
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(LONGEST_S)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/guides/operators.md"])
def test_who_follows_a_page_gets_there(page: str, smollm: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None or shutil.which("openssl") is None:
        pytest.skip("needs curl and openssl: on Debian, apt-get install curl openssl")
    text = (ROOT / page).read_text()
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    cloud, edge = str(free_port()), str(free_port())
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREREAD_MODELS": str(smollm.parent),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    said = ""
    with ExitStack() as servers:
        for part in markdown.code(text):
            if part.language != "sh" or part.text.startswith(ELSEWHERE):
                continue
            block = part.text.replace(":8000", f":{cloud}").replace(":8080", f":{edge}")
            if block.startswith(SERVERS):
                port = cloud if block.startswith("preread cloud") else edge
                fitless = "" if "--rungs" in block else " --rungs lossless"
                more = f" --port {port}" + (fitless if port == cloud else "")
                log = tmp_path / f"{part.line}.log"
                servers.enter_context(running(block.strip() + more, env, tmp_path, log))
                continue
            ran = subprocess.run(
                ["sh", "-ec", f"{block}\nenv > env.after"], cwd=tmp_path, env=env, capture_output=True, text=True,
                timeout=LONGEST_S,
            )  # fmt: skip
            assert ran.returncode == 0, f"{page}:{part.line}\n{block}\n{ran.stdout}{ran.stderr}"
            said += ran.stdout + ran.stderr
            after = dict(
                line.split("=", 1) for line in (tmp_path / "env.after").read_text().splitlines() if "=" in line
            )
            env |= {name: value for name, value in after.items() if name.startswith("PREREAD_")}
    assert "published 'start'" in said and "unknown" not in said
