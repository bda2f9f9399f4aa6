"""Several edges behind one uplink, all asked at once about the same cold context, with and without neighbours.

Measured are the bytes that come down the uplink, and each edge's time to first token at its client. A cloud, the link
and every edge are processes of their own; edges talk to each other directly, not over the emulated link. For each run
the edges are started anew with empty caches. Then each is asked once about a context of its own, one edge after the
other: from then on it knows what its link and its neighbours carry, as one that is in use does, and holds a context
that the measured one has to replace. That is not counted. Runs alternate between all counts of edges, without and with
neighbours, so that whatever disturbs the machine disturbs all of them; medians are reported.

All edges of a run share this machine's cores, as those of a site do not: what one computes or decodes slows the others,
and a slower edge loads more and computes less. So that it is the same machine in each row, every edge gets the cores
divided by the largest count of edges as its threads, and while fewer edges than that are at work, which is also while
they learn their links one after the other, processes that do nothing useful take the others' share of the cores.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from preread.bench.group import Asked, Group, Setting, grouped
from preread.bench.processes import busy
from preread.bench.stage import served
from preread.bench.tally import Run, summed, table, told
from preread.bench.ttft import stored_profile, text
from preread.cloud.document import Tokens
from preread.cloud.publish import publish
from preread.edge.machine import machine
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.store.objects import open_store
from preread.testing.proxy import Link, ProxyProcess

_MEASURED: Final = "measured"
_MOST_WARM_TOKENS: Final = 512
_QUIET_S, _MOST_QUIET_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        edges: counts of edges; one alone is always measured too.
        threads: of each edge; 0: the cores divided by the largest count, at least 1.
        profile: a file, for a rung that needs one; or it is fitted.
    """

    edges: tuple[int, ...]
    mbps: float
    rtt_ms: float
    context_tokens: int
    prompt_tokens: int
    answer_tokens: int
    rung: str
    runs: int
    threads: int = 0
    profile: Path | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many edges are asked at once, the fewest first."""
        return tuple(sorted({1, *self.edges}))

    @property
    def window_tokens(self) -> int:
        """KV cache of each edge."""
        return (self.context_tokens + self.prompt_tokens + self.answer_tokens + 128 + 255) // 256 * 256

    @property
    def warm_tokens(self) -> int:
        """Length of the contexts that edges learn their link with."""
        return min(_MOST_WARM_TOKENS, self.context_tokens)


async def bench(model: Path, name: str, options: Options, console: Console) -> dict[str, object]:
    """Publish, measure, print a table and last one line of JSON, which is also returned.

    Raises:
        UsageError: the context does not fit the model's window.
        PrereadError: a part could not be started, or an edge did not answer.
    """
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="preread-site-") as scratch:
        console.print(f"publishing a context of {options.context_tokens} tokens with {name} …", style="dim")
        context_bytes, prompts = await _publish(model, name, options, Path(scratch) / "store")
        with served(Path(scratch) / "store") as port, ProxyProcess(port, Link(options.mbps, options.rtt_ms)) as uplink:
            for number, (count, neighbours) in enumerate(_order(options)):
                folder = Path(scratch) / f"run{number}"
                setting = Setting(
                    model.resolve(), uplink.url, options.rung, options.window_tokens, threads(options), folder
                )
                async with grouped(setting, count, neighbours=neighbours) as edges:
                    runs.append(await _run(edges, count, neighbours, uplink, options, prompts))
                console.print(told(runs[-1]), style="dim")
    rows = summed(runs, options.context_tokens, context_bytes)
    title = (
        f"one cold context of {options.context_tokens} tokens at {options.rung} over one uplink of "
        f"{options.mbps:g} Mbit/s, {options.rtt_ms:g} ms: {name}, medians of {options.runs}"
    )
    caption = (
        f"All edges share this machine's {len(os.sched_getaffinity(0))} cores, {threads(options)} threads each: "
        "what one computes slows the others."
    )
    console.print(table(rows, title, caption))
    result: dict[str, object] = {
        "bench": "site", "model": name, "mbps": options.mbps, "rtt_ms": options.rtt_ms, "rung": options.rung,
        "context_tokens": options.context_tokens, "context_bytes": context_bytes, "threads": threads(options),
        "rows": [asdict(row) for row in rows], "runs": [asdict(run) for run in runs], "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


def threads(options: Options) -> int:
    """Threads of each edge."""
    return options.threads or max(1, len(os.sched_getaffinity(0)) // max(options.counts))


def _order(options: Options) -> Iterator[tuple[int, bool]]:
    for _ in range(options.runs):
        for count in options.counts:
            yield count, False
            if count > 1:
                yield count, True


async def _run(
    edges: Group, count: int, neighbours: bool, uplink: ProxyProcess, options: Options, prompts: list[tuple[int, ...]]
) -> Run:
    most = max(options.counts)
    with busy(most - 1):
        for number in range(count):
            await edges.ask(number, Asked(f"warm{number}", prompts[number], options.answer_tokens))
    before = await _quiet(uplink)
    with busy(most - count):
        answers = await edges.ask_all([Asked(_MEASURED, prompt, options.answer_tokens) for prompt in prompts[:count]])
    return Run(count, neighbours, await _quiet(uplink) - before, tuple(answers))


async def _quiet(uplink: ProxyProcess) -> int:
    """Bytes down the uplink so far, once no more are coming: what was given up may still be on its way."""
    seen, deadline = -1, asyncio.get_running_loop().time() + _MOST_QUIET_S
    while (now := (await asyncio.to_thread(lambda: uplink.stats)).bytes_down) != seen:
        seen = now
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(_QUIET_S)
    return now


async def _publish(model: Path, name: str, options: Options, store: Path) -> tuple[int, list[tuple[int, ...]]]:
    """Publish the measured context and, for each edge, one to learn the link with.

    Returns the bytes of the measured one's segments, and a prompt for each edge. All tokens are pieces of one text,
    none of them twice: segments of one context are of no use for another.
    """
    most, worker = max(options.counts), Worker()
    lengths = [options.context_tokens, *[options.warm_tokens] * most, *[options.prompt_tokens] * most]
    window_tokens = max(options.window_tokens, 1024)
    engine = await worker.run(
        lambda: LlamaCpp.open(model, name=name, window_tokens=window_tokens, scored_tokens=TAIL_TOKENS)
    )
    try:
        tokens = engine.tokenize(text()[: 16 * sum(lengths) + 4096], special=False)
        if len(tokens) < sum(lengths):
            raise UsageError(f"a context of {options.context_tokens} tokens is longer than the benchmark's text")
        measured, *rest = _pieces(tokens, lengths)
        objects, rungs = open_store(str(store)), (options.rung,)
        profile = await stored_profile(rungs, options.profile, objects, engine, worker)
        contexts = {_MEASURED: measured} | {f"warm{number}": piece for number, piece in enumerate(rest[:most])}
        sizes = {}
        for context, piece in contexts.items():
            done = await publish(objects, engine, worker, context, piece, "text", rungs, lambda *_: None, profile)
            sizes[context] = sum(done.rung_bytes.values())  # of the rung, and of the one that it refines if it does
        return sizes[_MEASURED], [tuple(map(int, piece)) for piece in rest[most:]]
    finally:
        engine.close()
        worker.close()


def _pieces(tokens: Tokens, lengths: Sequence[int]) -> Iterator[Tokens]:
    start = 0
    for length in lengths:
        yield tokens[start : start + length]
        start += length
