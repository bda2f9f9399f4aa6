"""A TCP proxy on loopback that behaves like a wide-area link, and like a broken one when told to.

In a program that runs an event loop:

    async with Proxy(("127.0.0.1", port), Link(mbps=20, rtt_ms=40)) as proxy:
        ...                                    # clients talk to proxy.url
        proxy.faults = (Reset(after_bytes=100_000),)

In one that does not, or whose loop is busy: `with ProxyProcess(port, Link(mbps=20)) as proxy: ...`. By hand:

    python -m preread.testing.proxy --target 127.0.0.1:8000 --mbps 20 --rtt-ms 40

prints `listening on http://127.0.0.1:PORT`, then reads one JSON object a line and answers each with one:
`{"link": {"mbps": 5}}`, `{"faults": [{"type": "reset", "after_bytes": 1000}]}`, `{"stats": true}`, and for a link that
changes `{"trace": [[2.5, {"mbps": 5}], [1, {"mbps": 0}]]}`; it exits at the end of its input.

What is emulated: a bottleneck of `mbps` in each direction, one queue for all connections; propagation of half the round
trip each way, with jitter; one more round trip before the first byte of a connection, for the TCP handshake (the
kernel still reports the connection as made at once). What is not: packet loss, slow start and congestion control, TLS.
Rates count payload, not headers. Timers of an asyncio loop on Linux fire up to 1 ms late, in either direction; the
process uses finer ones. A blackout or a rate of 0 stops the bytes, not the kernel that accepts connections.
"""

import argparse
import asyncio
import contextlib
import json
import os
import select
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from preread.errors import TransportError, UsageError
from preread.testing.relay import Proxy
from preread.testing.toxics import (
    Blackout,
    Corrupt,
    Fault,
    HalfOpen,
    Link,
    Refuse,
    Reset,
    Slicer,
    Stats,
    Truncate,
    fault_from_json,
    fault_to_json,
    link_from_json,
)
from preread.testing.traces import Trace, trace_from_json

__all__ = [
    "Blackout", "Corrupt", "Fault", "HalfOpen", "Link", "Proxy", "ProxyProcess", "Refuse", "Reset", "Slicer", "Stats",
    "Truncate",
]  # fmt: skip

_COMMANDS = frozenset({"link", "trace", "faults", "stats"})


class ProxyProcess:
    """The same proxy in a process of its own, for callers without an event loop or with a busy one.

    Members raise TransportError if the process is gone. They may be called from any thread.
    """

    def __init__(self, target_port: int, link: Link | None = None, *, target_host: str = "127.0.0.1") -> None:
        self._target, self._link = f"{target_host}:{target_port}", link or Link()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "preread.testing.proxy", "--target", self._target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.url = self._line().removeprefix("listening on ").rstrip()
            self.port = int(self.url.rpartition(":")[2])
            self.set_link(self._link)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its input, which ends it, and waits

    def set_link(self, link: Link) -> None:
        """In force when this returns; it ends a trace."""
        self._ask({"link": asdict(link)})

    def follow(self, trace: Trace) -> None:
        """The trace's first step is in force when this returns; after its last, the link stays as that was."""
        self._ask({"trace": [[step.seconds, asdict(step.link)] for step in trace]})

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """In force when this returns. Byte offsets count from now."""
        self._ask({"faults": [fault_to_json(fault) for fault in faults]})

    @property
    def stats(self) -> Stats:
        return Stats(**self._ask({"stats": True})["stats"])

    def _ask(self, command: dict[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(command) + "\n")
                self._process.stdin.flush()
            except OSError:
                pass  # it is gone, which the next line finds and reports
            answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TransportError(f"the fault proxy ended with status {self._process.wait()}: see what it wrote above")
        return line


def answer(proxy: Proxy, line: str) -> dict[str, object]:
    """Carry out one command, all of it or nothing, and say so: {"ok": true}, {"stats": …} or {"error": …}."""
    try:
        command = json.loads(line)
        if not isinstance(command, dict) or not command or not command.keys() <= _COMMANDS:
            raise UsageError(f"a command is an object with any of {', '.join(sorted(_COMMANDS))}")
        link = link_from_json(command["link"]) if "link" in command else proxy.link
        trace = trace_from_json(command["trace"]) if "trace" in command else None
        listed = command.get("faults", [])
        if not isinstance(listed, list):
            raise UsageError("faults is a list")
        faults = [fault_from_json(fault) for fault in listed]
    except ValueError as error:
        return {"error": f"not JSON: {error}"}
    except UsageError as error:
        return {"error": str(error)}
    if "link" in command:
        proxy.link = link
    if trace is not None:
        proxy.follow(trace)
    if "faults" in command:
        proxy.faults = faults
    return {"stats": asdict(proxy.stats)} if "stats" in command else {"ok": True}


async def _serve(target: tuple[str, int], listen: tuple[str, int], link: Link) -> None:
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:  # in a thread: input may be a pipe, a terminal or a file
        with os.fdopen(os.dup(0)) as stdin:
            for line in stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, None)

    async with Proxy(target, link, listen=listen) as proxy:
        print(f"listening on {proxy.url}", flush=True)
        threading.Thread(target=read, daemon=True).start()
        while (line := await lines.get()) is not None:
            print(json.dumps(answer(proxy, line)), flush=True)


def _loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are as fine as the kernel's: asyncio's own rounds up to the milliseconds of epoll."""
    if sys.platform != "linux":
        return asyncio.new_event_loop()

    class FineSelector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(FineSelector())


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """The command line: `python -m preread.testing.proxy --help`."""
    parser = argparse.ArgumentParser(prog="preread.testing.proxy", description="Emulate a wide-area link on loopback.")
    parser.add_argument("--target", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--mbps", type=float, help="each direction; default: unlimited")
    parser.add_argument("--rtt-ms", type=float, default=0)
    parser.add_argument("--jitter-ms", type=float, default=0)
    parser.add_argument("--buffer-bytes", type=int, default=Link().buffer_bytes, help="per connection")
    flags = parser.parse_args()
    try:
        link = Link(flags.mbps, flags.rtt_ms, flags.jitter_ms, flags.buffer_bytes)
        with asyncio.Runner(loop_factory=_loop) as runner, contextlib.suppress(KeyboardInterrupt):
            runner.run(_serve(flags.target, flags.listen, link))
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
