"""A chat template as a program: Jinja text in, a function from a chat's variables to its prompt out.

What templates may use is what Hugging Face's transformers gives them: loops that end early, `{% generation %}` around
what a model says, `tojson` with json.dumps's arguments, `strftime_now`, `raise_exception`.

Jinja's sandbox keeps a template from reaching anything of this process; it does not keep one from never ending, or from
taking all memory. Whose text is not known is therefore rendered elsewhere: see `rendering.py`.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from preread.errors import UsageError

MOST_SOURCE_BYTES: Final = 256 * 1024
"""The longest templates of published models have a tenth of that."""

Program = Callable[[Mapping[str, Any]], str]
"""Renders a template with these variables. Raises UsageError where the template fails or refuses them."""


def compiled(source: str) -> Program:
    """Compile a template.

    Raises:
        UsageError: the text is not a template.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        if len(source) > MOST_SOURCE_BYTES:
            raise ValueError(f"it has more than {MOST_SOURCE_BYTES // 1024} KiB")
        template = environment.from_string(source)
    except Exception as error:  # it is somebody else's program, and RecursionError and MemoryError are among its errors
        raise UsageError(f"the model's chat template cannot be read: {_said(error)}") from error

    def render(variables: Mapping[str, Any]) -> str:
        try:
            return template.render(_with_arguments(variables))
        except Exception as error:
            raise UsageError(f"the model's chat template refuses these messages: {_said(error)}") from error

    return render


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` tells trainers what the model says. Here it is what stands in it."""

    tags = {"generation"}  # noqa: RUF012  # Jinja declares it of instances

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Arguments(dict[str, Any]):
    """A tool call's arguments. Some templates expect an object, others the JSON of one, which they print or add."""

    def __str__(self) -> str:
        return _to_json(self)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


def _with_arguments(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with all arguments of tool calls as `_Arguments`."""

    def called(call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
            return call
        return call | {"function": function | {"arguments": _Arguments(function["arguments"])}}

    def calling(message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls")
        return message | {"tool_calls": [called(call) for call in calls]} if calls else message

    return {**variables, "messages": [calling(message) for message in variables.get("messages", ())]}


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not Jinja's own, which writes HTML's characters as escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _said(error: Exception) -> str:
    return str(error)[:1000] or type(error).__name__
