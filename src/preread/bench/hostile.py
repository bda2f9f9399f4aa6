"""An honest client among hostile ones: its time to first token, and the edge's memory, with them and without.

The edge is a process of its own, the hostile clients are another, with a key that all of them share; the honest one has
its own. Each hostile client does one of `KINDS` again and again, as fast as it is let. They share the edge's cores, but
what they send is made once, so that they need little of them. Rounds without and with them alternate, so that whatever
disturbs the machine disturbs both; medians are reported.
"""

import asyncio
import itertools
import json
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
from rich.console import Console
from rich.table import Table

from preread.bench.processes import Server
from preread.edge.machine import machine
from preread.errors import TransportError
from preread.testing.tiny import NAME as TINY
from preread.testing.tiny import write_tiny

_WINDOW: Final = 2048
_SETTLE_S: Final = 3.0
_HOLD_S: Final = 15.0
_CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Options:
    """What to run: `rounds` without and with so many hostile `clients`, and in each so many honest `questions`."""

    model: Path
    name: str
    clients: int = 64
    rounds: int = 3
    questions: int = 15
    prompt_words: int = 200


async def bench(options: Options, console: Console) -> dict[str, object]:
    """Measure, print a table and last one line of JSON, which is also returned.

    Raises:
        TransportError: the edge did not start, or did not answer the honest client.
    """
    quiet, hostile, done = [], [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="preread-hostile-") as scratch:
        honest_key, other_key = secrets.token_hex(16), secrets.token_hex(16)
        async with _edge(options, Path(scratch), (honest_key, other_key)) as edge:
            await _first_tokens_s(edge.url, honest_key, options, 2)  # warm
            before_bytes = edge.peak_bytes()
            for number in range(options.rounds):
                quiet += await _first_tokens_s(edge.url, honest_key, options, number)
                with _crowd(edge.url, other_key, options.clients, done):
                    await asyncio.sleep(_SETTLE_S)
                    hostile += await _first_tokens_s(edge.url, honest_key, options, number)
                console.print(f"round {number + 1} of {options.rounds}", style="dim")
            peak_bytes = edge.peak_bytes()
    title = f"an honest client among hostile ones: {options.name}"
    table = Table("hostile clients", "median TTFT, s", "worst, s", title=title)
    for count, seen in ((0, quiet), (options.clients, hostile)):
        table.add_row(str(count), f"{statistics.median(seen):.3f}", f"{max(seen):.3f}")
    console.print(table)
    result: dict[str, object] = {
        "bench": "hostile", "model": options.name, "clients": options.clients, "questions": len(quiet),
        "quiet_s": round(statistics.median(quiet), 4), "hostile_s": round(statistics.median(hostile), 4),
        "ratio": round(statistics.median(hostile) / statistics.median(quiet), 2),
        "worst_quiet_s": round(max(quiet), 3), "worst_hostile_s": round(max(hostile), 3),
        "hostile_requests": done, "before_mib": before_bytes >> 20, "peak_mib": peak_bytes >> 20,
        "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


@asynccontextmanager
async def _edge(options: Options, scratch: Path, keys: Sequence[str]) -> AsyncGenerator[Server, None]:
    model = options.model
    if options.name == TINY:
        model = write_tiny(scratch / f"{TINY}.gguf", model)
    file = scratch / "keys"
    file.write_text("".join(f"ask:{key}\n" for key in keys))
    file.chmod(0o600)
    # What is kept of conversations would answer the honest one's next round.
    arguments = ["edge", "--model", str(model), "-c", str(_WINDOW), "--keep-conversations", "0"]
    arguments += ["--api-key-file", str(file), "--host", "127.0.0.1"]
    edge = Server(["--log-level", "error", *arguments], scratch / "edge", model.parent)
    edge.start()
    try:
        await edge.ready()
        yield edge
    finally:
        edge.kill()


async def _first_tokens_s(url: str, key: str, options: Options, seed: int) -> list[float]:
    """Times to first token of the honest client, which asks, reads its answer, thinks, and asks again."""
    chance, seen = random.Random(seed), []
    async with httpx2.AsyncClient(base_url=url, headers=_bearer(key), timeout=120, trust_env=False) as http:
        for _ in range(options.questions):
            words = " ".join(chance.choice(("pump", "filter", "fan", "valve")) for _ in range(options.prompt_words))
            body = {"messages": [{"role": "user", "content": words}], "stream": True, "max_tokens": 4}
            began = time.monotonic()
            async with http.stream("POST", _CHAT, json=body) as answer:
                if answer.status_code != 200:
                    raise TransportError(f"the honest client was answered {answer.status_code}")
                lines = [(time.monotonic(), line) async for line in answer.aiter_lines() if line.startswith("data: {")]
            if not lines or '"error"' in lines[0][1]:
                raise TransportError(f"the honest client got no answer: {lines[:1]}")
            seen.append(lines[0][0] - began)
            await asyncio.sleep(chance.uniform(0.1, 0.5))
    return seen


@contextmanager
def _crowd(url: str, key: str, clients: int, done: Counter[str]) -> Iterator[None]:
    """The hostile clients, in a process of their own.

    What they did is added to `done`.
    """
    command = [sys.executable, "-m", "preread.bench.hostile", url, str(clients)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(key + "\n")
            process.stdin.flush()
            yield
            process.stdin.close()
            done.update(json.loads(process.stdout.readline() or "{}"))
        finally:
            process.kill()


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# What hostile clients do


@dataclass(frozen=True, slots=True)
class Target:
    """Whom they do it to."""

    host: str
    port: int
    key: str

    def head(self, length: int) -> bytes:
        """A request's line and headers."""
        return (
            f"POST {_CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    def request(self, body: bytes) -> bytes:
        """All of it."""
        return self.head(len(body)) + body


async def _send(target: Target, data: bytes, wait_s: float, *, read: bool = True) -> None:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(data)
        async with asyncio.timeout(wait_s):
            await (reader.readuntil(b"\r\n\r\n") if read else writer.wait_closed())
    finally:
        writer.transport.abort()


@cache
def _asked(content: str, times: int = 1, **fields: Any) -> bytes:
    """The body of a chat of so many messages, each of which says the same."""
    return json.dumps({"messages": times * [{"role": "user", "content": content}], **fields}).encode()


async def huge_body(target: Target) -> None:
    """8 MB of letters in one message."""
    await _send(target, target.request(_asked("a" * 8_000_000)), 60)


async def longest_prompt(target: Target) -> None:
    """As many blanks as might be one window of tokens."""
    await _send(target, target.request(_asked(" " * 150_000)), 60)


async def too_many_messages(target: Target) -> None:
    """50,000 messages of one letter."""
    await _send(target, target.request(_asked("a", 50_000)), 60)


async def many_messages(target: Target) -> None:
    """As many messages as a window might just hold: templates and tokenizers take longer than proportionally."""
    await _send(target, target.request(_asked("a", _WINDOW - 8)), 60)


async def half_head(target: Target) -> None:
    """A head that does not end."""
    await _send(target, target.head(10)[:-4], _HOLD_S)


async def half_body(target: Target) -> None:
    """A body of which half comes."""
    await _send(target, target.head(1_000_000) + b" " * 500_000, _HOLD_S)


async def hang_up(target: Target) -> None:
    """Asks, and is gone."""
    await _send(target, target.request(_asked("word " * 1000, stream=True)), 0.05, read=False)


async def unread(target: Target) -> None:
    """An answer that fills the window, of which nothing is read."""
    endless = _asked("Go on.", stream=True, max_tokens=_WINDOW, ignore_eos=True)
    await _send(target, target.request(endless), _HOLD_S, read=False)


KINDS: Final[tuple[Callable[[Target], Awaitable[None]], ...]] = (
    huge_body, longest_prompt, too_many_messages, many_messages, half_head, half_body, hang_up, unread,
)  # fmt: skip


async def _again(kind: Callable[[Target], Awaitable[None]], target: Target, done: Counter[str]) -> None:
    while True:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await kind(target)
        done[kind.__name__] += 1


async def _be_hostile(url: str, clients: int, key: str) -> None:
    """Until standard input ends; then it says how often each kind was done."""
    parts, done = urlsplit(url), Counter[str]()
    target = Target(parts.hostname or "127.0.0.1", parts.port or 80, key)
    kinds = itertools.islice(itertools.cycle(KINDS), clients)
    tasks = [asyncio.create_task(_again(kind, target, done)) for kind in kinds]
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(done), flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_be_hostile(sys.argv[1], int(sys.argv[2]), sys.stdin.readline().strip()))
