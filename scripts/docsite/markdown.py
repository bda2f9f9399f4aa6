"""What a page of Markdown has: headings, links, code. Pure; it knows no site, no files, no commands."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

_COMMON = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True, slots=True)
class Code:
    """Code of a page.

    Attributes:
        text: as it stands there.
        language: after the fence; "" where there is none.
        line: of the page on which it begins, counted from 1.
        kind: a block of its own, or code within a line.
    """

    text: str
    language: str
    line: int
    kind: Literal["block", "inline"]


@cache
def anchors(text: str) -> frozenset[str]:
    """What a link to this page may have after `#`, as GitHub makes it from headings."""
    seen: Counter[str] = Counter()
    found = set[str]()
    tokens = _COMMON.parse(text)
    for token, content in pairwise(tokens):
        if token.type == "heading_open":
            name = slug("".join(child.content for child in content.children or ()))
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return frozenset(found)


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading's text, as GitHub makes it: letters of any script, digits, `_` and `-`."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def links(text: str) -> tuple[str, ...]:
    """Where its links and pictures lead, in order, as they are written."""
    found = (token.attrs.get("href") or token.attrs.get("src") for token in _inline(text))
    return tuple(str(target) for target in found if target)


def code(text: str) -> tuple[Code, ...]:
    """Its code, in order."""
    found = list[Code]()
    for token in _COMMON.parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type in {"fence", "code_block"}:
            found.append(Code(token.content, token.info.strip(), line, "block"))
        for child in token.children or ():
            if child.type == "code_inline":
                found.append(Code(child.content, "", line, "inline"))
    return tuple(found)


def _inline(text: str) -> Iterator[Token]:
    for token in _COMMON.parse(text):
        yield from token.children or ()
