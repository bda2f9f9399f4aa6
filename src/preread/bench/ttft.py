"""Time to first token: computed here, context resident, context streamed; against the floor that physics sets.

Runs alternate between the ways, so that whatever disturbs the machine disturbs all of them; medians are reported.
"""

import json
import pydoc_data.topics
import statistics
import tempfile
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from preread.bench.stage import served
from preread.cloud.profiles import Stored, keep, profile_for
from preread.cloud.publish import Tokens, needed, publish
from preread.codec import profile_bytes as profiles
from preread.edge.answer import answer
from preread.edge.estimates import Estimates
from preread.edge.machine import machine
from preread.edge.request import Ask, Done, Timings
from preread.edge.site import Site, open_site
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampling
from preread.engine.worker import Worker
from preread.errors import EngineError, UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.plan.cost import Link, Need, floor_s
from preread.store.egress import CloudLink
from preread.store.objects import Objects, open_store
from preread.testing.proxy import Link as Wire
from preread.testing.proxy import ProxyProcess

_CONNECTIONS = 8
_HEADINGS = (
    "Mbit/s", "RTT ms", "context", "rung", "B/token", "local s", "resident s", "streamed s", "floor s", "÷ floor",
    "speedup", "same output",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure: every combination of the lists. `profile`: a file, for rungs that need one; or it is fitted."""

    mbps: tuple[float, ...]
    rtt_ms: tuple[float, ...]
    context_tokens: tuple[int, ...]
    prompt_tokens: int
    answer_tokens: int
    rungs: tuple[str, ...]
    runs: int
    profile: Path | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the grid; times are medians in seconds, `bytes_per_token` is what crossed the wire."""

    mbps: float
    rtt_ms: float
    context_tokens: int
    prompt_tokens: int
    rung: str
    bytes_per_token: int
    local_s: float
    resident_s: float
    streamed_s: float
    floor_s: float
    ratio_to_floor: float
    speedup: float
    same_output: bool
    way: str


@dataclass(frozen=True, slots=True)
class _Run:
    timings: Timings
    output: str

    @property
    def ttft_s(self) -> float:
        return self.timings.ttft_ms / 1e3


def text() -> str:
    """Real prose of some 700 KB that every Python carries: the language's own reference."""
    return "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


async def bench(model: Path, name: str, grid: Grid, console: Console) -> dict[str, object]:
    """Publish contexts, measure the grid, print a table and last one line of JSON, which is also returned.

    Raises:
        UsageError: a context does not fit the model's window.
    """
    with tempfile.TemporaryDirectory(prefix="preread-bench-") as scratch:
        store, cache = Path(scratch) / "store", Path(scratch) / "edge"
        console.print(f"publishing contexts of {', '.join(map(str, grid.context_tokens))} tokens with {name} …")
        prompt = await _publish(model, name, grid, store)
        rows: list[Row] = []
        table = Table(*_HEADINGS, title=f"time to first token, {name}, medians of {grid.runs}")
        with served(store) as port, ProxyProcess(port) as proxy:
            link = CloudLink(proxy.url, connections=_CONNECTIONS)
            async with open_site(model, name, link, cache, shelf_bytes=0, sync_s=3600) as site:
                for mbps, rtt_ms in ((m, r) for m in grid.mbps for r in grid.rtt_ms):
                    proxy.set_link(Wire(mbps=mbps, rtt_ms=rtt_ms))
                    for context_tokens in grid.context_tokens:
                        for row in await _cell(site, link, grid, mbps, rtt_ms, context_tokens, prompt):
                            rows.append(row)
                            table.add_row(*_cells(row))
                            console.print(" ".join(_cells(row)), style="dim")
        result: dict[str, object] = {
            "bench": "ttft", "model": name, "rows": [asdict(row) for row in rows], "machine": asdict(machine())
        }  # fmt: skip
        console.print(table)
        print(json.dumps(result))
        return result


async def _publish(model: Path, name: str, grid: Grid, store: Path) -> Tokens:
    """Publish a context of each length; the prompt's tokens."""
    longest, worker = max(grid.context_tokens), Worker()
    engine = await worker.run(
        lambda: LlamaCpp.open(model, name=name, window_tokens=max(_window(grid), 1024), scored_tokens=TAIL_TOKENS)
    )
    try:
        tokens = engine.tokenize(text()[: 16 * (longest + grid.prompt_tokens) + 4096], special=False)
        if len(tokens) < longest + grid.prompt_tokens:
            raise UsageError(f"a context of {longest} tokens is longer than the benchmark's text")
        objects, rungs = open_store(str(store)), tuple(dict.fromkeys(grid.rungs))
        profile = await _profile(grid, objects, engine, worker)
        for count in sorted(set(grid.context_tokens)):
            await publish(objects, engine, worker, f"t{count}", tokens[:count], "text", rungs, lambda *_: None, profile)
        return np.ascontiguousarray(tokens[longest : longest + grid.prompt_tokens])
    finally:
        engine.close()
        worker.close()


async def _profile(grid: Grid, objects: Objects, engine: LlamaCpp, worker: Worker) -> Stored | None:
    """The profile that the rungs need, if any: from a file, or fitted now."""
    if not needed(grid.rungs):
        return None
    if grid.profile is None:
        return await profile_for(objects, engine, worker, lambda *_: None)
    return await keep(objects, profiles.loads(grid.profile.read_bytes()))


def _window(grid: Grid) -> int:
    need = max(grid.context_tokens) + grid.prompt_tokens + grid.answer_tokens + 128
    return (need + 255) // 256 * 256


async def _cell(
    site: Site, link: CloudLink, grid: Grid, mbps: float, rtt_ms: float, context_tokens: int, prompt: Tokens
) -> list[Row]:
    """All rungs at one link and context length, in one interleaved run."""
    ask = Ask(
        prompt=tuple(map(int, prompt)), context=f"t{context_tokens}", sampling=Sampling(max_tokens=grid.answer_tokens)
    )
    runs: dict[str, list[_Run]] = {way: [] for way in ("local", "resident", *grid.rungs)}
    site.link = link
    site.estimates, site.rung = Estimates(site.estimates.prefill_tokens_s), grid.rungs[-1]
    await site.sync()
    await _run(site, ask, cold=True)  # not counted: from here on the edge knows its link, as one that is in use does
    for _ in range(grid.runs):
        site.link = None
        runs["local"].append(await _run(site, ask, cold=True))
        runs["resident"].append(await _run(site, ask, cold=False))
        site.link = link
        for rung in grid.rungs:
            site.rung = rung
            await link.warm(_CONNECTIONS)  # as the edge does itself from time to time
            runs[rung].append(await _run(site, ask, cold=True))
    local_s, resident_s = (statistics.median(run.ttft_s for run in runs[way]) for way in ("local", "resident"))
    prefill_s = statistics.median(run.timings.context_ms / 1e3 for run in runs["local"])
    rows = []
    for rung in grid.rungs:
        size_bytes = statistics.median(run.timings.bytes_received for run in runs[rung])
        need = Need(context_tokens, int(size_bytes), context_tokens / prefill_s, resident_s)
        floor = floor_s(need, Link(mbps * 1e6 / 8, rtt_ms / 1e3))
        streamed_s = statistics.median(run.ttft_s for run in runs[rung])
        rows.append(
            Row(
                mbps=mbps,
                rtt_ms=rtt_ms,
                context_tokens=context_tokens,
                prompt_tokens=grid.prompt_tokens,
                rung=rung,
                bytes_per_token=round(size_bytes / context_tokens),
                local_s=round(local_s, 4),
                resident_s=round(resident_s, 4),
                streamed_s=round(streamed_s, 4),
                floor_s=round(floor, 4),
                ratio_to_floor=round(streamed_s / floor, 3),
                speedup=round(local_s / streamed_s, 2),
                same_output=all(run.output == runs["local"][0].output for run in runs[rung]),
                way=statistics.mode(run.timings.way for run in runs[rung]),
            )
        )
    return rows


async def _run(site: Site, ask: Ask, *, cold: bool) -> _Run:
    if cold:
        await site.forget()
    texts: list[str] = []
    async with aclosing(answer(ask, site)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Done):
                return _Run(piece.timings, "".join(texts))
            texts.append(piece.text)
    raise EngineError("the answer ended without an end: this is a bug in preread")


def _cells(row: Row) -> Iterable[str]:
    return (
        f"{row.mbps:g}", f"{row.rtt_ms:g}", str(row.context_tokens), row.rung, str(row.bytes_per_token),
        f"{row.local_s:.3f}", f"{row.resident_s:.3f}", f"{row.streamed_s:.3f}", f"{row.floor_s:.3f}",
        f"{row.ratio_to_floor:.2f}", f"{row.speedup:.1f}", "yes" if row.same_output else "no",
    )  # fmt: skip
