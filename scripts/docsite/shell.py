"""What a page tells its reader to type: commands of a shell, one after the other, and programs in Python.

Pure. It runs none, and knows no command but by its name.
"""

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from docsite import markdown

SHELLS: Final = frozenset({"sh", "bash", "shell", "console"})
"""Languages of blocks that hold commands. In one of `console` these stand behind `$ `; the rest is what they say."""

_ENDS: Final = frozenset({";", "&&", "||", "|", "&", ">", "(", ")"})
_DEFINES: Final = re.compile(r"\w+(=\S*\s*(;|$)|=\"|=\$\(|\(\) *\{)")
"""A variable or a function, which the rest of a block needs: such a block is typed at once."""

_HERE_DOCUMENT: Final = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@dataclass(frozen=True, slots=True)
class Typed:
    """What is typed at once: a command with all that belongs to it, or a program.

    Attributes:
        text: as a shell, or Python, takes it.
        line: of the page where its block begins, counted from 1.
        language: a shell's, or Python.
    """

    text: str
    line: int
    language: Literal["sh", "python"] = "sh"

    @property
    def program(self) -> str:
        """Name of the program that it begins with; of one in Python, `python`."""
        named = [words[0] for words in commands(self.text) if words] if self.language == "sh" else ["python"]
        return named[0].rpartition("/")[2] if named else ""


def typed(page: str) -> tuple[Typed, ...]:
    """What a page tells to type, in order.

    Raises:
        ValueError: a quotation does not end within its block.
    """
    found = list[Typed]()
    for block in markdown.code(page):
        if block.kind == "block" and block.language == "python":
            found.append(Typed(block.text, block.line, "python"))
        elif block.kind == "block" and block.language in SHELLS:
            lines = [line.removeprefix("$ ") for line in block.text.splitlines() if _is_typed(line, block.language)]
            at_once = [block.text] if any(map(_DEFINES.match, lines)) else whole(lines)
            found += [Typed(text, block.line) for text in at_once if not re.match(r"\s*(#|$)", text)]
    return tuple(found)


def within(page: str) -> tuple[Typed, ...]:
    """Commands of preread's that are named within a page's lines."""
    parts = (part for part in markdown.code(page) if part.kind == "inline" and part.text.startswith("preread "))
    return tuple(Typed(part.text.replace("\n", " "), part.line) for part in parts)


def unmarked(page: str, programs: Collection[str]) -> tuple[int, ...]:
    """Lines of a page with blocks that name no language, and in which a line begins with one of these programs."""
    return tuple(
        block.line
        for block in markdown.code(page)
        if block.kind == "block" and not block.language
        if any(line.removeprefix("$ ").partition(" ")[0] in programs for line in block.text.splitlines())
    )


def _is_typed(line: str, language: str) -> bool:
    return language != "console" or line.startswith("$ ")


def whole(lines: Sequence[str]) -> list[str]:
    r"""Lines of a shell, those together over which a `\`, a quotation or a here-document goes.

    Raises:
        ValueError: it does not end.
    """
    found, rest = list[str](), list(lines)
    while rest:
        text = rest.pop(0)
        while not _complete(text):
            if not rest:
                raise ValueError(f"this does not end: {text}")
            text += "\n" + rest.pop(0)
        found.append(text)
    return found


def commands(text: str) -> Iterator[tuple[str, ...]]:
    """The words of each command in what a shell takes at once, without variables that are set for it.

    Raises:
        ValueError: a quotation that does not end.
    """
    words = shlex.shlex(re.sub(r"\\\n\s*", " ", text).split("<<")[0], posix=True, punctuation_chars=";&|>()")
    words.whitespace_split, words.commenters = True, "#"
    found: list[list[str]] = [[]]
    for word in words:
        if word in _ENDS:
            found.append([])
        elif found[-1] or not re.match(r"[A-Za-z_]+=", word):
            found[-1].append(word)
    return (tuple(one) for one in found if one)


def changed(words: Sequence[str], options: Mapping[str, str | bool], flags: frozenset[str]) -> list[str]:
    """A command with other options.

    Args:
        options: by name; a text is the option's value, True a flag that is set, False takes the option away.
        flags: options that take no value.
    """
    kept, rest = list[str](), list(words)
    while rest:
        name, equals, _ = (word := rest.pop(0)).partition("=")
        if name not in options:
            kept.append(word)
        elif not equals and name not in flags and rest:
            rest.pop(0)
    for name, value in options.items():
        kept += [name] if value is True else [name, value] if isinstance(value, str) else []
    return kept


def _complete(text: str) -> bool:
    """Whether a shell would run it, and ask for nothing more."""
    if text.endswith("\\"):
        return False
    document = _HERE_DOCUMENT.search(text)
    if document is not None:
        return document[2] in text.splitlines()[1:]
    try:
        list(commands(text))
    except ValueError:
        return False
    return True
