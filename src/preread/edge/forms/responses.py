"""The form of OpenAI's responses API: items that an answer consists of, and the events in which they come.

Pure. The order of the events, and what each has to have, are those that OpenAI's client puts together again.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from preread.edge.forms.form import Answer, Head, event, joined, timings, used
from preread.edge.forms.openai import with_top
from preread.edge.request import CallPart, Done, Piece

_Event = dict[str, Any]
_STATUS: Final = {"stop": "completed", "tool_calls": "completed", "length": "incomplete"}


class ResponseForm:
    """The answers of /v1/responses: one message, or calls of functions, or both."""

    def __init__(self, head: Head) -> None:
        self._head, self._number = head, 0
        self._output: list[dict[str, Any]] = []
        self._open = False  # the last item may get more

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """As `Form`."""
        ((pieces, done),) = answers
        for _ in self._told(joined(pieces)):
            pass
        for _ in self._ended(_STATUS[done.finish]):
            pass
        return msgspec.json.encode(self._response(done))

    def event(self, choice: int, item: Piece | Done) -> bytes:
        """As `Form`."""
        begun = b"" if self._number else self._began()
        if isinstance(item, Piece):
            return begun + b"".join(map(self._event, self._told(item)))
        status = _STATUS[item.finish]
        last = b"".join(map(self._event, self._ended(status)))
        return begun + last + self._event({"type": f"response.{status}", "response": self._response(item)})

    def failing(self, error: dict[str, Any]) -> bytes:
        """As `Form`. `error` is repeated within the event: that is how OpenAI's client knows it for one."""
        said = error["error"]
        told = {"type": "error", "code": said["code"], "message": said["message"], "param": said["param"]}
        return self._event(told | error)

    def _began(self) -> bytes:
        response = self._response(None)
        kinds = "response.created", "response.in_progress"
        return b"".join(self._event({"type": kind, "response": response}) for kind in kinds)

    def _event(self, told: _Event) -> bytes:
        self._number += 1
        return event({**told, "sequence_number": self._number - 1}, told["type"])

    # Each event is written before the next one is made: what it tells of changes afterwards.

    def _told(self, piece: Piece) -> Iterator[_Event]:
        """Put a piece to what was said; the events that tell it."""
        if piece.text or piece.odds:
            yield from self._text(piece)
        for part in piece.calls:
            yield from self._call(part)

    def _text(self, piece: Piece) -> Iterator[_Event]:
        if not self._open or self._output[-1]["type"] != "message":
            yield from self._close("completed")
            yield from self._begin_message()
        part = self._output[-1]["content"][0]
        odds = [with_top(each) for each in piece.odds] if self._head.wants_odds else []
        part["text"] += piece.text
        part["logprobs"] += odds
        yield self._at("response.output_text.delta", content_index=0, delta=piece.text, logprobs=odds)

    def _call(self, part: CallPart) -> Iterator[_Event]:
        if part.id is not None:
            yield from self._close("completed")
            call = {"type": "function_call", "id": self._id("fc"), "call_id": part.id, "name": part.name}
            yield from self._begin({**call, "arguments": "", "status": "in_progress"})
        self._output[-1]["arguments"] += part.arguments
        if part.arguments:
            yield self._at("response.function_call_arguments.delta", delta=part.arguments)

    def _begin_message(self) -> Iterator[_Event]:
        message = {"type": "message", "id": self._id("msg"), "status": "in_progress", "role": "assistant"}
        yield from self._begin({**message, "content": []})
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._at("response.content_part.added", content_index=0, part=part)
        self._output[-1]["content"].append(part)

    def _begin(self, item: dict[str, Any]) -> Iterator[_Event]:
        self._output.append(item)
        self._open = True
        yield self._about("response.output_item.added", item=item)

    def _ended(self, status: str) -> Iterator[_Event]:
        """The answer is over; an empty one is an empty message."""
        if not self._output:
            yield from self._begin_message()
        yield from self._close(status)

    def _close(self, status: str) -> Iterator[_Event]:
        if not self._open:
            return
        item, self._open = self._output[-1], False
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            said = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._at("response.output_text.done", content_index=0, **said)
            yield self._at("response.content_part.done", content_index=0, part=part)
        else:
            named = {"name": item["name"], "arguments": item["arguments"]}
            yield self._at("response.function_call_arguments.done", **named)
        yield self._about("response.output_item.done", item=item)

    def _about(self, kind: str, **told: Any) -> _Event:
        return {"type": kind, "output_index": len(self._output) - 1, **told}

    def _at(self, kind: str, **told: Any) -> _Event:
        return self._about(kind, item_id=self._output[-1]["id"], **told)

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._head.id.partition('_')[2]}{len(self._output)}"

    def _response(self, done: Done | None) -> dict[str, Any]:
        """The response as far as it has come."""
        head, sampling = self._head, self._head.call.asks[0].sampling
        status = "in_progress" if done is None else _STATUS[done.finish]
        return {
            "id": head.id,
            "object": "response",
            "created_at": head.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": head.model,
            "output": [] if done is None else self._output,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            **head.call.told,
            "usage": None if done is None else _usage(head, done),
            **({} if done is None else {"timings": timings(done.timings)}),
        }


def _usage(head: Head, done: Done) -> dict[str, Any]:
    of = used(head.call, [done])
    return {
        "input_tokens": of.prompt,
        "input_tokens_details": {"cached_tokens": of.cached, "cache_write_tokens": 0},
        "output_tokens": of.answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": of.prompt + of.answer,
    }
