"""Somebody who follows a page: types what stands there, in order, in a folder of their own."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from docsite import commands, shell
from docsite.shell import Typed

_SERVER: Final = re.compile(
    r"\bpreread (?:--\S+ \S+ )*(cloud|edge|attach)\b|\bpreread publish (--watch)\b|(http\.server|moto_server)"
)
_READY: Final = re.compile(r"\b(https?|unix):|watching|Serving HTTP|Running on http")
_SET_FOR_IT: Final = re.compile(r"\A(?:[A-Za-z_]\w*=\S* +)*")
"""Variables that are set for one command."""

_MOST_S: Final = 600
"""For one command: a net below tests, not a bound that says anything."""


class Came(NamedTuple):
    """What came of something that was typed: its exit code (0 of a server that is ready), and both of its outputs."""

    typed: Typed
    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody in a folder.

    Attributes:
        folder: where commands are typed.
        here: what stands in a page, and what it is here: a model's file, a port.
        smaller: of a command such as `bench ttft` the options that make it a matter of seconds, as for `shell.changed`.
        environment: in which commands run.
    """

    folder: Path
    here: Mapping[str, str]
    smaller: Mapping[str, Mapping[str, str | bool]]
    environment: Mapping[str, str]

    def follow(self, steps: Iterable[Typed]) -> Iterator[Came]:
        """Type everything, each when it is asked for. Servers run until the end, or until one of their kind starts.

        Raises:
            TimeoutError: a server did not become ready, or a command did not end.
        """
        exported, servers = "", dict[str, ExitStack]()
        with ExitStack() as running:
            for step in steps:
                text = self.told(step)
                server = None if step.language == "python" else _SERVER.search(text)
                if step.language == "python":
                    yield self._ran(step, text, [sys.executable, "-c", text])
                elif text.startswith("export "):
                    exported += f"{text}\n"
                    yield Came(replace(step, text=text), 0, "")
                elif server is None:
                    yield self._ran(step, text, ["sh", "-ec", exported + text])
                else:
                    kind = next(filter(None, server.groups()))
                    if kind in servers:
                        servers[kind].close()
                    servers[kind] = running.enter_context(ExitStack())
                    yield servers[kind].enter_context(self._serving(step, text, f"{exported}exec {text}", kind))

    def told(self, step: Typed) -> str:
        """What is typed here."""
        text = step.text.strip()
        for stands in sorted(self.here, key=len, reverse=True):
            text = text.replace(stands, self.here[stands])
        if step.language == "python":
            return text
        named = list(shell.commands(text))
        if len(named) != 1 or named[0][0].rpartition("/")[2] != "preread":
            return text
        path, flags = commands.called(named[0][1:])
        if path not in self.smaller:
            return text
        words = [named[0][0], *shell.changed(named[0][1:], self.smaller[path], flags)]
        return text.removesuffix(_SET_FOR_IT.sub("", text)) + shlex.join(words)

    def _ran(self, step: Typed, text: str, command: list[str]) -> Came:
        with subprocess.Popen(
            command, cwd=self.folder, env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=_MOST_S)
            except subprocess.TimeoutExpired as error:
                os.killpg(process.pid, signal.SIGKILL)  # with the servers that it has started
                raise TimeoutError(f"{text} did not end in {_MOST_S} s: {error.stdout!r}") from error
        return Came(replace(step, text=text), process.returncode, said)

    @contextmanager
    def _serving(self, step: Typed, text: str, command: str, kind: str) -> Iterator[Came]:
        """A server, from when it says that it is ready, or has ended."""
        log = self.folder / f"{kind.strip('-')}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                ["sh", "-ec", command], cwd=self.folder, env=dict(self.environment), stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            until = time.monotonic() + _MOST_S
            while not _READY.search(log.read_text()) and process.poll() is None:
                if time.monotonic() > until:
                    raise TimeoutError(f"{text} was not ready in {_MOST_S} s: {log.read_text()}")
                time.sleep(0.05)  # what another process writes into a file
            yield Came(replace(step, text=text), process.poll() or 0, log.read_text())
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            finally:
                process.kill()  # one that does not end fails the test, and does not outlive it


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Where `preread` and `python` are those that run this, nothing of the machine's settings counts, and what is kept
    is kept in the folder.
    """
    path = folder / "bin"
    path.mkdir()
    (path / "preread").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m preread.cli "$@"\n')
    (path / "preread").chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREREAD_")}
    return own | {
        "PATH": os.pathsep.join([str(path), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }
