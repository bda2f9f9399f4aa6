"""The page of all commands, from the command line's own tree: what `--help` says, of every command and option."""

from collections.abc import Iterator
from typing import Any

from typer import Context

from docsite.commands import tree


def page() -> str:
    """The page, as Markdown. Its headings are the commands' names."""
    head = "# Commands\n\nWhat `preread --help` and each command's `--help` say.\n"
    return "\n".join([head, *_sections(tree(), "preread", None)])


def _sections(command: Any, name: str, parent: Context | None) -> Iterator[str]:
    context = Context(command, info_name=name.rpartition(" ")[2], parent=parent)
    yield "#" * (1 + len(name.split())) + f" {name}\n\n{command.help or ''}\n"
    yield f"```console\n$ {name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    for parameter in command.get_params(context):
        if (told := parameter.get_help_record(context)) is not None:
            yield f"- `{told[0]}`{': ' * bool(told[1])}{_escaped(told[1])}"
    yield ""
    for below in getattr(command, "commands", {}).values():
        yield from _sections(below, f"{name} {below.name}", context)


def _escaped(text: str) -> str:
    """Text as Markdown shows it as it is; what stands between backticks is code there, too."""
    return text.replace("<", "&lt;").replace("*", "\\*")
