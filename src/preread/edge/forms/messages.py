"""The form of Anthropic's messages API: blocks that an answer consists of, the events in which they come, and errors.

Pure.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from preread.edge.forms.form import Answer, Head, event, joined, timings, used
from preread.edge.request import CallPart, Done, Piece

_Event = dict[str, Any]
_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """The body of an error as Anthropic's clients expect it; what OpenAI's say of it besides stays there."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": body["error"] | {"type": kind}}


class MessageForm:
    """The answers of /v1/messages: text, uses of tools, or both."""

    def __init__(self, head: Head) -> None:
        self._head, self._begun = head, False
        self._content: list[dict[str, Any]] = []
        self._arguments = ""  # of the last block
        self._open = False  # it may get more

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """As `Form`."""
        ((pieces, done),) = answers
        for _ in self._told(joined(pieces)):
            pass
        for _ in self._close():
            pass
        return msgspec.json.encode(self._message(done) | {"content": self._content})

    def event(self, choice: int, item: Piece | Done) -> bytes:
        """As `Form`. How much was read is known at the end only, and told then."""
        begun = b"" if self._begun else _event({"type": "message_start", "message": self._message(None)})
        self._begun = True
        if isinstance(item, Piece):
            return begun + b"".join(map(_event, self._told(item)))
        message = self._message(item)
        told = {"delta": {name: message[name] for name in ("stop_reason", "stop_sequence")}}
        ends = {"type": "message_delta", **told, "usage": message["usage"], "timings": message["timings"]}
        return begun + b"".join(map(_event, (*self._close(), ends, {"type": "message_stop"})))

    def failing(self, error: dict[str, Any]) -> bytes:
        """As `Form`."""
        return event(error, "error")

    # Each event is written before the next one is made: what it tells of changes afterwards.

    def _told(self, piece: Piece) -> Iterator[_Event]:
        """Put a piece to what was said; the events that tell it."""
        if piece.text:
            if not self._open or self._content[-1]["type"] != "text":
                yield from self._begin({"type": "text", "text": ""})
            self._content[-1]["text"] += piece.text
            yield self._about("content_block_delta", delta={"type": "text_delta", "text": piece.text})
        for part in piece.calls:
            yield from self._use(part)

    def _use(self, part: CallPart) -> Iterator[_Event]:
        if part.id is not None:
            yield from self._begin({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        self._arguments += part.arguments
        if part.arguments:
            yield self._about("content_block_delta", delta={"type": "input_json_delta", "partial_json": part.arguments})

    def _begin(self, block: dict[str, Any]) -> Iterator[_Event]:
        yield from self._close()
        self._content.append(block)
        self._open, self._arguments = True, ""
        yield self._about("content_block_start", content_block=block)

    def _close(self) -> Iterator[_Event]:
        if not self._open:
            return
        self._open = False
        if self._content[-1]["type"] == "tool_use":
            self._content[-1]["input"] = _input(self._arguments)
        yield self._about("content_block_stop")

    def _about(self, kind: str, **told: Any) -> _Event:
        return {"type": kind, "index": len(self._content) - 1, **told}

    def _message(self, done: Done | None) -> dict[str, Any]:
        """The message without its content, as far as it has come."""
        stopped = None if done is None else done.stop
        reason = None if done is None else "stop_sequence" if stopped is not None else _REASONS[done.finish]
        return {
            "id": self._head.id,
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": [],
            "stop_reason": reason,
            "stop_sequence": stopped,
            "usage": _usage(self._head, done),
            **({} if done is None else {"timings": timings(done.timings)}),
        }


def _event(told: _Event) -> bytes:
    return event(told, told["type"])


def _input(arguments: str) -> Any:
    """The arguments of a use as an object; where they are not JSON, as the answer was cut, nothing."""
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}


def _usage(head: Head, done: Done | None) -> dict[str, int]:
    """Anthropic counts what is new of a prompt by itself."""
    if done is None:
        return {"input_tokens": 0, "output_tokens": 0}
    of = used(head.call, [done])
    cached = {"cache_read_input_tokens": of.cached, "cache_creation_input_tokens": 0}
    return {"input_tokens": of.prompt - of.cached, **cached, "output_tokens": of.answer}
