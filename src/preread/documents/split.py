"""A text cut where its author did: before chapters, else between paragraphs, lines or words. Pure."""

import re
from collections.abc import Iterator
from typing import Final

_FENCE: Final = re.compile(r"(?m)^ {0,3}(?:```|~~~).*$")
_HEADINGS: Final = tuple(re.compile(rf"(?m)^#{{{level}}} ") for level in range(1, 7))
_PARAGRAPH, _LINE, _WORD = re.compile(r"(?<=\n\n)(?=[^\n])"), re.compile(r"(?m)^"), re.compile(r"(?<=\s)(?=\S)")
_BLANK: Final = re.compile(r"[^\n]")


def split(text: str, most_characters: int) -> list[str]:
    """Parts of at most so many characters, none empty, that make up the text.

    A part is at least half as long as it may be, but for the last: among the places where it may end, one before the
    highest heading is taken, and among equal ones the last. A `#` in a fenced block of code is no heading.
    """
    unfenced = "".join(_unfenced(text))
    parts, start = [], 0
    while len(text) - start > most_characters:
        stop = _end(text, unfenced, start + max(1, most_characters // 2), start + max(1, most_characters))
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]] if start < len(text) else parts


def heading(text: str) -> str:
    """The first line that says something, without the marks of a heading."""
    return next((line.lstrip("#").strip() for line in text.splitlines() if line.strip("# \t")), "")


def _end(text: str, unfenced: str, least: int, most: int) -> int:
    for where, pattern in [
        *((unfenced, one) for one in _HEADINGS),
        *((text, one) for one in (_PARAGRAPH, _LINE, _WORD)),
    ]:
        # `pos` keeps what lies before in sight of `^` and lookbehinds; a place at `most` itself ends a full part
        last = max(
            (found.start() for found in pattern.finditer(where, least, most + 8) if found.start() <= most), default=0
        )
        if last >= least:
            return last
    return most


def _unfenced(text: str) -> Iterator[str]:
    """The text with blocks of code blanked, letter for letter."""
    at, within = 0, False
    for fence in _FENCE.finditer(text):
        piece = text[at : fence.end()]
        yield _BLANK.sub(" ", piece) if within else piece
        at, within = fence.end(), not within
    yield text[at:]
