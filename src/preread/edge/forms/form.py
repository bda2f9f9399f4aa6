"""How answers are written: what every form of them does, and what several of them have.

Pure. Forms must not know HTTP, models or contexts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import msgspec

from preread.edge.openai import Call
from preread.edge.request import CallPart, Done, Piece, Timings

Answer = tuple[Sequence[Piece], Done]
"""One choice of an answer, as it came."""


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer begin with; `created` in seconds since 1970, `fingerprint` of the model's file."""

    id: str
    created: int
    model: str
    call: Call
    fingerprint: str = ""

    @property
    def wants_odds(self) -> bool:
        """Whether it was asked how likely the tokens are."""
        return self.call.asks[0].sampling.top_logprobs is not None


class Form(Protocol):
    """How one answer is written. Each answer has an object of its own, which remembers what was said of it."""

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """The whole answer as JSON: the answers to all questions of the call, in their order."""
        ...

    def event(self, choice: int, item: Piece | Done) -> bytes:
        """The server-sent events that tell what comes next of an answer to the call's question of this number.

        What has to be said first is part of those of the first item, what has to be said last of those of the last
        `Done`.
        """
        ...

    def failing(self, error: dict[str, Any]) -> bytes:
        """The last event of an answer that failed after it had begun; `error` is the body of an error."""
        ...


def event(told: Any, name: str | None = None) -> bytes:
    """A server-sent event whose data is JSON."""
    named = b"" if name is None else b"event: " + name.encode() + b"\n"
    return named + b"data: " + msgspec.json.encode(told) + b"\n\n"


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces of an answer as one."""
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(odds for piece in pieces for odds in piece.odds),
        tuple(part for piece in pieces for part in piece.calls),
    )


def whole_calls(parts: Sequence[CallPart]) -> list[CallPart]:
    """The calls that these parts make up, in their order."""
    calls: dict[int, CallPart] = {}
    for part in parts:
        begun = calls.get(part.index)
        calls[part.index] = part if begun is None else replace(begun, arguments=begun.arguments + part.arguments)
    return list(calls.values())


def timings(of: Timings) -> dict[str, Any]:
    """`Timings` as JSON, with two fields that follow from them.

    `prompt_ms` is from the turn's beginning to the first token, loading or computing the context included.
    """
    rest = {"prompt_ms": of.ttft_ms - of.queue_ms, "predicted_per_second": of.predicted_per_second}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in (asdict(of) | rest).items()}


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens: of prompts, of those that did not have to be computed, and of answers."""

    prompt: int
    cached: int
    answer: int


def used(call: Call, ends: Sequence[Done]) -> Used:
    """What was used; a prompt that was given several choices counts once."""
    firsts = ends[:: len(call.asks) // call.prompts]
    return Used(
        sum(done.prompt_tokens for done in firsts),
        sum(done.timings.cache_n for done in firsts),
        sum(done.timings.predicted_n for done in ends),
    )
