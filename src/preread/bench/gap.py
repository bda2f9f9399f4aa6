"""One user's stream while another user's context comes down a slow link: how long the stream stands still.

As in `serve.py`, a cloud, an emulated link and an edge, each a process of its own. In each round somebody streams a
long answer, and while it runs somebody else asks about a context that is not there yet. The bound is 3 × the stream's
own median time between texts, and 0.1 s. A round counts if the stream went on until the other's first token.
"""

import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preread.bench.corpus import Corpus, draw
from preread.bench.deployment import Deployment, Report, Setting, deployed, window_tokens
from preread.bench.events import Reply
from preread.bench.systems import System, http
from preread.edge.machine import machine
from preread.errors import RemoteError

_FACTOR, _MORE_S = 3.0, 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        setting: what is set up; its contexts are the large ones.
        rounds: each with a large context of its own.
        stream_tokens: of the answer that must not stand still.
        prompt_tokens, answer_tokens: of the question about the large context, and of its answer.
        seed: of documents and questions.
    """

    setting: Setting
    rounds: int = 3
    stream_tokens: int = 600
    prompt_tokens: int = 25
    answer_tokens: int = 16
    seed: int = 0

    @property
    def window_tokens(self) -> int:
        """KV cache that one request takes, at least."""
        longest = max(self.setting.context_tokens + self.answer_tokens, self.stream_tokens)
        return window_tokens(longest + self.prompt_tokens)


@dataclass(frozen=True, slots=True)
class Row:
    """One round.

    Attributes:
        tpot_p50_s, longest_gap_s: of the stream: the median and the longest of the times between its texts.
        bound_s: what the longest may be.
        ttft_s: of the other; `way`: how its context came.
        counts: whether the stream outlasted the load.
    """

    tpot_p50_s: float
    longest_gap_s: float
    bound_s: float
    ttft_s: float
    way: str
    counts: bool


def row(stream: Reply, other: Reply, later_s: float) -> Row:
    """Judge a round: the stream, and the other's answer, which was asked for later by so much."""
    if not stream.gaps_s:
        raise RemoteError("the stream has one text only: ask for longer answers with --stream-tokens")
    tpot_s, longest_s = statistics.median(stream.gaps_s), stream.seen.longest_gap_s
    counts = later_s + other.seen.ttft_s < stream.seen.ttft_s + stream.seen.decode_s
    return Row(
        round(tpot_s, 4), round(longest_s, 4), round(_FACTOR * tpot_s + _MORE_S, 4), round(other.seen.ttft_s, 3),
        other.seen.way, counts,
    )  # fmt: skip


async def bench(options: Options, console: Console, report: Report) -> dict[str, object]:
    """Publish, measure, print a table and last one line of JSON, which is also returned.

    Raises:
        RemoteError: a request was not answered.
        PrereadError: a part could not be started.
    """
    at = options.setting
    corpus = draw(at.model, options.seed, options.rounds, at.context_tokens, options.rounds + 1, options.prompt_tokens)
    rows = list[Row]()
    with tempfile.TemporaryDirectory(prefix="preread-gap-") as scratch:
        async with deployed(at, corpus.documents, options.window_tokens, Path(scratch), report) as here:
            await here.fresh()
            for number in range(options.rounds):
                rows.append(await _round(here, corpus, number, options))
                await here.settle()
    table = Table("a text each, median s", "longest gap s", "bound s", "other's TTFT s", "way", "counts")
    for one in rows:
        table.add_row(*map(str, asdict(one).values()))
    console.print(table)
    result: dict[str, object] = {
        "bench": "gap", "model": at.name, "context_tokens": at.context_tokens, "mbps": at.mbps, "rtt_ms": at.rtt_ms,
        "rows": [asdict(one) for one in rows], "machine": asdict(machine()),
        "ratio": max((one.longest_gap_s / one.bound_s for one in rows if one.counts), default=None),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


async def _round(edge: Deployment, corpus: Corpus, number: int, options: Options) -> Row:
    """A stream about nothing that is published, and beside it a question about a context that was not asked about."""
    system, begun, began_s = System(edge, corpus), asyncio.Event(), time.monotonic()
    first, second = ([{"role": "user", "content": corpus.questions[at]}] for at in (-1, number))
    async with http() as client, asyncio.TaskGroup() as group:
        stream = group.create_task(system.ask(client, None, first, options.stream_tokens, begun))
        await begun.wait()
        later_s = time.monotonic() - began_s
        other = await system.ask(client, number, second, options.answer_tokens)
    return row(stream.result(), other, later_s)
