"""A llama-server with and without `preread attach`: time to the first token about a context that it does not hold.

Both ways are asked the same, in turn. Before each question the server's slots are emptied, and the proxy is started
anew with nothing on its disk, so that all of the context comes over the emulated link.
"""

import asyncio
import json
import shutil
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx2
from rich.console import Console
from rich.table import Table

from preread.bench import corpus
from preread.bench.peers import started_by
from preread.bench.processes import Server
from preread.cloud import client
from preread.cloud.profiles import keep
from preread.codec import profile_bytes as profiles
from preread.errors import TransportError
from preread.fit.sample import TAIL_TOKENS
from preread.store.objects import open_store
from preread.testing.proxy import Link, ProxyProcess

ALONE: Final = "alone"
_READY_S: Final = 300.0
_QUIET_S: Final = 0.3
_QUESTION_TOKENS: Final = 25

Check = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured.

    Attributes:
        command: of a llama-server, with {port}, {model} and {slots} for what it gets.
        model, profile: GGUF file, and of the rungs that need one.
        rungs: that the context comes in.
        lengths: of contexts, in tokens.
        mbps, rtt_ms: of links.
        runs: of each; answer_tokens: of each answer.
    """

    command: str
    model: Path
    profile: Path | None
    rungs: tuple[str, ...] = ("lossless", "b1.2")
    lengths: tuple[int, ...] = (1000, 4000)
    mbps: tuple[float, ...] = (20.0, 100.0)
    rtt_ms: float = 20.0
    runs: int = 3
    answer_tokens: int = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One question: about a context of so many tokens, over such a link, the way it was asked, and what came of it."""

    tokens: int
    mbps: float
    way: str
    ttft_s: float
    computed: int
    text: str


async def bench(setting: Setting, console: Console) -> None:
    """Measure, and print a table of medians.

    Raises:
        PrereadError: a part does not start, or fails.
    """
    with TemporaryDirectory(prefix="preread-attach-") as scratch:
        async with _parts(setting, Path(scratch)) as parts:
            rows = []
            async for row in _measured(setting, parts):
                console.print(f"{row.tokens} {row.mbps:g} {row.way}: {row.ttft_s:.2f} s, {row.computed} computed")
                rows.append(row)
    console.print(_table(setting, rows))


@dataclass(frozen=True, slots=True)
class _Parts:
    server: str
    slots: Path
    cloud: Server
    proxy: ProxyProcess
    scratch: Path
    documents: dict[int, str]
    questions: tuple[str, ...]


@asynccontextmanager
async def _parts(setting: Setting, scratch: Path) -> AsyncGenerator[_Parts, None]:
    """A llama-server, and a cloud behind a link that has published a document of each length."""
    slots = scratch / "slots"
    slots.mkdir()
    filled = {"{model}": str(setting.model), "{slots}": str(slots)}
    server = started_by(setting.command, filled, scratch / "llama-server.log", "--server-command")
    drawn = {
        tokens: corpus.draw(setting.model, tokens, 1, tokens, setting.runs, _QUESTION_TOKENS)
        for tokens in setting.lengths
    }
    if setting.profile is not None:
        await keep(open_store(str(scratch / "store")), profiles.loads(setting.profile.read_bytes()))
    window = str(max(setting.lengths) + TAIL_TOKENS)
    cloud = Server(
        ["--log-level", "error", "cloud", "--model", str(setting.model), "-c", window,
         "--store", str(scratch / "store"), "--rungs", ",".join(setting.rungs)],
        scratch / "cloud-cache", setting.model.parent,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        stack.callback(cloud.kill)
        cloud.start()
        await cloud.ready()
        for tokens, one in drawn.items():
            await asyncio.to_thread(_publish, cloud.url, f"context{tokens}", one.documents[0])
        proxy = stack.enter_context(ProxyProcess(cloud.port, Link(setting.mbps[0], setting.rtt_ms)))
        stack.callback(server.kill)
        await server.fresh()
        documents = {tokens: one.documents[0] for tokens, one in drawn.items()}
        yield _Parts(server.url, slots, cloud, proxy, scratch, documents, next(iter(drawn.values())).questions)


def _publish(cloud: str, name: str, document: str) -> None:
    for _ in client.publish(cloud, name, text=document, form="chat"):
        pass


async def _measured(setting: Setting, parts: _Parts) -> AsyncGenerator[Row, None]:
    ways = (ALONE, *setting.rungs)
    for run in range(setting.runs):
        for tokens, document in parts.documents.items():
            for mbps in setting.mbps:
                # What needs no link is measured over none of them.
                for way in ways if mbps == setting.mbps[0] else setting.rungs:
                    question = {"role": "user", "content": parts.questions[run]}
                    if way == ALONE:
                        system = {"role": "system", "content": document}
                        told = await _cold(parts, parts.server, {"messages": [system, question]}, setting)
                    else:
                        body: dict[str, Any] = {"context": f"context{tokens}", "messages": [question]}
                        async with _attached(setting, parts, way, Link(mbps, setting.rtt_ms)) as url:
                            told = await _cold(parts, url, body, setting)
                    yield Row(tokens, mbps, way, *told)


@asynccontextmanager
async def _attached(setting: Setting, parts: _Parts, rung: str, link: Link) -> AsyncGenerator[str, None]:
    """A proxy that has tried the server and knows what is published, and that nothing comes to any more."""
    await asyncio.to_thread(parts.proxy.set_link, link)
    shutil.rmtree(parts.scratch / "cache", ignore_errors=True)
    attach = Server(
        ["--log-level", "warning", "attach", "--model", str(setting.model), "--server", parts.server,
         "--slots", str(parts.slots), "--cloud", parts.proxy.url, "--rung", rung, "--disk-cache", "0"],
        parts.scratch / "cache", setting.model.parent,
    )  # fmt: skip
    try:
        attach.start()
        await attach.ready()
        known = len(parts.documents)
        await _until(f"{attach.url}/preread", lambda told: told["restoring"] and told["contexts"] == known)
        seen = -1
        while (now := (await asyncio.to_thread(lambda: parts.proxy.stats)).bytes_down) != seen:
            seen = now
            await asyncio.sleep(_QUIET_S)
        yield attach.url
    finally:
        attach.kill()


async def _cold(parts: _Parts, url: str, body: dict[str, Any], setting: Setting) -> tuple[float, int, str]:
    """Seconds to the first token, tokens of the prompt that were computed, and the answer, of a server without KV."""
    fixed = {"stream": True, "temperature": 0, "max_tokens": setting.answer_tokens}
    async with httpx2.AsyncClient(trust_env=False, timeout=_READY_S) as http:
        for slot in (await http.get(f"{parts.server}/slots")).json():
            await http.post(f"{parts.server}/slots/{slot['id']}?action=erase", json={})
        began_s, first_s, text, computed = time.perf_counter(), None, "", 0
        async with http.stream("POST", f"{url}/v1/chat/completions", json={**body, **fixed}) as answer:
            if answer.status_code != 200:
                raise TransportError(f"{url} answers {answer.status_code}: {(await answer.aread())[:300]!r}")
            async for line in answer.aiter_lines():
                event = line.removeprefix("data: ")
                if event == line or event == "[DONE]":
                    continue
                part = json.loads(event)
                computed = part.get("timings", {}).get("prompt_n", computed)
                said = "".join(choice["delta"].get("content") or "" for choice in part["choices"])
                if said and first_s is None:
                    first_s = time.perf_counter() - began_s
                text += said
    return first_s or time.perf_counter() - began_s, computed, text


async def _until(url: str, there: Check) -> None:
    """Raises TransportError where it does not come about in five minutes."""
    try:
        async with asyncio.timeout(_READY_S), httpx2.AsyncClient(trust_env=False) as http:
            while True:
                try:
                    told = await http.get(url)
                    if told.status_code == 200 and there(told.json()):
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TransportError(f"{url} does not become ready") from None


def _table(setting: Setting, rows: list[Row]) -> Table:
    """Medians; an answer is the same where it is the one that the server gave alone, in the same run."""
    table = Table("TOKENS", "MBIT/S", "WAY", "FIRST TOKEN", "SOONER", "COMPUTED", "SAME ANSWER")
    for tokens in setting.lengths:
        alone = [row for row in rows if row.tokens == tokens and row.way == ALONE]
        alone_s = statistics.median(row.ttft_s for row in alone)
        computed = statistics.median(row.computed for row in alone)
        table.add_row(f"{tokens:,}", "", ALONE, f"{alone_s:.2f} s", "", f"{computed:g}", "")
        for mbps in setting.mbps:
            for rung in setting.rungs:
                these = [row for row in rows if (row.tokens, row.mbps, row.way) == (tokens, mbps, rung)]
                median_s = statistics.median(row.ttft_s for row in these)
                computed = statistics.median(row.computed for row in these)
                same = sum(one.text == other.text for one, other in zip(these, alone, strict=True))
                told = (f"{median_s:.2f} s", f"{alone_s / median_s:.1f} ×", f"{computed:g}", f"{same} of {len(these)}")
                table.add_row(f"{tokens:,}", f"{mbps:g}", rung, *told)
    return table
