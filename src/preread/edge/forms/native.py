"""The form of llama-server's own `/completion` and `/infill`.

Pure.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from preread.edge.forms.form import Answer, Head, event, joined, timings
from preread.edge.forms.openai import alone
from preread.edge.request import Done, Piece, TokenOdds


class NativeForm:
    """Answers as llama-server gives them itself: one object, or a list of them for several."""

    def __init__(self, head: Head) -> None:
        self._head, self._lines = head, set[int]()

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """As `Form`."""
        told = []
        for index, (pieces, done) in enumerate(answers):
            piece = joined(pieces)
            self._note(index, piece)
            told.append(self._end(index, done) | {"content": piece.text} | self._odds(piece))
        return msgspec.json.encode(told[0] if len(told) == 1 else told)

    def event(self, choice: int, item: Piece | Done) -> bytes:
        """As `Form`."""
        if isinstance(item, Done):
            return event(self._end(choice, item))
        self._note(choice, item)
        told = {"index": choice, "content": item.text, "tokens": [], "stop": False, "id_slot": -1}
        return event(told | self._odds(item))

    def failing(self, error: dict[str, Any]) -> bytes:
        """As `Form`."""
        return event(error)

    def _odds(self, piece: Piece) -> dict[str, Any]:
        """How likely the tokens were, where it was asked for."""
        return {"completion_probabilities": [_with_top(odds) for odds in piece.odds]} if self._head.wants_odds else {}

    def _note(self, choice: int, piece: Piece) -> None:
        if "\n" in piece.text:
            self._lines.add(choice)

    def _end(self, choice: int, done: Done) -> dict[str, Any]:
        stopped = "limit" if done.finish == "length" else "eos" if done.stop is None else "word"
        return {
            "index": choice,
            "content": "",
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._head.model,
            "tokens_predicted": done.timings.predicted_n,
            "tokens_evaluated": done.prompt_tokens,
            "tokens_cached": done.timings.cache_n,
            "generation_settings": asdict(self._head.call.asks[choice].sampling),
            "has_new_line": choice in self._lines,
            "truncated": False,
            "stop_type": stopped,
            "stopping_word": done.stop or "",
            "timings": timings(done.timings),
        }


def _with_top(odds: TokenOdds) -> dict[str, Any]:
    """The token and the likeliest ones, as llama-server has them: with their ids."""
    return _with_id(odds) | {"top_logprobs": [_with_id(each) for each in odds.top]}


def _with_id(odds: TokenOdds) -> dict[str, Any]:
    return {"id": odds.id} | alone(odds)
