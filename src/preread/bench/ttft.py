"""Time to first token: the edge as it decides by itself, against what it could have done, and the floor of physics.

Runs alternate between the ways (`ways.py`), so that whatever disturbs the machine disturbs all of them; medians are
reported. Local prefill needs no link: with `local_every` above 1 it is measured again only in every so many cells of a
context length, and the median of its last three measurements is taken. The prompt alone, from which the floor follows,
is measured after every answer, on the context that this has left in the cache. The baselines that load all of the
context are measured where that takes up to 1.5 × local prefill; where it would take longer, the time of the bytes alone
is given (`estimated`), and they are out of the race. The oracle knows the link: it is the better of local prefill and
loading all at the same rung.
"""

import json
import pydoc_data.topics
import statistics
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from preread.bench.stage import served
from preread.bench.ways import Run, Ways
from preread.cloud.document import Tokens
from preread.cloud.profiles import Stored, keep, profile_for
from preread.cloud.publish import needed, publish
from preread.codec import profile_bytes as profiles
from preread.edge.machine import machine
from preread.edge.opening import open_node
from preread.edge.options import Options
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.plan.cost import Link, Need, floor_in_order_s, floor_s, load_s
from preread.store.egress import CloudLink
from preread.store.objects import Objects, open_store
from preread.testing.proxy import Link as Wire
from preread.testing.proxy import ProxyProcess

ISSUE_MBPS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0, 1000.0)
ISSUE_RTT_MS = (5.0, 20.0, 80.0)
ISSUE_CONTEXT_TOKENS = (300, 1000, 4000)
_LOSSLESS = "lossless"
_WORTH = 1.5
"""Loading is measured where it is expected to take up to this many times local prefill."""
_HEADINGS = (
    "Mbit/s", "RTT", "context", "rung", "B/token", "local", "lossless", "loaded", "planned", "expected", "floor",
    "÷ floor", "÷ in order", "÷ local", "÷ oracle", "same", "way", "by layers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure: every combination of the lists. `profile`: a file, for rungs that need one; or it is fitted.

    Attributes:
        rungs: what is published; each gives a row, or, with `choose`, there is one for the edge's own choice.
        runs: of each way in each cell.
        local_every: in every how many cells of a context length local prefill is measured.
        out: rows are added to this file as they are measured, a line of JSON each; those that it has are not
            measured again.
        kv_memory_bytes: of the edge's cache; None: as by default.
    """

    mbps: tuple[float, ...]
    rtt_ms: tuple[float, ...]
    context_tokens: tuple[int, ...]
    prompt_tokens: int
    answer_tokens: int
    rungs: tuple[str, ...]
    runs: int
    profile: Path | None = None
    choose: bool = False
    local_every: int = 1
    out: Path | None = None
    kv_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the grid; times are medians in seconds, None: never. `bytes_per_token` is that of the whole rung.

    `lossless_s` and `loaded_s`: all of the context loaded, at the lossless rung and at this one; `streamed_s`: as the
    edge decides, by `way` in most runs. `ratio_in_order`: to the floor of an answer that is not computed before the KV
    that it reads has come, `plan.cost.floor_in_order_s`. `predicted_s`: what the plan expected when the load began;
    `layered`: the share of the context's work that was done here by computing first layers only.
    """

    mbps: float
    rtt_ms: float
    context_tokens: int
    prompt_tokens: int
    rung: str
    bytes_per_token: int
    local_s: float
    resident_s: float
    lossless_s: float | None
    loaded_s: float | None
    estimated: tuple[str, ...]
    streamed_s: float
    floor_s: float
    ratio_to_floor: float
    ratio_in_order: float
    ratio_to_local: float
    ratio_to_oracle: float
    speedup: float
    same_output: bool
    way: str
    predicted_s: float | None = None
    layered: float = 0.0


def text() -> str:
    """Real prose of some 700 KB that every Python carries: the language's own reference."""
    return "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


async def bench(model: Path, name: str, grid: Grid, console: Console) -> list[Row]:
    """Publish contexts, measure the grid, print a table and last one line of JSON; the rows.

    Raises:
        UsageError: a context does not fit the model's window; `out` cannot be read or written.
    """
    rows = _kept(grid, name)
    table = Table(*_HEADINGS, title=f"time to first token (s), {name}, medians of {grid.runs}")
    async with staged(model, name, grid, console) as (ways, proxy):
        local = Local(ways, grid)
        for mbps, rtt_ms in ((m, r) for m in grid.mbps for r in grid.rtt_ms):
            missing = _missing(rows, grid, mbps, rtt_ms)
            if not missing:
                continue
            proxy.set_link(Wire(mbps=mbps, rtt_ms=rtt_ms))
            await ways.learn_link()
            # Not counted: from here on the edge knows its link, as one that is in use does.
            await ways.planned(f"t{missing[0]}", None if grid.choose else grid.rungs[-1])
            for context_tokens in missing:
                for row in await _cell(ways, local, grid, mbps, rtt_ms, context_tokens):
                    rows.append(row)
                    console.print(" ".join(_cells(row)), style="dim")
                    _keep(grid, name, row)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    told = {"rows": [asdict(row) for row in rows], **summary(rows), "machine": asdict(machine())}
    print(json.dumps({"bench": "ttft", "model": name, **told}))
    return rows


@asynccontextmanager
async def staged(
    model: Path, name: str, grid: Grid, console: Console
) -> AsyncGenerator[tuple[Ways, ProxyProcess], None]:
    """Publish the contexts; a cloud, a link, and an edge in this process, that knows them and has its window."""
    with tempfile.TemporaryDirectory(prefix="preread-bench-") as scratch:
        store, cache = Path(scratch) / "store", Path(scratch) / "edge"
        console.print(f"publishing contexts of {', '.join(map(str, grid.context_tokens))} tokens with {name} …")
        prompt = await _publish(model, name, grid, store)
        with served(store) as port, ProxyProcess(port) as proxy:
            link = CloudLink(proxy.url)
            options = Options(
                name,
                window_tokens=_window(grid),
                kv_memory_bytes=grid.kv_memory_bytes,
                cache_ram_bytes=0,
                keep_conversations_s=0,
                sync_s=3600,
            )
            async with open_node(model, name, link, cache, options) as residents:
                await residents.node.settled()
                yield Ways(residents, link, prompt, grid.answer_tokens), proxy


class Local:
    """Local prefill of every context length: the last few runs of each."""

    def __init__(self, ways: Ways, grid: Grid) -> None:
        self._ways, self._every = ways, grid.local_every
        self._most = grid.runs if grid.local_every == 1 else 3
        self._runs: dict[int, deque[Run]] = {}
        self._asked: dict[int, int] = {}

    async def measure(self, context_tokens: int) -> None:
        """Measure it, if it is time."""
        asked = self._asked.get(context_tokens, 0)
        self._asked[context_tokens] = asked + 1
        if asked % self._every == 0:
            run = await self._ways.local(f"t{context_tokens}")
            self._runs.setdefault(context_tokens, deque(maxlen=self._most)).append(run)

    def seconds(self, context_tokens: int) -> float:
        """To the first token."""
        return statistics.median(run.ttft_s for run in self._runs[context_tokens])

    def prefill_tokens_s(self, context_tokens: int) -> float:
        """Rate at which the context was computed."""
        seconds = statistics.median(run.timings.context_ms / 1e3 for run in self._runs[context_tokens])
        return context_tokens / seconds

    def output(self, context_tokens: int) -> str:
        """What local prefill answers."""
        return self._runs[context_tokens][-1].output


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
        profile = await stored_profile(rungs, grid.profile, objects, engine, worker)
        for count in sorted(set(grid.context_tokens)):
            await publish(objects, engine, worker, f"t{count}", tokens[:count], "text", rungs, lambda *_: None, profile)
        return np.ascontiguousarray(tokens[longest : longest + grid.prompt_tokens])
    finally:
        engine.close()
        worker.close()


async def stored_profile(
    rungs: tuple[str, ...], file: Path | None, objects: Objects, engine: LlamaCpp, worker: Worker
) -> Stored | None:
    """The profile that the rungs need, if any: from a file, or fitted now."""
    if not needed(rungs, engine.spec.layers):
        return None
    if file is None:
        return await profile_for(objects, engine, worker, lambda *_: None)
    return await keep(objects, profiles.loads(file.read_bytes()))


def _window(grid: Grid) -> int:
    need = max(grid.context_tokens) + grid.prompt_tokens + grid.answer_tokens + 128
    return (need + 255) // 256 * 256


async def _cell(ways: Ways, local: Local, grid: Grid, mbps: float, rtt_ms: float, context_tokens: int) -> list[Row]:
    """All rungs at one link and context length, in one interleaved run."""
    context, link = f"t{context_tokens}", Link(mbps * 1e6 / 8, rtt_ms / 1e3)
    asked: dict[str | None, str] = {None: ways.rung(context)} if grid.choose else {rung: rung for rung in grid.rungs}
    planned: dict[str | None, list[Run]] = {rung: [] for rung in asked}
    loaded: dict[str, list[float]] = {}
    resident_s: list[float] = []

    async def as_planned() -> None:
        for rung in asked:
            planned[rung].append(await ways.planned(context, rung))
            resident_s.append((await ways.resident(context)).ttft_s)

    async def all_loaded() -> None:
        for rung in dict.fromkeys([*asked.values(), *({_LOSSLESS} & set(grid.rungs))]):
            arrived_s = load_s(Need(context_tokens, ways.size_bytes(context, rung), 1.0, 0.0), link)
            if arrived_s <= _WORTH * local.seconds(context_tokens):
                loaded.setdefault(rung, []).append(await ways.loaded_or_never_s(context, rung))

    for run in range(grid.runs):
        await local.measure(context_tokens)
        # In turns: right behind a long prefill either takes some milliseconds longer.
        for measure in (as_planned, all_loaded) if run % 2 else (all_loaded, as_planned):
            await measure()
    place = _Place(mbps, rtt_ms, context_tokens, link, statistics.median(resident_s))
    return [_row(ways, local, grid, place, asked[rung], runs, loaded) for rung, runs in planned.items()]


@dataclass(frozen=True, slots=True)
class _Place:
    mbps: float
    rtt_ms: float
    context_tokens: int
    link: Link
    resident_s: float


def _row(
    ways: Ways, local: Local, grid: Grid, at: _Place, rung: str, runs: list[Run], loaded: dict[str, list[float]]
) -> Row:
    context_tokens = at.context_tokens
    size_bytes = ways.size_bytes(f"t{context_tokens}", rung)
    local_s, resident_s = local.seconds(context_tokens), at.resident_s
    group_bytes = ways.group_bytes(f"t{context_tokens}", rung)
    need = Need(context_tokens, size_bytes, local.prefill_tokens_s(context_tokens), resident_s, group_bytes)
    predicted_s = [run.predicted_s for run in runs if run.predicted_s is not None]
    streamed_s, floor = statistics.median(run.ttft_s for run in runs), floor_s(need, at.link)

    def all_s(name: str) -> float:
        if name in loaded:
            return statistics.median(loaded[name])
        return load_s(Need(context_tokens, ways.size_bytes(f"t{context_tokens}", name), 1.0, 0.0), at.link)

    baselines = {rung: all_s(rung)} | ({_LOSSLESS: all_s(_LOSSLESS)} if _LOSSLESS in grid.rungs else {})
    return Row(
        mbps=at.mbps,
        rtt_ms=at.rtt_ms,
        context_tokens=context_tokens,
        prompt_tokens=grid.prompt_tokens,
        rung=rung,
        bytes_per_token=round(size_bytes / context_tokens),
        local_s=round(local_s, 4),
        resident_s=round(resident_s, 4),
        lossless_s=_finite(baselines.get(_LOSSLESS)),
        loaded_s=_finite(baselines[rung]),
        estimated=tuple(name for name in baselines if name not in loaded),
        streamed_s=round(streamed_s, 4),
        floor_s=round(floor, 4),
        ratio_to_floor=round(streamed_s / floor, 3),
        ratio_in_order=round(streamed_s / floor_in_order_s(need, at.link), 3),
        ratio_to_local=round(streamed_s / local_s, 3),
        ratio_to_oracle=round(streamed_s / min(local_s, baselines[rung]), 3),
        speedup=round(local_s / streamed_s, 2),
        same_output=all(run.output == local.output(context_tokens) for run in runs),
        way=statistics.mode(run.timings.way for run in runs),
        predicted_s=_finite(statistics.median(predicted_s)) if predicted_s else None,
        layered=round(statistics.median(run.layered for run in runs), 3),
    )


def _finite(seconds: float | None) -> float | None:
    return None if seconds is None or seconds == float("inf") else round(seconds, 4)


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """Median and worst of each ratio over the grid."""
    found: dict[str, object] = {}
    for to in ("to_floor", "in_order", "to_local", "to_oracle"):
        ratios = [getattr(row, f"ratio_{to}") for row in rows]
        found[f"median_{to}"] = round(statistics.median(ratios), 3) if ratios else None
        found[f"worst_{to}"] = max(ratios, default=None)
    return found


def _kept(grid: Grid, name: str) -> list[Row]:
    """The rows of this model that an earlier run has left, those of this grid only."""
    if grid.out is None or not grid.out.exists():
        return []
    rows = []
    try:
        for line in grid.out.read_text().splitlines():
            told = json.loads(line)
            if told.pop("model") == name and told["prompt_tokens"] == grid.prompt_tokens:
                rows.append(Row(**told | {"estimated": tuple(told["estimated"])}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{grid.out} holds no rows of `preread bench ttft`: {error}; name another file") from error
    rows = [row for row in rows if row.mbps in grid.mbps and row.rtt_ms in grid.rtt_ms]
    rows = [row for row in rows if row.context_tokens in grid.context_tokens]
    return rows if grid.choose else [row for row in rows if row.rung in grid.rungs]


def _keep(grid: Grid, name: str, row: Row) -> None:
    if grid.out is None:
        return
    try:
        with grid.out.open("a") as file:
            file.write(json.dumps({"model": name} | asdict(row)) + "\n")
    except OSError as error:
        raise UsageError(f"{grid.out} cannot be written: {error.strerror or error}") from error


def _missing(rows: Sequence[Row], grid: Grid, mbps: float, rtt_ms: float) -> list[int]:
    """Context lengths at this link of which rows are not there."""
    there = [(row.context_tokens, row.rung) for row in rows if (row.mbps, row.rtt_ms) == (mbps, rtt_ms)]
    if grid.choose:
        return [count for count in grid.context_tokens if count not in dict(there)]
    return [count for count in grid.context_tokens if not {(count, rung) for rung in grid.rungs} <= set(there)]


def _cells(row: Row) -> tuple[str, ...]:
    times = (row.local_s, row.lossless_s, row.loaded_s, row.streamed_s, row.predicted_s, row.floor_s)
    return (
        f"{row.mbps:g}", f"{row.rtt_ms:g}", str(row.context_tokens), row.rung, str(row.bytes_per_token),
        *("–" if seconds is None else f"{seconds:.3f}" for seconds in times),
        f"{row.ratio_to_floor:.2f}", f"{row.ratio_in_order:.2f}",
        f"{row.ratio_to_local:.2f}", f"{row.ratio_to_oracle:.2f}",
        "yes" if row.same_output else "no", row.way, f"{row.layered:.0%}" if row.layered else "–",
    )  # fmt: skip
