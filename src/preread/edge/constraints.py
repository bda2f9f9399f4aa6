"""What a request says of its answer's form: a grammar for all of it, and the tools that the model may call.

OpenAI, llama-server and vLLM each have fields of their own for the same. Pure.
"""

import json
from typing import Any

from preread.edge.body import Chat, Declared, Request, StructuredOutputs, Tool, ToolChoice
from preread.edge.refusal import BadRequest, refuse
from preread.engine.calls import Tools
from preread.engine.grammar import Grammar, of_choice, of_schema

_OBJECT = of_schema({"type": "object"}, lenient=True)


def grammar(request: Request) -> Grammar | None:
    """What the answer has to look like; None: anything.

    Raises:
        BadRequest: two fields say it, or one says what cannot be enforced.
    """
    found = {name: each for name, each in _all(request).items() if each is not None}
    if len(found) > 1:
        raise BadRequest(f"one field says what the answer has to look like, not {' and '.join(found)}", [*found][1])
    return next(iter(found.values()), None)


def _all(request: Request) -> dict[str, Grammar | None]:
    asked = request.structured_outputs
    guided = StructuredOutputs(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
    )
    return {
        "response_format": _format(request),
        "grammar": Grammar("gbnf", request.grammar) if request.grammar else None,
        "json_schema": None if request.json_schema is None else of_schema(request.json_schema, lenient=True),
        "structured_outputs": None if asked is None else _structured(asked, "structured_outputs."),
        "guided": _structured(guided, "guided_"),
    }


def _format(request: Request) -> Grammar | None:
    asked = request.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return _OBJECT if asked.schema is None else of_schema(asked.schema, lenient=True)
    if asked.json_schema is None or asked.json_schema.schema is None:
        raise BadRequest("json_schema wants {'name': …, 'schema': …}", "response_format.json_schema")
    return of_schema(asked.json_schema.schema, lenient=not asked.json_schema.strict)


def _structured(asked: StructuredOutputs, at: str) -> Grammar | None:
    for name in ("disable_additional_properties", "whitespace_pattern", "structural_tag"):
        refuse(getattr(asked, name), f"{at}{name}", f"{name} cannot be honoured here: leave it out")
    ways: dict[str, Grammar] = {}
    if asked.json is not None:
        ways["json"] = of_schema(_schema(asked.json, f"{at}json"), lenient=True)
    if asked.regex is not None:
        ways["regex"] = Grammar("regex", asked.regex)
    if asked.choice:
        ways["choice"] = of_choice(asked.choice)
    if asked.grammar is not None:
        ways["grammar"] = Grammar("any", asked.grammar)
    if asked.json_object:
        ways["json_object"] = _OBJECT
    if len(ways) > 1:
        raise BadRequest(f"one of {' and '.join(ways)} says what the answer has to look like", f"{at}{[*ways][1]}")
    return next(iter(ways.values()), None)


def _schema(asked: dict[str, Any] | str, at: str) -> dict[str, Any]:
    """A schema, or the JSON text of one."""
    if isinstance(asked, dict):
        return asked
    try:
        read = json.loads(asked)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{at} is no JSON schema: {error}", at) from error
    if not isinstance(read, dict):
        raise BadRequest(f"{at} is no JSON schema: it has to be an object", at)
    return read


def tools(request: Chat) -> Tools | None:
    """What the model may call; None: nothing.

    Raises:
        BadRequest: a tool is not a function, or one is to be called that there is not.
    """
    choice = request.tool_choice
    if choice == "none":
        return None
    functions = [_declared(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())]
    if request.function_call != "none":
        refuse(request.functions, "functions", "functions are told as tools: {'type': 'function', 'function': …}")
    if not functions:
        refuse(choice not in (None, "auto"), "tool_choice", "there are no tools: leave tool_choice out")
        return None
    names = [function.name for function in functions]
    if len({*names}) < len(names):
        raise BadRequest("two tools have the same name", "tools")
    allowed, required = names, choice == "required"
    if isinstance(choice, ToolChoice):
        allowed, required = _allowed(choice)
        for name in allowed:
            refuse(name not in names, "tool_choice", f"there is no tool {name!r}")
    told = tuple(_told(function) for function in functions)
    return Tools(told, tuple(allowed), required, bool(request.parallel_tool_calls))


def _declared(tool: Tool, at: str) -> Declared:
    if tool.type != "function" or tool.function is None:
        raise BadRequest(f"{at}: a tool is {{'type': 'function', 'function': {{'name': …}}}}", at)
    kind = (tool.function.parameters or {}).get("type", "object")
    if kind != "object":
        raise BadRequest(f"{at}: parameters are a JSON schema of an object", f"{at}.function.parameters")
    return tool.function


def _allowed(choice: ToolChoice) -> tuple[list[str], bool]:
    """The names that may be called, and whether one has to be."""
    if choice.function is not None:
        return [choice.function.name], True
    if choice.allowed_tools is not None and choice.allowed_tools.tools:
        at, listed = "tool_choice.allowed_tools.tools", choice.allowed_tools.tools
        names = [_declared(tool, f"{at}[{i}]").name for i, tool in enumerate(listed)]
        return names, choice.allowed_tools.mode == "required"
    raise BadRequest("tool_choice is none, auto, required or a function's name", "tool_choice")


def _told(function: Declared) -> dict[str, Any]:
    told: dict[str, Any] = {"name": function.name, "description": function.description or ""}
    return told | {"parameters": function.parameters or {"type": "object", "properties": {}}, "strict": function.strict}
