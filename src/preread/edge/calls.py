"""The tool calls in what a model says: its text, as it comes, becomes text and parts of calls.

Pure. The engine's grammar (`engine/calls.py`) sees to it that what begins as a call goes on as one; text that does not
is given as text.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Collection
from typing import Final

from preread.edge.request import CallPart, Piece
from preread.engine.calls import ARGS, ENDS, CallFormat

_HEAD: Final = re.compile(r'[\s\[,]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*')
_HEAD_ARGS: Final = re.compile(r"\s*([^\[{\s]+)\s*" + re.escape(ARGS) + r"\s*")
_BARE: Final = '{"name": "'
_MOST_HEAD: Final = 1024
_LETTERS: Final = string.ascii_letters + string.digits


def random_id() -> str:
    """An id for a call: nine letters and digits, which is what Mistral's templates take."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class Calls:
    """Reads one answer.

    Args:
        format: of the model's calls; None: it has no tools, and all that it says is text.
        names: of the functions that it may call.
        new_id: gives each call its id.

    Attributes:
        count: calls that have begun.
    """

    def __init__(
        self, format: CallFormat | None, names: Collection[str] = (), new_id: Callable[[], str] = random_id
    ) -> None:
        self._format, self._names, self._new_id = format, names, new_id
        self._begins = "" if format is None else format.begins
        self._text, self._state, self._bare = "", self._plain if format is None else self._start, False
        self._depth, self._quoted, self._escaped = 0, False, False
        self.count = 0

    def read(self, piece: Piece) -> Piece | None:
        """What has become certain with this piece of text, if anything has."""
        self._text += piece.text
        said, parts = self._all()
        return _piece(said, piece, parts)

    def rest(self, piece: Piece | None) -> Piece | None:
        """What is left at the answer's end, behind its last piece of text: of a call that has not begun, its text."""
        said, parts = "", list[CallPart]()
        if piece is not None:
            self._text += piece.text
            said, parts = self._all()
        if self._state == self._head:
            said, self._text = said + self._taken + self._text, ""
        if self._state in (self._start, self._outside):
            said, self._text = said + self._text, ""
        return _piece(said, piece or Piece(""), parts)

    def _all(self) -> tuple[str, list[CallPart]]:
        said, parts = "", list[CallPart]()
        while True:
            state, length = self._state, len(self._text)
            text, part = state()
            said += text
            if part is not None:
                parts.append(part)
            if self._state == state and len(self._text) == length:
                return said, parts

    @property
    def _taken(self) -> str:
        """What was taken away before a call."""
        return "" if self._bare else self._begins

    def _plain(self) -> tuple[str, CallPart | None]:
        """Text in which nothing is a call."""
        said, self._text = self._text, ""
        return said, None

    def _start(self) -> tuple[str, CallPart | None]:
        """The answer's beginning: where a call stands there without what calls begin with, as Qwen's coders and Llama
        make them, or else text."""
        begins = (
            _BARE if self._format is CallFormat.HERMES else self._begins if self._format is CallFormat.LLAMA else None
        )
        if begins is None or not (self._text.startswith(begins) or begins.startswith(self._text)):
            self._state = self._outside
        elif found := _HEAD.match(self._text):
            self._bare = self._format is CallFormat.LLAMA or json.loads(found[1]) in self._names
            self._state = self._head if self._bare else self._outside
        elif len(self._text) > _MOST_HEAD:
            self._state = self._outside
        return "", None

    def _outside(self) -> tuple[str, CallPart | None]:
        """Text, up to where a call begins. Blanks before a call are left out."""
        if self._format is CallFormat.LLAMA:  # it calls at an answer's beginning only
            return self._plain()
        begins = self._begins
        at = self._text.find(begins)
        if at >= 0:
            said, self._text = self._text[:at].rstrip(), self._text[at + len(begins) :]
            self._state, self._bare = self._head, False
            return said, None
        may_begin = next((n for n in range(len(begins) - 1, 0, -1) if self._text.endswith(begins[:n])), 0)
        certain = len(self._text[: len(self._text) - may_begin].rstrip())
        said, self._text = self._text[:certain], self._text[certain:]
        return said, None

    def _head(self) -> tuple[str, CallPart | None]:
        """The function's name."""
        found = (_HEAD_ARGS if self._format is CallFormat.MISTRAL_ARGS else _HEAD).match(self._text)
        if found is None or found.end() == len(self._text):
            if len(self._text) > _MOST_HEAD:  # no call after all
                said, self._text, self._state = self._taken + self._text, "", self._outside
                return said, None
            return "", None
        name = found[1] if self._format is CallFormat.MISTRAL_ARGS else json.loads(found[1])
        self._text, self._state = self._text[found.end() :], self._arguments
        self._depth, self._quoted, self._escaped = 0, False, False
        self.count += 1
        return "", CallPart(self.count - 1, id=self._new_id(), name=name)

    def _arguments(self) -> tuple[str, CallPart | None]:
        """The JSON of the arguments, up to its end."""
        for at, character in enumerate(self._text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "[{":
                self._depth += 1
            elif character in "]}":
                self._depth -= 1
                if self._depth == 0:
                    return self._argument(at + 1, self._after)
        return self._argument(len(self._text), self._arguments)

    def _argument(self, length: int, then: Callable[[], tuple[str, CallPart | None]]) -> tuple[str, CallPart | None]:
        said, self._text, self._state = self._text[:length], self._text[length:], then
        return "", CallPart(self.count - 1, said) if said else None

    def _after(self) -> tuple[str, CallPart | None]:
        """What closes a call, up to where the next one begins."""
        if self._bare:
            if found := re.match(r"\s*\}", self._text):
                self._text, self._state = self._text[found.end() :], self._outside
        elif self._format is CallFormat.HERMES:
            at = self._text.find(ENDS)
            if at >= 0:
                self._text, self._state = self._text[at + len(ENDS) :], self._outside
        elif self._format is CallFormat.MISTRAL:
            if found := re.match(r"\s*\}\s*([,\]])", self._text):
                self._text = self._text[found.end() :]
                self._state = self._head if found[1] == "," else self._outside
        else:
            self._state = self._outside
        return "", None


def _piece(said: str, piece: Piece, parts: list[CallPart]) -> Piece | None:
    return Piece(said, piece.odds, tuple(parts)) if said or piece.odds or parts else None
