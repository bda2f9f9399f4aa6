"""Clouds and edges of an earlier version beside ones of this: whichever is upgraded first, contexts are streamed.

What earlier versions wrote is also held by files, byte by byte: tests/vectors. Here both are run.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.long

EARLIER = "c940735"
"""What the changes in changes/ are against. After a release it is that one's tag: see docs/releasing.md."""

ROOT = Path(__file__).parents[1]
QUESTION = "What does lamp 7 mean?"


def text(name: str) -> str:
    """A document that is unlike others from its first word on."""
    return f"{name}: manual of the kettle. " + " ".join(
        f"Lamp {i} of the {name} means that part {i + 3} is to be cleaned." for i in range(20)
    )


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The earlier version's sources, compiled."""
    if shutil.which("git") is None or shutil.which("gcc") is None:
        pytest.skip("needs git and gcc")
    tree = tmp_path_factory.mktemp("earlier") / "tree"
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", f"{EARLIER}^{{commit}}"], capture_output=True).returncode:
        pytest.skip(f"the history of this checkout does not go back to {EARLIER}")
    subprocess.run([*git, "worktree", "add", "--detach", str(tree), EARLIER], check=True, capture_output=True)
    try:
        build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=tree, check=True, capture_output=True)
        yield tree / "src"
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(tree)], capture_output=True)


@dataclass(frozen=True, slots=True)
class House:
    """A cloud and an edge at addresses that stay, with what they keep; each may be of either version."""

    model: Path
    folder: Path
    cloud_port: int
    edge_port: int

    @property
    def cloud_url(self) -> str:
        return f"http://127.0.0.1:{self.cloud_port}"

    @property
    def edge_url(self) -> str:
        return f"http://127.0.0.1:{self.edge_port}"

    def environment(self, sources: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREREAD_")}
        return kept | {"PYTHONPATH": str(sources), "XDG_CACHE_HOME": str(self.folder / "cache")}

    @contextmanager
    def cloud(self, sources: Path) -> Iterator[None]:
        store = ("--store", str(self.folder / "store"), "--rungs", "lossless")
        with self._server(sources, "cloud", self.cloud_port, *store):
            yield

    @contextmanager
    def edge(self, sources: Path) -> Iterator[None]:
        with self._server(sources, "edge", self.edge_port, "--cloud", self.cloud_url, "--sync-s", "0.2"):
            yield

    def publish(self, sources: Path, name: str) -> None:
        document = self.folder / f"{name}.txt"
        document.write_text(text(name))
        command = [sys.executable, "-m", "preread.cli", "publish", str(document), "--cloud", self.cloud_url]
        ran = subprocess.run(command, env=self.environment(sources), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr

    def ask(self, context: str, *, local: bool = False) -> Any:
        """The edge's answer, token by token the likeliest."""
        ask = {"prompt": QUESTION, "context": context, "max_tokens": 24, "temperature": 0, "local": local}
        answer = httpx2.post(f"{self.edge_url}/v1/completions", json=ask, trust_env=False, timeout=300)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def check(self, *contexts: str) -> None:
        """Each is streamed, or was, and what is answered from it is what is answered without."""
        for context in contexts:
            answer = self.ask(context)
            assert answer["timings"]["way"] in ("streamed", "mixed", "resident"), answer["timings"]
            assert answer["choices"][0]["text"] == self.ask(context, local=True)["choices"][0]["text"]

    @contextmanager
    def _server(self, sources: Path, command: str, port: int, *options: str) -> Iterator[None]:
        given = [sys.executable, "-m", "preread.cli", command, "--model", str(self.model), "-c", "1024"]
        with subprocess.Popen(
            [*given, "--port", str(port), *options], env=self.environment(sources), stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                assert re.search(r"http://", server.stdout.readline()), f"{command} of {sources} does not start"
                yield
                server.send_signal(signal.SIGTERM)
                assert server.wait(60) == 0
            finally:
                server.kill()


@pytest.fixture
def house(smollm: Path, tmp_path: Path) -> House:
    """Of a model that takes so long to compute a context that streaming it is sooner, however busy this machine is."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    return House(smollm, tmp_path, *ports)


NOW = ROOT / "src"


def test_the_cloud_first(earlier: Path, house: House) -> None:
    with ExitStack() as later:
        with house.cloud(earlier):
            house.publish(earlier, "old")
            later.enter_context(house.edge(earlier))
            house.check("old")
        with house.cloud(NOW):
            house.publish(NOW, "new")
            house.publish(earlier, "between")
            house.check("old", "new", "between")
            later.close()
            with house.edge(NOW):
                house.check("old", "new", "between")
            with house.edge(earlier):  # which goes back
                house.check("old", "new", "between")


def test_the_edges_first(earlier: Path, house: House) -> None:
    with ExitStack() as later:
        later.enter_context(house.cloud(earlier))
        house.publish(earlier, "old")
        with house.edge(earlier):
            house.check("old")
        with house.edge(NOW):
            house.publish(NOW, "between")
            house.check("old", "between")
            later.close()
            with house.cloud(NOW):
                house.publish(NOW, "new")
                house.check("old", "between", "new")
