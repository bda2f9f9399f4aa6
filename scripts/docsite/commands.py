"""Commands of `preread` in pages, and whether the command line takes them. Runs none."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any

from typer import Exit, TyperException
from typer.main import get_command

from docsite import markdown
from preread.cli import app

_ENDS = {";", "&&", "||", "|", "&", ">", "(", ")"}
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
    found = list[Command]()
    for part in markdown.code(text):
        if part.language not in {"", "sh", "bash", "console", "shell"}:
            continue
        text = re.sub(r"\\\n\s*", " ", part.text)
        if part.kind == "inline":
            lines = [text.replace("\n", " ")] if text.startswith("preread ") else []
        else:
            lines = _quoted_whole(text.splitlines()) if part.language else text.splitlines()
        for line in lines:
            if "preread" in line:
                found += [Command(words, part.line, part.kind == "block" and _whole(words)) for words in _of_line(line)]
    return tuple(found)


def _quoted_whole(lines: list[str]) -> list[str]:
    """Lines of a shell, those together over which a quotation goes."""
    whole = [""]
    for line in lines:
        whole[-1] += line
        try:
            _of_line(whole[-1])
        except ValueError:
            whole[-1] += "\n"
        else:
            whole.append("")
    return whole


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


def _of_line(line: str) -> list[tuple[str, ...]]:
    """The words after each `preread` that begins a command in a line of a shell."""
    words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|>()")
    words.whitespace_split, words.commenters = True, "#"
    commands: list[list[str]] = [[]]
    for word in words:
        if word in _ENDS:
            commands.append([])
        else:
            commands[-1].append(word)
    named = [_after_variables(command) for command in commands]
    return [tuple(command[1:]) for command in named if command and command[0].rpartition("/")[2] == "preread"]


def _after_variables(command: list[str]) -> list[str]:
    """Without the variables that are set for it."""
    while command and re.match(r"[A-Z_]+=", command[0]):
        command = command[1:]
    return command


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
