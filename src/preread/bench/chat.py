"""One user's conversation about a document: time to first token of each turn, and what was computed for it.

As in `serve.py`, a cloud, an emulated link and an edge, each a process of its own, and other servers beside it. Each
turn sends all that was said before, the answers as they came, and a new question, as clients of OpenAI's API do. The
systems take turns: all of them have their first one before any has its second. Each starts cold, as in `serve.py`.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from preread.bench.corpus import draw
from preread.bench.deployment import Report, Setting, window_tokens
from preread.bench.peers import Beside
from preread.bench.systems import Message, System, http, started
from preread.edge.machine import machine

_TURN_TOKENS: Final = 32
"""What a chat's template may add to a question and its answer."""

_HEADINGS: Final = ("system", "turn", "TTFT s", "computed", "not computed", "way")


@dataclass(frozen=True, slots=True)
class Options:
    """What to run: so many `turns` about one document, with all else as in `serve.Options`."""

    setting: Setting
    beside: Beside = field(default_factory=Beside)
    turns: int = 8
    prompt_tokens: int = 25
    answer_tokens: int = 100
    seed: int = 0

    @property
    def window_tokens(self) -> int:
        """KV cache that the whole conversation takes, at least."""
        turns = self.turns * (self.prompt_tokens + self.answer_tokens + _TURN_TOKENS)
        return window_tokens(self.setting.context_tokens + turns)


@dataclass(frozen=True, slots=True)
class Row:
    """One turn of one system.

    Attributes:
        ttft_s: from sending it to the first text.
        prompt_n, cache_n: tokens that were computed before the answer, and that were not, if the server says.
        way: where the context's KV came from, as an edge says.
    """

    system: str
    turn: int
    ttft_s: float
    prompt_n: int | None
    cache_n: int | None
    way: str


def last_to_second(rows: Sequence[Row], system: str) -> float | None:
    """Time to first token of the last turn ÷ that of the second, as the first loads the context; None: of none."""
    ttft_s = [row.ttft_s for row in sorted(rows, key=lambda row: row.turn) if row.system == system]
    return round(ttft_s[-1] / ttft_s[1], 3) if len(ttft_s) > 1 and ttft_s[1] > 0 else None


async def bench(options: Options, console: Console, report: Report) -> dict[str, object]:
    """Publish, measure, print a table and last one line of JSON, which is also returned.

    Raises:
        RemoteError, TransportError: a turn was not answered, and a conversation cannot go on without.
        PrereadError: a part could not be started.
    """
    at = options.setting
    corpus = draw(at.model, options.seed, 1, at.context_tokens, options.turns, options.prompt_tokens)
    rows = list[Row]()
    with tempfile.TemporaryDirectory(prefix="preread-chat-") as scratch:
        window = options.window_tokens
        async with started(at, options.beside, corpus, window, Path(scratch), report) as systems:
            said: dict[str, list[Message]] = {system.name: [] for system in systems}
            for system in systems:
                await system.runs.fresh()
            for turn, question in enumerate(corpus.questions, 1):
                for system in systems:
                    rows.append(await _turn(system, turn, question, said[system.name], options.answer_tokens))
                    await system.runs.settle()
    table = Table(
        *_HEADINGS,
        title=f"{at.name}: a context of {at.context_tokens} tokens, answers of {options.answer_tokens}, "
        f"{at.mbps:g} Mbit/s, {at.rtt_ms:g} ms",
    )
    for row in sorted(rows, key=lambda row: [system.name for system in systems].index(row.system)):
        counts = ("–" if count is None else str(count) for count in (row.prompt_n, row.cache_n))
        table.add_row(row.system, str(row.turn), f"{row.ttft_s:.3f}", *counts, row.way or "–")
    console.print(table)
    ratios = {system.name: last_to_second(rows, system.name) for system in systems}
    ours, *_ = ratios
    result: dict[str, object] = {
        "bench": "chat", "model": at.name, "context_tokens": at.context_tokens,
        "answer_tokens": options.answer_tokens, "mbps": at.mbps, "rtt_ms": at.rtt_ms,
        "rows": [asdict(row) for row in rows], "ratio": ratios[ours], "ratios": ratios, "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


async def _turn(system: System, turn: int, question: str, said: list[Message], answer_tokens: int) -> Row:
    """Ask the next question; it and the answer are added to what was said."""
    said.append({"role": "user", "content": question})
    async with http() as client:
        reply = await system.ask(client, 0, said, answer_tokens)
    said.append({"role": "assistant", "content": reply.text})
    return Row(system.name, turn, round(reply.seen.ttft_s, 4), reply.prompt_n, reply.cache_n, reply.seen.way)
