"""A chat template as a program: Jinja text in, a function from a chat's variables to its prompt out.

Jinja's sandbox keeps a template from reaching anything of this process; it does not keep one from never ending, or from
taking all memory. Whose text is not known is therefore rendered elsewhere: see `rendering.py`.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import jinja2
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
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
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
            return template.render(variables)
        except Exception as error:
            raise UsageError(f"the model's chat template refuses these messages: {_said(error)}") from error

    return render


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _said(error: Exception) -> str:
    return str(error)[:1000] or type(error).__name__
