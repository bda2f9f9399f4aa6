"""The events of a streamed chat, of an edge or of any other OpenAI server: what was said, when, and of how many tokens.

Pure: the lines are read when all of them have come, so that reading takes no time from those who answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import msgspec

from preread.bench.load import Answer
from preread.errors import RemoteError

_DATA: Final = "data:"
_END: Final = "[DONE]"
_TOLD_LETTERS: Final = 300


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct):
    token: str
    logprob: float = 0.0
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    prompt_n: int | None = None
    cache_n: int | None = None
    predicted_n: int | None = None
    way: str | None = None
    bytes_received: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        seen: what its client saw.
        text: all of it, as it came.
        prompt_n, cache_n: tokens of the prompt that were computed, and that were not, if the server says.
        tokens, odds: their texts, and of each the log-probabilities (nats) of the likeliest, where they were asked for.
        gaps_s: between texts that follow each other.
    """

    seen: Answer
    text: str
    prompt_n: int | None
    cache_n: int | None
    tokens: tuple[str, ...]
    odds: tuple[Mapping[str, float], ...]
    gaps_s: tuple[float, ...]


def read(lines: Sequence[tuple[float, str]], sent_s: float) -> Reply:
    """Read an answer: its lines, each with the time at which it came, as `sent_s` is the one of the request.

    The first text counts as first token: a role without text is said before anything is computed. Tokens are those that
    the server counts, or else its pieces of text.

    Raises:
        RemoteError: it is an error, it breaks off, or it is not how OpenAI's API answers.
    """
    usage, timings, finished_s, pieces, times_s = _Usage(), _Timings(), None, list[str](), list[float]()
    tokens = list[_Token]()
    for at_s, line in lines:
        data = line.removeprefix(_DATA).strip()
        if not line.startswith(_DATA) or data == _END:
            continue
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise RemoteError(f"this is no event of a chat: {data[:_TOLD_LETTERS]!r} ({error})") from error
        if chunk.error:
            raise RemoteError(f"the answer ended with an error: {str(chunk.error)[:_TOLD_LETTERS]}")
        usage, timings = chunk.usage or usage, chunk.timings or timings
        for choice in chunk.choices[:1]:
            said = choice.delta or _Delta()
            if said.content or said.reasoning_content:
                pieces.append(said.content or "")
                times_s.append(at_s)
            tokens += (choice.logprobs and choice.logprobs.content) or ()
            if choice.finish_reason is not None:
                finished_s = at_s
    if finished_s is None:
        last = lines[-1][1][:_TOLD_LETTERS] if lines else ""
        raise RemoteError(f"the answer broke off: its last line is {last!r}")
    times_s = times_s or [finished_s]  # all tokens may be such as have no text
    gaps_s = tuple(late - early for early, late in pairwise(times_s))
    return Reply(
        Answer(
            ttft_s=times_s[0] - sent_s,
            longest_gap_s=max(gaps_s, default=0.0),
            decode_s=times_s[-1] - times_s[0],
            tokens=usage.completion_tokens or timings.predicted_n or len(pieces),
            prompt_tokens=usage.prompt_tokens,
            way=timings.way or "",
            received_bytes=timings.bytes_received or 0,
        ),
        "".join(pieces),
        *_computed(usage, timings),
        tuple(token.token for token in tokens),
        tuple(_odds(token) for token in tokens),
        gaps_s,
    )


def _odds(token: _Token) -> dict[str, float]:
    return {one.token: one.logprob for one in token.top_logprobs} | {token.token: token.logprob}


def _computed(usage: _Usage, timings: _Timings) -> tuple[int | None, int | None]:
    """Tokens of the prompt that were computed, and that were not."""
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
    cache_n = cached if timings.cache_n is None else timings.cache_n
    if timings.prompt_n is not None:
        return timings.prompt_n, cache_n
    return (None if cached is None else usage.prompt_tokens - cached), cache_n
