"""How long many questions about a resident context take: as one request for decisions, and what else is to be had.

A cloud, a link and an edge, each a process of its own, as in `serve.py`. In each round, one after the other:

- all questions as one `POST /v1/decisions`, each in one order, and in all orders;
- each of them as a chat of one token, over one connection;
- in this process, behind a context of as many tokens, as many tokens as the decisions had computed, read in one batch
  (512 tokens a step), which is the floor.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
from rich.console import Console
from rich.table import Table

from preread.bench.corpus import name as document_name
from preread.bench.deployment import Report, Setting, deployed, window_tokens
from preread.bench.judge import question
from preread.edge.decisions.question import INSTRUCTION, orders_of, text_of
from preread.edge.machine import machine
from preread.engine.base import Slice
from preread.engine.llamacpp import BATCH_TOKENS, LlamaCpp, Tokens
from preread.errors import RemoteError, TransportError
from preread.fit.facts import Fact, registers
from preread.values import Span

_ENTRIES: Final = 17
"""Of each of two registers: about 1,000 tokens together."""
_MORE_TOKENS: Final = 1024
_QUESTION_TOKENS: Final = 128
"""Room for a question in all its orders."""
_PATIENCE_S: Final = 600.0
_TOLD_LETTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Options:
    """What to run: so many `rounds` with so many `questions` about one context."""

    setting: Setting
    questions: int = 20
    rounds: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One way of asking in one round.

    Attributes:
        seconds: from the first request to the last answer.
        tokens: that were computed.
        prompts: sequences that were computed.
    """

    round: int
    way: str
    seconds: float
    tokens: int
    prompts: int


async def bench(options: Options, console: Console, report: Report) -> dict[str, object]:
    """Publish, measure, print a table and last one line of JSON, which is also returned.

    Raises:
        RemoteError, TransportError: something was not answered.
        PrereadError: a part could not be started.
    """
    # New questions in each round: of those that were asked as chats before, an edge would have kept all tokens.
    asked, other = registers(2, _ENTRIES, options.questions * (options.rounds + 1), options.seed)
    text = f"{asked.text}\n\n{other.text}"
    rows, model = list[Row](), options.setting.model.resolve()
    room = _MORE_TOKENS + _QUESTION_TOKENS * options.questions
    engine = LlamaCpp.open(model, window_tokens=window_tokens(room), trusted=True)
    try:
        assert engine.chat is not None
        context = engine.tokenize_prompt(engine.chat.system_prefix(text))
        setting = replace(options.setting, context_tokens=len(context), rungs=("lossless",))
        window = window_tokens(len(context) + min(_MORE_TOKENS, _QUESTION_TOKENS * options.questions))
        with tempfile.TemporaryDirectory(prefix="preread-decisions-") as scratch:
            async with deployed(setting, [text], window, Path(scratch), report) as edge:
                await edge.fresh()
                floor = _Floor(engine, context)
                async with httpx2.AsyncClient(trust_env=False, timeout=_PATIENCE_S, base_url=edge.url) as http:
                    for number in range(options.rounds + 1):
                        report("round", number, options.rounds + 1)
                        found = await _round(number, http, asked.facts[number :: options.rounds + 1], floor)
                        rows += found if number else []  # the first one brings the context
    finally:
        engine.close()
    return _told(options, len(context), rows, console)


async def _round(number: int, http: httpx2.AsyncClient, facts: Sequence[Fact], floor: "_Floor") -> list[Row]:
    found = list[Row]()
    for way, permutations in (("decisions, one order", 1), ("decisions, all orders", None)):
        began_s = time.monotonic()
        told = await _post(http, "/v1/decisions", _decisions(facts, permutations))
        found.append(Row(number, way, time.monotonic() - began_s, told["timings"]["prompt_n"], told["prompts"]))
        tokens = found[-1].tokens
        found.append(Row(number, f"{way}: one batch", floor.seconds(tokens), tokens, 1))
    began_s, tokens = time.monotonic(), 0
    for fact in facts:
        tokens += (await _post(http, "/v1/chat/completions", _chat(fact)))["timings"]["prompt_n"]
    found.append(Row(number, "chats of one token", time.monotonic() - began_s, tokens, len(facts)))
    return found


class _Floor:
    """Reads tokens behind a context that is in the cache, with nothing else to do."""

    def __init__(self, engine: LlamaCpp, context: Tokens) -> None:
        self._engine, self._context = engine, context
        self._source, self._target, *_ = engine.sequences
        self._read(self._source, context, 0)

    def seconds(self, tokens: int) -> float:
        """What reading so many tokens takes."""
        prompt = np.resize(self._context, tokens)
        self._engine.cache.share(self._source, self._target, Span(0, len(self._context)))
        began_s = time.monotonic()
        self._read(self._target, prompt, len(self._context))
        seconds = time.monotonic() - began_s
        self._engine.cache.free(self._target)
        return seconds

    def _read(self, sequence: int, tokens: Tokens, position: int) -> None:
        for at in range(0, len(tokens), BATCH_TOKENS):
            self._engine.runner.arm()
            self._engine.runner.run([Slice(sequence, tokens[at : at + BATCH_TOKENS], position + at)])


async def _post(http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = await http.post(path, json=body)
    except httpx2.HTTPError as error:
        raise TransportError(f"the benchmark's edge does not answer: {error!r}") from error
    if answer.status_code != 200:
        raise RemoteError(f"the benchmark's edge answers {answer.status_code}: {answer.text[:_TOLD_LETTERS]}")
    told: dict[str, Any] = answer.json()
    return told


def _decisions(facts: Sequence[Fact], permutations: int | None) -> dict[str, Any]:
    questions = []
    for fact in facts:
        asked: dict[str, Any] = {"type": fact.kind, "instructions": fact.text}
        if fact.kind == "choice":
            asked["choices"] = [{"value": option} for option in fact.options]
        if fact.kind == "score":
            asked["levels"] = [{"label": option} for option in fact.options]
        questions.append(asked)
    return {"input": "", "context": document_name(0), "questions": questions, "permutations": permutations}


def _chat(fact: Fact) -> dict[str, Any]:
    """The same question as a chat."""
    asked = question(fact)
    content = f"{INSTRUCTION}\n\n{text_of(asked, orders_of(asked, 1)[0])}"
    messages = [{"role": "user", "content": content}]
    return {"context": document_name(0), "messages": messages, "temperature": 0, "max_tokens": 1}


def _told(options: Options, context_tokens: int, rows: Sequence[Row], console: Console) -> dict[str, object]:
    ways = list(dict.fromkeys(row.way for row in rows))
    medians = {way: statistics.median(row.seconds for row in rows if row.way == way) for way in ways}
    table = Table(
        *("way", "s (median)", "tokens computed", "sequences"),
        title=f"{options.setting.name}: {options.questions} questions about {context_tokens} resident tokens",
    )
    for way in ways:
        last = [row for row in rows if row.way == way][-1]
        table.add_row(way, f"{medians[way]:.3f}", str(last.tokens), str(last.prompts))
    console.print(table)
    ratios = {}
    for way in ("decisions, one order", "decisions, all orders"):
        each = [
            {row.way: row.seconds for row in rows if row.round == number}
            for number in sorted({row.round for row in rows})
        ]
        ratios[way] = {
            "to_one_batch": round(statistics.median(at[way] / at[f"{way}: one batch"] for at in each), 3),
            "chats_to_it": round(statistics.median(at["chats of one token"] / at[way] for at in each), 3),
        }
    result: dict[str, object] = {
        "bench": "decisions", "model": options.setting.name, "context_tokens": context_tokens,
        "questions": options.questions, "rows": [asdict(row) for row in rows], "ratios": ratios,
        "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result
