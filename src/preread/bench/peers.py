"""Other OpenAI servers beside an edge: somewhere already, or started here, so that they can be made cold again.

It knows processes and how such servers say that they are ready; it must not know what they are asked.
"""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from preread.errors import TransportError, UsageError
from preread.store.origin import parse_origin

_START_S: Final = 300.0
_THERE_S: Final = 10.0
_PORT, _MODEL = "{port}", "{model}"
_OPTION: Final = "--peer-command"
_LOG_LETTERS: Final = 500


@dataclass(frozen=True, slots=True)
class Beside:
    """Which servers there are: at these addresses, with or without /v1, and those that these commands start.

    A command has {port}, for which it gets a free one, and {model}, if it needs the GGUF file.
    """

    urls: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


class Peer:
    """One such server.

    Attributes:
        name: of its program, or its address.
        url: without /v1.
        model: as it calls it, once it is ready; None: it does not say.

    `option` is where the user gave the command.
    """

    def __init__(
        self, name: str, url: str, command: Sequence[str] = (), log: Path | None = None, option: str = _OPTION
    ) -> None:
        self.name, self.url, self._option = name, url, option
        self.model: str | None = None
        self._command, self._log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def restarts(self) -> bool:
        """Whether it can be made cold again."""
        return bool(self._command)

    async def fresh(self, *, cut: bool = False) -> None:
        """Start it anew if it can be, and wait until it can be asked. It has no cloud that it could be cut off from.

        Raises:
            UsageError: there is no such program.
            TransportError: it ends, or is not ready in five minutes, or ten seconds where it should be there.
        """
        self.kill()
        if self._command and self._log is not None:
            try:
                with self._log.open("wb") as log:
                    self._process = subprocess.Popen(
                        self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                    )
            except OSError as error:
                raise UsageError(f"{self._option}: {self._command[0]} cannot be started: {error.strerror}") from error
        try:
            async with (
                asyncio.timeout(_START_S if self.restarts else _THERE_S),
                httpx2.AsyncClient(trust_env=False, timeout=10) as http,
            ):
                while not await self._is_ready(http):
                    if self._process is not None and self._process.poll() is not None:
                        raise TransportError(f"{self.name} did not start: {self._told()}")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            told = self._told() or "is it running?"
            raise TransportError(f"{self.name} at {self.url} is not ready: {told}") from None

    async def settle(self) -> None:
        """It is at rest once it has answered."""

    def kill(self) -> None:
        """End it, if it was started here, and whatever it has started."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def _is_ready(self, http: httpx2.AsyncClient) -> bool:
        """Servers that load a model say so at /health, where they have it; all list their models."""
        try:
            if (await http.get(f"{self.url}/health")).status_code not in (200, 404):
                return False
            answer = await http.get(f"{self.url}/v1/models")
            if answer.status_code == 200:
                self.model = _first_model(answer.json())
            return answer.status_code == 200
        except httpx2.HTTPError:
            return False
        except ValueError as error:
            raise TransportError(f"{self.url}/v1/models is not how OpenAI's API answers: {error}") from error

    def _told(self) -> str:
        if self._log is None or not self._log.exists():
            return ""
        return " | ".join(self._log.read_text(errors="replace")[-_LOG_LETTERS:].splitlines())


def _first_model(listed: Any) -> str | None:
    models = listed.get("data") if isinstance(listed, dict) else None
    first = models[0] if isinstance(models, list) and models else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else None


def peers(beside: Beside, model: Path, folder: Path) -> list[Peer]:
    """All of them, each with a name of its own; `folder` is for their logs.

    Raises:
        UsageError: an address is none, or a command has no {port} or cannot be read.
    """
    found = []
    for url in beside.urls:
        parse_origin(url)
        base = url.rstrip("/").removesuffix("/v1")
        found.append(Peer(base.partition("://")[2], base))
    for number, command in enumerate(beside.commands):
        found.append(started_by(command, {_MODEL: str(model)}, folder / f"peer{number}.log"))
    names = [peer.name for peer in found]
    for number, peer in enumerate(found):
        if names.count(peer.name) > 1 or peer.name == "preread":
            peer.name = f"{peer.name} ({number + 1})"
    return found


def started_by(command: str, filled: Mapping[str, str], log: Path, option: str = _OPTION) -> Peer:
    """The server that a command starts, on a free port; it is not started yet.

    Args:
        command: with {port}.
        filled: what else it may have in braces, and what it gets for that.
        log: where it writes what it says.
        option: where the user gave the command, for errors.

    Raises:
        UsageError: as for `split`.
    """
    words, port = split(command, option), _free_port()
    for what, value in {_PORT: str(port), **filled}.items():
        words = [word.replace(what, value) for word in words]
    return Peer(Path(words[0]).name, f"http://127.0.0.1:{port}", words, log, option)


def split(command: str, option: str = _OPTION) -> list[str]:
    """The words of a command, as a shell splits them. `option` is where the user gave it.

    Raises:
        UsageError: it has none, or a quote without an end, or no {port}.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{option} cannot be read: {error}") from error
    if not any(_PORT in word for word in words):
        raise UsageError(f"{option} needs {_PORT} where the server is told its port")
    return words


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
