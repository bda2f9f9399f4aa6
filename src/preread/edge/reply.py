"""The answers of OpenAI's API: `Piece`s and `Done` become the JSON that its clients read, whole or as events.

Pure. It must not know HTTP, models or contexts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec

from preread.edge.openai import Call
from preread.edge.request import Done, Piece, Timings, TokenOdds

_LEAST_LOGPROB: Final = -9999.0  # JSON has no minus infinity; OpenAI sends this


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer begin with; `created` in seconds since 1970."""

    id: str
    created: int
    model: str
    call: Call


def whole(head: Head, answers: Sequence[tuple[Sequence[Piece], Done]]) -> bytes:
    """The whole answer as JSON, for a request without `stream`: an answer for each of its questions.

    `timings` are those of the first.
    """
    choices = [_choice(head, index, pieces, done) for index, (pieces, done) in enumerate(answers)]
    ends = [done for _, done in answers]
    kind = "chat.completion" if head.call.chat else "text_completion"
    used = _usage(ends, len(ends) // head.call.prompts)
    return msgspec.json.encode(_body(head, kind, choices) | {"usage": used, "timings": timings(ends[0].timings)})


def _choice(head: Head, index: int, pieces: Sequence[Piece], done: Done) -> dict[str, Any]:
    piece = Piece("".join(p.text for p in pieces), tuple(odds for p in pieces for odds in p.odds))
    said: dict[str, Any] = {"text": piece.text}
    if head.call.chat:
        said = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
    return {"index": index, **said, "logprobs": _logprobs(head, piece, 0), "finish_reason": done.finish}


def opening(head: Head) -> bytes:
    """The events before the first piece: whose turn it is, in a chat; none otherwise."""
    return _chunk(head, {"role": "assistant", "content": ""}, None, None) if head.call.chat else b""


def part(head: Head, piece: Piece, offset: int) -> bytes:
    """The event of one piece, which stands `offset` characters after the answer's beginning."""
    logprobs = _logprobs(head, piece, offset)
    return _chunk(head, {"content": piece.text} if head.call.chat else piece.text, logprobs, None)


def closing(head: Head, done: Done) -> bytes:
    """The events after the last piece. As from llama-server, `timings` are in the last one that is JSON."""
    told = {"timings": timings(done.timings)}
    end: dict[str, Any] | str = {} if head.call.chat else ""
    if not head.call.include_usage:
        return _chunk(head, end, None, done.finish, told) + _event(b"[DONE]")
    usage = _body(head, _chunk_kind(head), []) | {"usage": _usage([done], 1)} | told
    return _chunk(head, end, None, done.finish) + _event(msgspec.json.encode(usage)) + _event(b"[DONE]")


def failing(error: dict[str, Any]) -> bytes:
    """The last event of an answer that failed after it had begun; `error` is the body of an error."""
    return _event(msgspec.json.encode(error))


def timings(of: Timings) -> dict[str, Any]:
    """`Timings` as JSON, with two fields that follow from them.

    `prompt_ms` is from the turn's beginning to the first token, loading or computing the context included.
    """
    rest = {"prompt_ms": of.ttft_ms - of.queue_ms, "predicted_per_second": of.predicted_per_second}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in (asdict(of) | rest).items()}


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _body(head: Head, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model, "choices": choices}


def _chunk_kind(head: Head) -> str:
    return "chat.completion.chunk" if head.call.chat else "text_completion"


def _chunk(
    head: Head,
    content: dict[str, Any] | str,
    logprobs: dict[str, Any] | None,
    finish: str | None,
    more: dict[str, Any] | None = None,
) -> bytes:
    key = "delta" if head.call.chat else "text"
    choice = {"index": 0, key: content, "logprobs": logprobs, "finish_reason": finish}
    return _event(msgspec.json.encode(_body(head, _chunk_kind(head), [choice]) | (more or {})))


def _usage(ends: Sequence[Done], choices: int) -> dict[str, Any]:
    """What was used; a prompt that was given several choices counts once."""
    prompt = sum(done.prompt_tokens for done in ends[::choices])
    completion = sum(done.timings.predicted_n for done in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(done.timings.cache_n for done in ends[::choices])},
    }


def _logprobs(head: Head, piece: Piece, offset: int) -> dict[str, Any] | None:
    """Log-probabilities in the form of the request; None where they were not asked for."""
    if head.call.asks[0].sampling.top_logprobs is None:
        return None
    if head.call.chat:
        return {"content": [_chat_odds(odds) for odds in piece.odds], "refusal": None}
    offsets, at = [], offset
    for odds in piece.odds:
        offsets.append(at)
        at += len(odds.text)
    return {
        "tokens": [odds.text for odds in piece.odds],
        "token_logprobs": [_finite(odds.logprob) for odds in piece.odds],
        "top_logprobs": [_top(odds) for odds in piece.odds],
        "text_offset": offsets,
    }


def _top(odds: TokenOdds) -> dict[str, float | None] | None:
    """The likeliest tokens, and the one that came, as OpenAI's API has it; nothing where nothing stands before it."""
    if odds.logprob is None:
        return None
    return {text: _finite(logprob) for text, _, logprob in (*odds.top, (odds.text, odds.data, odds.logprob))}


def _chat_odds(odds: TokenOdds) -> dict[str, Any]:
    top = [_one(*each) for each in odds.top]
    return _one(odds.text, odds.data, odds.logprob) | {"top_logprobs": top}


def _one(text: str, data: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(data)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST_LOGPROB)
