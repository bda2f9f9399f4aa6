"""Decode rate: the edge, all of it, against llama-cpp-python's own loop; runs alternate."""

import json
import statistics
import tempfile
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preread.edge.answer import answer
from preread.edge.machine import machine
from preread.edge.opening import open_node
from preread.edge.options import Options
from preread.edge.request import Ask, Done
from preread.engine.plain import PlainLoop
from preread.engine.sampling import Sampling
from preread.errors import EngineError

_WINDOW_TOKENS = 2048


async def bench(model: Path, name: str, prompt_tokens: int, answer_tokens: int, runs: int, console: Console) -> None:
    """Measure both, print a table and last one line of JSON."""
    edge_rates, plain_rates, predicted = [], [], 0
    with tempfile.TemporaryDirectory(prefix="preread-bench-") as scratch:
        options = Options(name, window_tokens=_WINDOW_TOKENS, keep_conversations_s=0)
        async with open_node(model, name, None, Path(scratch), options) as residents:
            prompt = [1000 + 7 * i for i in range(prompt_tokens)]
            ask = Ask(prompt=tuple(prompt), sampling=Sampling(max_tokens=answer_tokens))
            plain = PlainLoop(model, _WINDOW_TOKENS, residents.node.engine.threads)
            for run in range(runs + 1):
                async with aclosing(answer(ask, residents)) as pieces:
                    done = [piece async for piece in pieces][-1]
                if not isinstance(done, Done) or done.timings.predicted_n < 2:
                    raise EngineError(f"{name} ended its answer at once: nothing can be measured")
                predicted = done.timings.predicted_n
                rate = plain.decode_tokens_s(prompt, predicted - 1)
                if run:  # the first is for warming up
                    edge_rates.append(done.timings.predicted_per_second)
                    plain_rates.append(rate)
            plain.close()
    row = {
        "answer_tokens": predicted,
        "edge_tokens_s": round(statistics.median(edge_rates), 2),
        "plain_tokens_s": round(statistics.median(plain_rates), 2),
        "ratio": round(statistics.median(ours / plain for ours, plain in zip(edge_rates, plain_rates, strict=True)), 3),
    }
    table = Table(*row, title=f"decode rate, {name}, medians of {runs} alternating runs")
    table.add_row(*map(str, row.values()))
    console.print(table)
    print(json.dumps({"bench": "decode", "model": name, "rows": [row], "machine": asdict(machine())}))
