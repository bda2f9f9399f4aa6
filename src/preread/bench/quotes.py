"""What guesses bring: answers that repeat their document, and answers that do not, with guesses and without in turn."""

import json
import statistics
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from preread.edge.answer import answer, gathered
from preread.edge.machine import machine
from preread.edge.opening import open_node
from preread.edge.options import Options
from preread.edge.request import Ask
from preread.edge.residents import Residents
from preread.engine.sampling import Sampling

_WINDOW_TOKENS: Final = 2048
_PARTS: Final = ("filter", "pump", "fan", "valve", "sensor", "display", "battery", "hose", "lid", "motor")
_DOCUMENT: Final = "\n".join(
    f"{i}. The {part} has code {100 + 7 * i}. Change it every {i + 2} weeks; before that, press its key twice and wait "
    "for the lamp."
    for i, part in enumerate(_PARTS, 1)
)
_QUOTING: Final = tuple(
    f"Manual:\n{_DOCUMENT}\n\nThe manual's entries once more, word for word:\n{i}. The {_PARTS[i - 1]}"
    for i in (1, 3, 5, 7)
)
"""Texts that go on with what stands in them already: a small model quotes by going on, hardly by being told to."""

_OTHER: Final = (
    "Write a short story about a lighthouse keeper and a storm.",
    "Explain why the sky is blue, in simple words.",
    "Describe a journey by train through the mountains in winter.",
    "Give advice to somebody who begins to learn to cook.",
)


async def bench(model: Path, name: str, answer_tokens: int, runs: int, console: Console) -> None:
    """Measure both sets, print a table and last one line of JSON."""
    async with AsyncExitStack() as stack:
        edges = {}
        for drafts in (False, True):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="preread-bench-")))
            options = Options(name, window_tokens=_WINDOW_TOKENS, drafts=drafts)
            edges[drafts] = await stack.enter_async_context(open_node(model, name, None, folder, options))
        rows = [
            {"set": kind, **await _row(edges, questions, answer_tokens, runs)}
            for kind, questions in (("quoting", _quoting()), ("other", _other()))
        ]
    table = Table(*rows[0], title=f"decode rate with guesses, {name}, medians of {runs} alternating runs")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    print(json.dumps({"bench": "quotes", "model": name, "rows": rows, "machine": asdict(machine())}))


def _quoting() -> tuple[Ask, ...]:
    return tuple(Ask(prompt=prompt) for prompt in _QUOTING)


def _other() -> tuple[Ask, ...]:
    manual = {"role": "system", "content": f"Manual:\n{_DOCUMENT}"}
    return tuple(Ask(messages=(manual, {"role": "user", "content": question})) for question in _OTHER)


async def _row(
    edges: dict[bool, Residents], questions: tuple[Ask, ...], answer_tokens: int, runs: int
) -> dict[str, object]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    same, texts = 0, list[str]()
    for question in questions:
        for run in range(runs + 1):
            answers = {drafts: await _answered(edges[drafts], question, answer_tokens) for drafts in (False, True)}
            texts.append(answers[False][1])
            same += texts[-1] == answers[True][1]
            for drafts, (rate, _) in answers.items() if run else ():  # the first is for warming up
                rates[drafts].append(rate)
    ratios = [ours / plain for ours, plain in zip(rates[True], rates[False], strict=True)]
    return {
        "plain_tokens_s": round(statistics.median(rates[False]), 2),
        "guessing_tokens_s": round(statistics.median(rates[True]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "quoted": round(statistics.fmean(map(quoted, texts)), 2),
        "same_answers": f"{same}/{len(texts)}",
    }


def quoted(text: str) -> float:
    """Which share of an answer stands in the document: of every four words that follow each other."""
    words = text.split()
    runs = [" ".join(words[at : at + 4]) for at in range(len(words) - 3)]
    return sum(run in " ".join(_DOCUMENT.split()) for run in runs) / max(1, len(runs))


async def _answered(residents: Residents, question: Ask, answer_tokens: int) -> tuple[float, str]:
    """Decode rate and text of one answer."""
    sampling = Sampling(max_tokens=answer_tokens, min_tokens=answer_tokens)
    pieces, done = await gathered(answer(replace(question, sampling=sampling), residents))
    return done.timings.predicted_per_second, "".join(piece.text for piece in pieces)
