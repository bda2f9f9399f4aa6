"""Time to first token on a link that follows a trace: the edge as it decides, against an oracle that knows the trace.

Each request begins at a moment of the trace that is drawn from the seed, and the trace is played again from there for
each way. Before it, the edge has seen the second and a half that precede it: a sync, and connections that were touched;
and all requests before, as an edge has that is in use. The oracle is the better of local prefill and loading all at
the same rung on the same piece of the trace; a load that would take over 1.5 × local prefill is cut off there. Local
prefill needs no link: it is measured again for every third request of a context length, as in `ttft.py`.
"""

import asyncio
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preread.bench.ttft import Grid, Local, staged
from preread.bench.ways import Begin, Ways
from preread.edge.machine import machine
from preread.testing.proxy import ProxyProcess
from preread.testing.traces import TRACES, Trace, capacity_bytes, since

_TRACE_S = 3600.0
_LEAD_S = 1.5
_CUT_OFF = 1.5


@dataclass(frozen=True, slots=True)
class Row:
    """One request. Times in seconds to the first token; `loaded_s` is None where loading was cut off.

    Attributes:
        offset_s: of the trace, at the request's beginning.
        mean_mbps: what the link could carry during local prefill.
    """

    trace: str
    offset_s: float
    mean_mbps: float
    context_tokens: int
    rung: str
    local_s: float
    loaded_s: float | None
    planned_s: float
    oracle_s: float
    ratio_to_local: float
    ratio_to_oracle: float
    same_output: bool
    way: str


async def bench(
    model: Path, name: str, grid: Grid, trace: str, requests: int, seed: int, console: Console
) -> dict[str, object]:
    """Ask, print a table and last one line of JSON, which is also returned.

    Args:
        model, name: of the edge.
        grid: contexts, prompt, answer and rungs; its links and runs do not count.
        trace: one of `TRACES`.
        requests: how many; contexts take turns.
        seed: of the trace and of the moments.

    Raises:
        UsageError: a context does not fit the model's window.
    """
    steps, source = TRACES[trace](seed, _TRACE_S), random.Random(f"{trace} {seed} requests")
    rows: list[Row] = []
    async with staged(model, name, grid, console) as (ways, proxy):
        local = Local(ways, grid)
        proxy.follow(steps)
        await ways.learn_link()
        for number in range(requests):
            context_tokens = grid.context_tokens[number % len(grid.context_tokens)]
            offset_s = source.uniform(_LEAD_S, _TRACE_S / 2)
            row = await _request(ways, local, proxy, grid, trace, steps, offset_s, context_tokens)
            rows.append(row)
            console.print(" ".join(_cells(row)), style="dim")
    table = Table(*_HEADINGS, title=f"time to first token (s), {name}, {trace}, seed {seed}")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    result: dict[str, object] = {
        "bench": "ttft", "model": name, "trace": trace, "seed": seed, "rows": [asdict(row) for row in rows],
        **summary(rows), "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result))
    return result


async def _request(
    ways: Ways,
    local: Local,
    proxy: ProxyProcess,
    grid: Grid,
    trace: str,
    steps: Trace,
    offset_s: float,
    context_tokens: int,
) -> Row:
    context, ahead = f"t{context_tokens}", since(steps, offset_s)
    rung = None if grid.choose else grid.rungs[-1]
    name = ways.rung(context) if rung is None else rung
    await local.measure(context_tokens)
    local_s = local.seconds(context_tokens)
    before: Begin = partial(proxy.follow, since(steps, offset_s - _LEAD_S))
    begin: Begin = partial(proxy.follow, ahead)
    before()
    await ways.sync()
    run = await ways.planned(context, rung, begin)
    before()
    loaded_s = float("inf")
    try:
        async with asyncio.timeout(_CUT_OFF * local_s + _LEAD_S):
            loaded_s = await ways.loaded_or_never_s(context, name, begin)
    except TimeoutError:
        await ways.node.forget()
    oracle_s = min(local_s, loaded_s)
    return Row(
        trace=trace,
        offset_s=round(offset_s, 2),
        mean_mbps=round(capacity_bytes(ahead, local_s) / local_s * 8e-6, 2),
        context_tokens=context_tokens,
        rung=name,
        local_s=round(local_s, 4),
        loaded_s=None if loaded_s == float("inf") else round(loaded_s, 4),
        planned_s=round(run.ttft_s, 4),
        oracle_s=round(oracle_s, 4),
        ratio_to_local=round(run.ttft_s / local_s, 3),
        ratio_to_oracle=round(run.ttft_s / oracle_s, 3),
        same_output=run.output == local.output(context_tokens),
        way=run.timings.way,
    )


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """The edge's mean over the oracle's mean, and how much slower than local prefill its worst request was."""
    if not rows:
        return {"mean_to_oracle": None, "worst_to_local": None}
    planned, oracle = (statistics.fmean(getattr(row, name) for row in rows) for name in ("planned_s", "oracle_s"))
    worst = max(row.ratio_to_local for row in rows)
    return {"mean_to_oracle": round(planned / oracle, 3), "worst_to_local": worst}


_HEADINGS = (
    "offset", "Mbit/s", "context", "rung", "local", "loaded", "planned", "oracle", "÷ local", "÷ oracle", "same", "way",
)  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.offset_s:.1f}", f"{row.mean_mbps:.1f}", str(row.context_tokens), row.rung, f"{row.local_s:.3f}",
        "–" if row.loaded_s is None else f"{row.loaded_s:.3f}", f"{row.planned_s:.3f}", f"{row.oracle_s:.3f}",
        f"{row.ratio_to_local:.2f}", f"{row.ratio_to_oracle:.2f}", "yes" if row.same_output else "no", row.way,
    )  # fmt: skip
