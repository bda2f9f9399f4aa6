"""A cloud and an edge as processes of their own, that can be killed, stopped for a while, and started again.

They are what people start: `preread cloud` and `preread edge`. It knows processes and signals; it must not know what
they are asked.
"""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx2

from preread.errors import TransportError

CAN_FILL_DISK: Final = hasattr(resource, "prlimit")
"""Only Linux can take room for files from a process that runs."""

_KEPT_LINES, _TOLD_LINES = 400, 120


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that take a core each, or their share of one, as others at work on this machine would."""
    with ExitStack() as others:
        for _ in range(count):
            process = others.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            others.callback(process.kill)
        yield


class Server:
    """One server on a port of 127.0.0.1 that stays the same over restarts.

    Args:
        arguments: of the command line, without --port.
        folder: its cache folder.
        models: where models are.
        nice: added to its niceness: what another machine would do must not take this one's cores from the edge.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, models: Path, nice: int = 0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREREAD_")}
        own = {"XDG_CACHE_HOME": str(folder), "PREREAD_MODELS": str(models), "PYTHONFAULTHANDLER": "1"}
        self._environment = kept | own
        self._command = [sys.executable, "-m", "preread.cli", *arguments, "--port", str(self.port)]
        if nice:
            self._command = ["nice", "-n", str(nice), *self._command]
        self._process: subprocess.Popen[str] | None = None
        self.log: list[str] = []

    def start(self) -> None:
        """Start it, and return at once."""
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Keep the end of its log here: a process that may write no files would lose it."""
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.log.append(line.rstrip())
                del self.log[:-_KEPT_LINES]

    async def ready(self) -> None:
        """Wait until its model is loaded and it answers.

        Raises:
            TransportError: it ended instead.
        """
        async with httpx2.AsyncClient(trust_env=False, timeout=1.0) as http:
            while True:
                process = self._process
                if process is None or process.poll() is not None:
                    raise TransportError(f"a server of the benchmark did not start: {' | '.join(self.log[-5:])}")
                with suppress(httpx2.HTTPError):
                    if (await http.get(f"{self.url}/health")).status_code != 503:  # its model is being loaded
                        return
                await asyncio.sleep(0.02)

    @property
    def runs(self) -> bool:
        """Whether there is a process, ready or not."""
        return self._process is not None and self._process.poll() is None

    def peak_bytes(self) -> int:
        """The most memory that it has had resident so far; 0 where the system does not say."""
        return self._status_bytes("VmHWM")

    def resident_bytes(self) -> int:
        """Memory that it has resident now; 0 where the system does not say."""
        return self._status_bytes("VmRSS")

    def _status_bytes(self, field: str) -> int:
        if self._process is None:
            return 0
        with suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) << 10
        return 0

    def kill(self) -> None:
        """End it without a warning; it is gone when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def abort(self) -> list[str]:
        """End it, and have it say where its threads are: the end of its log, as Python's faulthandler writes it."""
        if self._process is None:
            return []
        self._process.send_signal(signal.SIGABRT)
        await asyncio.to_thread(self._process.wait)
        await asyncio.sleep(0.2)  # the thread that listens reads the rest
        self._process = None
        return self.log[-_TOLD_LINES:]

    def stop(self) -> None:
        """Stop it where it is, as when a laptop sleeps."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def fill_disk(self, full: bool) -> None:
        """Let it write no byte to any file, or again all that it wants."""
        if CAN_FILL_DISK and self._process is not None and self.runs:
            _, most = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (0 if full else most, most))
