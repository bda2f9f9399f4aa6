"""Commands of `preread` in pages, and whether the command line takes them. Runs none."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from typer import Exit, TyperException
from typer.main import get_command

from docsite import shell
from preread.cli import app

_LEFT_OUT = re.compile(r"…|\.\.\.")


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page.

    Attributes:
        words: after `preread`.
        line: of the page where the block or paragraph begins that has it.
        whole: whether somebody who types it has all that it needs: it stands in a block, and no `…` or variable stands
            for something else.
    """

    words: tuple[str, ...]
    line: int
    whole: bool


def of_page(text: str) -> tuple[Command, ...]:
    """The commands in a page's blocks of code, and those that are named within its lines.

    Raises:
        ValueError: quotes that do not end.
    """
    found = [command for one in shell.within(text) for command in _named(one.text, one.line, whole=False)]
    for one in shell.typed(text):
        if one.language == "sh":
            found += _named(one.text, one.line, whole=True)
    return tuple(sorted(found, key=lambda command: command.line))


def _named(text: str, line: int, *, whole: bool) -> Iterator[Command]:
    """The commands of preread's in what a shell takes."""
    for words in shell.commands(text):
        if words[0].rpartition("/")[2] == "preread":
            yield Command(words[1:], line, whole and _whole(words))


def refusal(command: Command) -> str | None:
    """Why the command line does not take it; None: it does.

    Of what is whole, values and what must be there are checked too; of the rest, that each command and option exists.
    """
    named, node = ["preread"], tree()
    words = list(command.words)
    try:
        while words and (commands := getattr(node, "commands", None)):
            words, called = _after_options(node, words), named[-1]
            if not words or _LEFT_OUT.search(words[0]):
                return None
            if words[0] not in commands:
                return f"{called} has no command {words[0]}"
            named.append(words[0])
            node = commands[words.pop(0)]
        if command.whole:
            with node.make_context(" ".join(named), words):
                return None
    except Exit:  # --help, --version
        return None
    except TyperException as error:
        return error.format_message()
    known = _options(node)
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
    return f"{' '.join(named)} has no option {unknown[0]}" if unknown else None


def called(words: Sequence[str]) -> tuple[str, frozenset[str]]:
    """Which command the words after `preread` call, as `bench ttft`, and its options that take no value.

    Raises:
        TyperException: options before it that do not exist.
    """
    path, node, rest = list[str](), tree(), list(words)
    while below := getattr(node, "commands", None):
        rest = _after_options(node, rest)
        if not rest or rest[0] not in below:
            break
        path.append(rest.pop(0))
        node = below[path[-1]]
    return " ".join(path), frozenset(
        name for name, one in _options(node).items() if one is None or getattr(one, "is_flag", False)
    )


@cache
def tree() -> Any:
    """The command line: commands by name, down to those that have options only."""
    return get_command(app)


def _whole(words: tuple[str, ...]) -> bool:
    return not any(_LEFT_OUT.search(word) or word.startswith("$") for word in words)


def _options(node: Any) -> dict[str, Any]:
    """A command's options by each of their names."""
    names = {name: option for option in node.params for name in (*option.opts, *option.secondary_opts)}
    return names | {"--help": None, "-h": None}


def _after_options(group: Any, words: list[str]) -> list[str]:
    """Without a group's own options, which stand before its command."""
    known = _options(group)
    while words and words[0].startswith("-"):
        name, equals, _ = words[0].partition("=")
        if name not in known:
            raise TyperException(f"there is no option {name} here")
        flag = known[name] is None or known[name].is_flag
        words = words[1:] if flag or equals else words[2:]
    return words
