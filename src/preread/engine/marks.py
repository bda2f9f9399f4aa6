"""Text stays text: what looks like a control token in a chat's contents is not read as one.

A template puts contents between control tokens, and may trim, cut or quote them; in what it returns nobody can tell the
two apart. So a mark, a character that stands nowhere else, is put into what looks like a control token before the
template gets it. What has no mark in the prompt is the template's own.

Pure. It must not know templates or vocabularies.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from preread.errors import UsageError

_MARKS: Final = range(0xE100, 0xF900)  # Unicode's private use area: no text means anything by these


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered chat, or a part of one. `mark`: what its contents are marked with; empty: nothing had to be."""

    text: str
    mark: str = ""


class Controls:
    """The texts of a vocabulary's control tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if text)
        # Looked up by length: a pattern of all texts takes seconds to compile where there are thousands, as in Gemma.
        self._lengths = sorted({len(text) for text in self._texts}, reverse=True)
        self._first = re.compile("|".join(sorted({re.escape(text[0]) for text in self._texts})) or r"(?!)")
        self._begun = frozenset(text[:n] for text in self._texts for n in range(1, len(text)))
        self._longest = max(self._lengths, default=1)

    def mark_for(self, *values: Any) -> str:
        """A character to mark these values with: it stands in none of them. Empty: nothing in them has to be marked.

        Raises:
            UsageError: they hold all the characters that could be one.
        """
        texts = [text for value in values for text in _texts(value)]
        if not any(self._has(text) or self._begins(text) for text in texts):
            return ""
        for mark in map(chr, _MARKS):
            if not any(mark in text or _escaped(mark) in text for text in texts):
                return mark
        raise UsageError("the messages hold every character of Unicode's private use area: leave some out")

    def marked(self, value: Any, mark: str) -> Any:
        """The value with `mark` behind the first character of what looks like a control token, or like its beginning
        at a text's end: another text may follow there. Roles are left as they are."""
        if not mark:
            return value
        if isinstance(value, str):
            cuts = sorted({start + 1 for start, _ in self._starts(value)} | set(self._begins(value)))
            return mark.join(value[a:b] for a, b in zip([0, *cuts], [*cuts, len(value)], strict=True))
        if isinstance(value, list | tuple):
            return [self.marked(each, mark) for each in value]
        if isinstance(value, dict):
            return {self._key(key, mark): self._field(key, each, mark) for key, each in value.items()}
        return value

    def _key(self, key: str, mark: str) -> str:
        return str(self.marked(key, mark)) if self._has(key) else key

    def _field(self, key: str, value: Any, mark: str) -> Any:
        return value if key == "role" else self.marked(value, mark)

    def parts(self, prompt: Prompt) -> Iterator[tuple[str, bool]]:
        """The prompt without its marks, in parts: each with whether control tokens are to be read in it.

        A part without them is all that stands between two control tokens, so that it is tokenised as one text.
        """
        mark = prompt.mark
        if not mark:
            yield prompt.text, True
            return
        read_from = at = 0
        for start, stop in chain(self._own(prompt), [(len(prompt.text), 0)]):
            between = prompt.text[at:start]
            if mark in between or _escaped(mark) in between:
                if read_from < at:
                    yield prompt.text[read_from:at], True
                yield between.replace(mark, "").replace(_escaped(mark), ""), False
                read_from = start
            at = stop
        if read_from < len(prompt.text):
            yield prompt.text[read_from:], True

    def _own(self, prompt: Prompt) -> Iterator[tuple[int, int]]:
        """Where the template's own control tokens stand: no mark is behind them, and none begins within another."""
        end = 0
        for start, stop in self._starts(prompt.text, prompt.mark):
            if start >= end:
                yield start, (end := stop)

    def _starts(self, text: str, mark: str = "") -> Iterator[tuple[int, int]]:
        """Wherever a control token begins, and where the longest one there ends that has no mark behind it."""
        for found in self._first.finditer(text):
            start = found.start()
            for piece in (text[start : start + length] for length in self._lengths):
                stop = start + len(piece)  # a text may end before
                if piece in self._texts and not (mark and text.startswith(mark, stop)):
                    yield start, stop
                    break

    def _has(self, text: str) -> bool:
        return next(self._starts(text), None) is not None

    def _begins(self, text: str) -> list[int]:
        """Where a mark has to stand within the text's end because a control token begins with that end."""
        ends = range(1, min(self._longest, len(text) + 1))
        return [len(text) - n + 1 for n in ends if text[-n:] in self._begun]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            if key != "role":
                yield from _texts(each)


def _escaped(mark: str) -> str:
    """How JSON in ASCII writes it."""
    return f"\\u{ord(mark):04x}"
