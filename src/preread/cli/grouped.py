"""Options that belong together are one value for a command: a dataclass with a field for each."""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer reads it: in place of each parameter that is a dataclass, an option for each of its fields.

    Fields say what their options are as parameters do. Such a parameter has a default, whose values are theirs.
    """
    given = inspect.signature(command)
    groups: dict[str, Any] = {name: one.default for name, one in given.parameters.items() if is_dataclass(one.default)}

    @wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = type(group)(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    parameters = list[inspect.Parameter]()
    for one in given.parameters.values():
        if one.name in groups:
            parameters += [
                _option(field.name, getattr(one.default, field.name), field.type) for field in fields(one.default)
            ]
        else:
            parameters.append(_option(one.name, one.default, one.annotation))
    called.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]  # mypy knows it of no function
    return called


def _option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
