"""Answers that have to be JSON: whether they keep to their schema, and what that costs.

What is asked has bounds here and there, and none elsewhere, as people's schemas have: lists and texts without an end,
objects in objects, numbers within limits, patterns, alternatives, fields that may be missing.
"""

import asyncio
import json
import statistics
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from preread.edge.answer import answer, gathered
from preread.edge.machine import machine
from preread.edge.opening import open_node
from preread.edge.options import Options
from preread.edge.request import Ask, Done
from preread.edge.residents import Residents
from preread.engine.grammar import of_schema
from preread.engine.sampling import USUAL, Sampling
from preread.errors import UsageError

_WINDOW_TOKENS: Final = 2048
_AT_ONCE: Final = 8
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_WHOLE: Final[dict[str, Any]] = {"type": "integer"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": [*required],
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True)
class Task:
    """A question and the schema of its answer."""

    question: str
    schema: dict[str, Any]


TASKS: Final = (
    Task(
        "Describe a cat: name, age, and tags.",
        _object({"name": _TEXT, "age": _WHOLE, "tags": {"type": "array", "items": _TEXT}}),
    ),
    Task(
        "Write an invoice for three pumps at 25 dollars each.",
        _object(
            {
                "number": {"type": "string", "pattern": "^INV-[0-9]{4}$"},
                "items": {
                    "type": "array",
                    "items": _object({"name": _TEXT, "count": _WHOLE | {"minimum": 1}, "price": {"type": "number"}}),
                    "minItems": 1,
                },
                "paid": {"type": "boolean"},
            }
        ),
    ),
    Task(
        "How do I clean a filter? Give the steps in order.",
        _object({"title": _TEXT, "steps": {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 6}}),
    ),
    Task(
        "Is the sky blue? Answer, and say how sure you are.",
        _object({"answer": {"enum": ["yes", "no", "unknown"]}, "sure": {"type": "number", "minimum": 0, "maximum": 1}}),
    ),
    Task(
        "Where does a customer named Ann live? Invent an address.",
        _object(
            {"customer": _object({"name": _TEXT, "address": _object({"street": _TEXT, "city": _TEXT, "zip": _TEXT})})},
            {"note": _TEXT},
        ),
    ),
    Task(
        "When was the first flight? Give a date.",
        _object({"date": {"type": "string", "format": "date"}, "place": {"anyOf": [_TEXT, {"type": "null"}]}}),
    ),
    Task(
        "Rate this review: The pump is loud, but it works.",
        _object({"stars": {"type": "integer", "minimum": 1, "maximum": 5}, "mood": {"enum": ["good", "bad", "mixed"]}}),
    ),
    Task(
        "Draw a shape: a circle or a square.",
        {"anyOf": [_object({"kind": {"const": "circle"}, "radius": {"type": "number"}}),
                   _object({"kind": {"const": "square"}, "side": {"type": "number"}})]},
    ),
    Task("List prime numbers.", {"type": "array", "items": {"type": "integer", "minimum": 2}, "minItems": 1}),
    Task("Tell me anything, as an object.", {"type": "object"}),
)  # fmt: skip


async def bench(
    model: Path, name: str, answers: int, answer_tokens: int, runs: int, seed: int, console: Console
) -> None:
    """Have so many answers made, `runs` of each task once more beside free ones; print tables and one line of JSON.

    Raises:
        UsageError: what checks answers is not installed.
    """
    _checking()
    async with AsyncExitStack() as stack:
        edges = {}
        for forced in (False, True):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="preread-bench-")))
            options = Options(name, window_tokens=_WINDOW_TOKENS, drafts=forced)
            edges[forced] = await stack.enter_async_context(open_node(model, name, None, folder, options))
        validity = await _validity(edges[True], answers, answer_tokens, seed)
        costs = [await _cost(edges[forced], forced, answer_tokens, runs) for forced in (False, True)]
    _show(console, f"answers that have to be JSON, {name}, {answers} of {len(TASKS)} schemas", [validity])
    _show(console, f"what that costs a token, {name}, medians of {runs} alternating runs of each schema", costs)
    told = {"bench": "forms", "model": name, "validity": validity, "cost": costs, "machine": asdict(machine())}
    print(json.dumps(told))


def _show(console: Console, title: str, rows: list[dict[str, object]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)


async def _validity(residents: Residents, answers: int, answer_tokens: int, seed: int) -> dict[str, object]:
    """So many answers, drawn as chats usually are, several at once."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> tuple[Task, str, Done]:
        task = TASKS[number % len(TASKS)]
        drawn = replace(
            USUAL, seed=seed + number, max_tokens=answer_tokens, grammar=of_schema(task.schema, lenient=False)
        )
        async with places:
            return (task, *await _answered(residents, task, drawn))

    made = await asyncio.gather(*(one(number) for number in range(answers)))
    wrong = [(text, why) for task, text, _ in made if (why := _fault(text, task.schema))]
    return {
        "answers": answers,
        "valid": answers - len(wrong),
        "ended_by_length": sum(done.finish == "length" for *_, done in made),
        "mean_tokens": round(statistics.fmean(done.timings.predicted_n for *_, done in made), 1),
        "first_fault": f"{wrong[0][1]}: {wrong[0][0][:200]}" if wrong else "",
    }


def _fault(text: str, schema: dict[str, Any]) -> str:
    """What is wrong with an answer; empty: nothing."""
    jsonschema = _checking()
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except ValueError as error:
        return f"no JSON: {error}"
    except jsonschema.ValidationError as error:
        return str(error.message)
    return ""


def _checking() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise UsageError("checking answers by their schemas needs more: pip install 'preread[bench]'") from error
    return jsonschema


async def _cost(residents: Residents, forced: bool, answer_tokens: int, runs: int) -> dict[str, object]:
    """Time per token of answers with a schema, and of free ones of the same length, in turn."""
    ratios, bound_ms, free_ms = list[float](), list[float](), list[float]()
    for task in TASKS:
        bound = Sampling(max_tokens=answer_tokens, grammar=of_schema(task.schema, lenient=False))
        for run in range(runs + 1):
            _, done = await _answered(residents, task, bound)
            tokens = done.timings.predicted_n
            free = Sampling(max_tokens=tokens, min_tokens=tokens)
            _, other = await _answered(residents, task, free)
            if run and tokens > 4:  # the first is for warming up
                bound_ms.append(_token_ms(done))
                free_ms.append(_token_ms(other))
                ratios.append(bound_ms[-1] / free_ms[-1])
    return {
        "guesses_and_forced_tokens": "on" if forced else "off",
        "free_ms": round(statistics.median(free_ms), 2),
        "bound_ms": round(statistics.median(bound_ms), 2),
        "ratio": round(statistics.median(ratios), 3),
    }


def _token_ms(done: Done) -> float:
    return done.timings.predicted_ms / (done.timings.predicted_n - 1)


async def _answered(residents: Residents, task: Task, sampling: Sampling) -> tuple[str, Done]:
    ask = Ask(messages=({"role": "user", "content": task.question},), sampling=sampling)
    pieces, done = await gathered(answer(ask, residents))
    return "".join(piece.text for piece in pieces), done
