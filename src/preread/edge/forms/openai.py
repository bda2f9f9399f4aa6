"""The two forms of OpenAI's older APIs: chats, and completions of texts.

Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import msgspec

from preread.edge.forms.form import Answer, Head, event, joined, timings, used, whole_calls
from preread.edge.request import CallPart, Done, Piece, Progress, TokenOdds

_DONE: Final = b"data: [DONE]\n\n"
_LEAST_LOGPROB: Final = -9999.0  # JSON has no minus infinity; OpenAI sends this


class ChatForm:
    """The answers of /v1/chat/completions."""

    def __init__(self, head: Head) -> None:
        self._head, self._begun, self._ends = head, set[int](), dict[int, Done]()

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """As `Form`. `timings` are those of the first choice."""
        choices = []
        for index, (pieces, done) in enumerate(answers):
            piece = joined(pieces)
            message = {"role": "assistant", "content": piece.text, "refusal": None, **_called(piece)}
            odds = _chat_odds(self._head, piece)
            choices.append({"index": index, "message": message, "logprobs": odds, "finish_reason": done.finish})
        return _whole(self._head, "chat.completion", choices, answers)

    def event(self, choice: int, item: Piece | Done) -> bytes:
        """As `Form`: whose turn it is comes before the first piece of each choice."""
        before = b"" if choice in self._begun else self._chunk(choice, {"role": "assistant", "content": ""}, None)
        self._begun.add(choice)
        if isinstance(item, Piece):
            # As from OpenAI, each event has one part of a call: clients look at the first one only.
            deltas: list[dict[str, Any]] = [{"tool_calls": [_delta(part)]} for part in item.calls]
            first, *rest = [{"content": item.text}, *deltas] if item.text or not deltas else deltas
            said = self._chunk(choice, first, _chat_odds(self._head, item))
            return before + said + b"".join(self._chunk(choice, delta, None) for delta in rest)
        self._ends[choice] = item
        last = {"index": choice, "delta": {}, "logprobs": None, "finish_reason": item.finish}
        return before + _closing(self._head, "chat.completion.chunk", last, item, self._ends)

    def failing(self, error: dict[str, Any]) -> bytes:
        """As `Form`."""
        return event(error)

    def _chunk(self, choice: int, delta: dict[str, Any], odds: dict[str, Any] | None) -> bytes:
        said = {"index": choice, "delta": delta, "logprobs": odds, "finish_reason": None}
        return event(_body(self._head, "chat.completion.chunk", [said]))


class CompletionForm:
    """The answers of /v1/completions."""

    def __init__(self, head: Head) -> None:
        self._head, self._characters, self._ends = head, dict[int, int](), dict[int, Done]()

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """As `Form`. `timings` are those of the first choice."""
        choices = []
        for index, (pieces, done) in enumerate(answers):
            piece = joined(pieces)
            odds = _text_odds(self._head, piece, 0)
            choices.append({"index": index, "text": piece.text, "logprobs": odds, "finish_reason": done.finish})
        return _whole(self._head, "text_completion", choices, answers)

    def event(self, choice: int, item: Piece | Done) -> bytes:
        """As `Form`. Offsets of tokens count characters of their choice."""
        if isinstance(item, Done):
            self._ends[choice] = item
            last = {"index": choice, "text": "", "logprobs": None, "finish_reason": item.finish}
            return _closing(self._head, "text_completion", last, item, self._ends)
        offset = self._characters.get(choice, 0)
        self._characters[choice] = offset + len(item.text)
        odds = _text_odds(self._head, item, offset)
        said = {"index": choice, "text": item.text, "logprobs": odds, "finish_reason": None}
        return event(_body(self._head, "text_completion", [said]))

    def failing(self, error: dict[str, Any]) -> bytes:
        """As `Form`."""
        return event(error)


def chat_progress(head: Head, progress: Progress) -> bytes:
    """The event that tells how far a chat's prompt is, in llama-server's form."""
    delta = {"role": "assistant", "content": None}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return event(_body(head, "chat.completion.chunk", [choice]) | {"prompt_progress": asdict(progress)})


def completion_progress(head: Head, progress: Progress) -> bytes:
    """The same for a completion's."""
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
    return event(_body(head, "text_completion", [choice]) | {"prompt_progress": asdict(progress)})


def _called(piece: Piece) -> dict[str, Any]:
    """The calls of a whole answer; without text its content is null then."""
    if not piece.calls:
        return {}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in whole_calls(piece.calls)
    ]
    return {"content": piece.text or None, "tool_calls": calls}


def _delta(part: CallPart) -> dict[str, Any]:
    function = {"arguments": part.arguments}
    if part.id is None:
        return {"index": part.index, "function": function}
    return {"index": part.index, "id": part.id, "type": "function", "function": {"name": part.name, **function}}


def _whole(head: Head, kind: str, choices: list[dict[str, Any]], answers: Sequence[Answer]) -> bytes:
    ends = [done for _, done in answers]
    return msgspec.json.encode(
        _body(head, kind, choices) | {"usage": _usage(head, ends), "timings": timings(ends[0].timings)}
    )


def _closing(head: Head, kind: str, choice: dict[str, Any], done: Done, ends: Mapping[int, Done]) -> bytes:
    """The events at the end of a choice, and of all when it is the last. As from llama-server, `timings` are in the
    last event that is JSON; without usage each choice has its own."""
    call, told = head.call, {"timings": timings(done.timings)}
    last = len(ends) == len(call.asks)
    if not call.include_usage:
        return event(_body(head, kind, [choice]) | told) + (_DONE if last else b"")
    if not last:
        return event(_body(head, kind, [choice]))
    all = [ends[index] for index in range(len(ends))]
    usage = _body(head, kind, []) | {"usage": _usage(head, all), "timings": timings(all[0].timings)}
    return event(_body(head, kind, [choice])) + event(usage) + _DONE


def _body(head: Head, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": f"b{head.fingerprint[:12]}",  # llama-server's begin so
        "choices": choices,
    }


def _usage(head: Head, ends: Sequence[Done]) -> dict[str, Any]:
    of = used(head.call, ends)
    return {
        "prompt_tokens": of.prompt,
        "completion_tokens": of.answer,
        "total_tokens": of.prompt + of.answer,
        "prompt_tokens_details": {"cached_tokens": of.cached},
    }


def _chat_odds(head: Head, piece: Piece) -> dict[str, Any] | None:
    """How likely the tokens were; None where it was not asked for."""
    return {"content": [with_top(odds) for odds in piece.odds], "refusal": None} if head.wants_odds else None


def _text_odds(head: Head, piece: Piece, offset: int) -> dict[str, Any] | None:
    """The same of a piece that stands `offset` characters after the beginning."""
    if not head.wants_odds:
        return None
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
    return {each.text: _finite(each.logprob) for each in (*odds.top, odds)}


def with_top(odds: TokenOdds) -> dict[str, Any]:
    """The token and the likeliest ones, as OpenAI's newer APIs have them."""
    return alone(odds) | {"top_logprobs": [alone(each) for each in odds.top]}


def alone(odds: TokenOdds) -> dict[str, Any]:
    """The token without the likeliest ones."""
    return {"token": odds.text, "logprob": _finite(odds.logprob), "bytes": list(odds.data)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST_LOGPROB)
