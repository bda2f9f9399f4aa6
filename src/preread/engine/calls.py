"""How models call tools: their calls' format, how they are told what there is, and the grammar of what they may say.

Each family was taught a format of its own:

    Hermes, Qwen    <tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>
    Llama 3         {"name": …, "parameters": {…}}
    Mistral         [TOOL_CALLS] [{"name": …, "arguments": {…}}], or since 2025 [TOOL_CALLS]name[ARGS]{…}

Which one it is shows in the chat template. A model whose template knows nothing of tools is told about them in its
system prompt, in Hermes's format. What it says is bound to the format from where it begins to call, and arguments to
their schema.

Pure. `edge/calls.py` reads what comes out.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Any, Final

from preread.engine.grammar import Grammar, spaced
from preread.errors import UsageError

Message = dict[str, Any]
Function = dict[str, Any]


class CallFormat(Enum):
    """How a model calls tools."""

    HERMES = "Hermes"
    LLAMA = "Llama 3"
    MISTRAL = "Mistral"
    MISTRAL_ARGS = "Mistral, newer"

    @property
    def begins(self) -> str:
        """The text that a call begins with."""
        return {CallFormat.HERMES: "<tool_call>", CallFormat.LLAMA: "{"}.get(self, "[TOOL_CALLS]")

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts of calls that are control tokens in some vocabularies."""
        return (self.begins, ARGS, ENDS)


ENDS: Final = "</tool_call>"
"""Behind a call, in Hermes's format."""

ARGS: Final = "[ARGS]"
"""Between a function's name and its arguments, in Mistral's newer format."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a model may call.

    Attributes:
        functions: {"name": …, "description": …, "parameters": JSON schema, "strict": …} each; the model is told of all.
        allowed: names of those that it may call.
        required: it has to call one.
        parallel: it may call several in one answer.
    """

    functions: tuple[Function, ...]
    allowed: tuple[str, ...]
    required: bool = False
    parallel: bool = False

    @property
    def for_template(self) -> list[dict[str, Any]]:
        """As templates expect them."""
        told = ({key: value for key, value in each.items() if key != "strict"} for each in self.functions)
        return [{"type": "function", "function": function} for function in told]


def format_of(template: str) -> CallFormat:
    """The format that a chat template has for calls; Hermes's where it has none."""
    if "<tool_call>" in template:
        return CallFormat.HERMES
    if ARGS in template:
        return CallFormat.MISTRAL_ARGS
    if "[TOOL_CALLS]" in template:
        return CallFormat.MISTRAL
    if "<|python_tag|>" in template or "ipython" in template:
        return CallFormat.LLAMA
    return CallFormat.HERMES


def preamble(functions: Sequence[dict[str, Any]], format: CallFormat) -> str:
    """What tells a model about tools whose template does not, `functions` as in `Tools.for_template`."""
    listed = "\n".join(json.dumps(each, ensure_ascii=False) for each in functions)
    example = _text(format, "NAME", '{"ARGUMENT": VALUE}')
    return f"You can call these functions, described in JSON:\n{listed}\nTo call one, answer only:\n{example}"


def retold(messages: Sequence[Message], format: CallFormat) -> list[Message]:
    """Messages without fields for calls: a call is the assistant's text, results that follow each other are one message
    of the user's."""
    chat: list[Message] = []
    for are_results, group in groupby(messages, lambda message: message["role"] == "tool"):
        if are_results:
            results = (f"<tool_response>\n{message['content']}\n</tool_response>" for message in group)
            chat.append({"role": "user", "content": "\n".join(results)})
        else:
            chat += [_with_calls_as_text(message, format) for message in group]
    return chat


def _with_calls_as_text(message: Message, format: CallFormat) -> Message:
    plain = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    said = [_text(format, call["name"], _json(call["arguments"])) for call in calls]
    return plain | {"content": "\n".join([plain["content"], *said] if plain["content"] else said)}


def _text(format: CallFormat, name: str, arguments: str) -> str:
    """One call as text."""
    named = json.dumps(name, ensure_ascii=False)
    if format is CallFormat.HERMES:
        return f'<tool_call>\n{{"name": {named}, "arguments": {arguments}}}\n{ENDS}'
    if format is CallFormat.LLAMA:
        return f'{{"name": {named}, "parameters": {arguments}}}'
    if format is CallFormat.MISTRAL:
        return f'[TOOL_CALLS] [{{"name": {named}, "arguments": {arguments}}}]'
    return f"[TOOL_CALLS]{name}{ARGS}{arguments}"


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def grammar(
    tools: Tools, format: CallFormat, control: Callable[[str], int | None], answer: Grammar | None = None
) -> Grammar:
    """What a model may say that has tools: text until it begins to call, and from there on a call.

    Args:
        tools: that it has.
        format: of its calls.
        control: the id of the control token that a text is; None: it is ordinary text.
        answer: what an answer without a call has to look like; None: any text.

    Raises:
        UsageError: what an answer has to look like can be said only by a JSON schema where there are tools.
    """

    def literal(text: str) -> str:
        id = control(text)
        return json.dumps(text) if id is None else f"<[{id}]>"

    begins = literal(format.begins) if format is not CallFormat.LLAMA else ""
    named = [function for function in tools.functions if function["name"] in tools.allowed]
    rules = [f"call_{i}: {_call(format, function, literal)}" for i, function in enumerate(named)]
    rules += [
        f"call: {' | '.join(f'call_{i}' for i in range(len(named)))}",
        f"calls: {_calls(format, begins, parallel=tools.parallel)}",
    ]
    if tools.required:
        start = [f"start: {begins} calls"]
    elif answer is not None:
        start = [f"start: {begins} calls | answer", f"answer: {_inline(answer)}"]
    elif format is CallFormat.LLAMA:
        start = ["start: calls | TEXT", r"TEXT: /([^{](.|\n)*)?/"]
    elif control(format.begins) is not None:
        start = [f"start: TEXT ({begins} calls)?", r"TEXT: /(.|\n)*/"]
    else:  # a lazy lexeme ends where its text first stands, so that nothing but a call can follow it
        bare = [_bare(i, function) for i, function in enumerate(named)]
        also = "".join(f" | bare_{i}" for i in range(len(named)))
        start = [f"start: TEXT | until calls{also}", rf"until[lazy]: /(.|\n)*/ {begins}", r"TEXT: /(.|\n)*/", *bare]
    return Grammar("lark", "\n".join(["%llguidance {}", *start, *rules]) + "\n", closes=tools.required)


def _bare(number: int, function: Function) -> str:
    """A call without what calls begin with, at an answer's beginning, as Qwen's coders make them."""
    head = json.dumps(_head(CallFormat.HERMES, function["name"]))
    return f'bare_{number}: head_{number} {_arguments(function)} "}}"\nhead_{number}[lazy]: {head}'


def _call(format: CallFormat, function: Function, literal: Callable[[str], str]) -> str:
    """One call, behind what calls begin with."""
    arguments = _arguments(function)
    if format is CallFormat.MISTRAL_ARGS:
        return f"{json.dumps(function['name'])} {literal(ARGS)} {arguments}"
    head = _head(format, function["name"])
    if format is CallFormat.HERMES:
        return f"{json.dumps(chr(10) + head)} {arguments} {json.dumps('}' + chr(10))} {literal(ENDS)}"
    return f'{json.dumps(head)} {arguments} "}}"'


def _head(format: CallFormat, name: str) -> str:
    key = "parameters" if format is CallFormat.LLAMA else "arguments"
    return f'{{"name": {json.dumps(name)}, "{key}": '


def _arguments(function: Function) -> str:
    schema = {"type": "object", **(function.get("parameters") or {"properties": {}})}
    return f"%json {json.dumps(spaced(schema, lenient=not function.get('strict')))}"


def _calls(format: CallFormat, begins: str, *, parallel: bool) -> str:
    """One call, or several in one answer."""
    if format is CallFormat.MISTRAL:
        return '" "? "[" call (", " call)* "]"' if parallel else '" "? "[" call "]"'
    if parallel and format is CallFormat.HERMES:
        return f'call ("\\n" {begins} call)*'
    if parallel and format is CallFormat.MISTRAL_ARGS:
        return f"call ({begins} call)*"
    return "call"


def _inline(answer: Grammar) -> str:
    if answer.kind != "json":
        raise UsageError("with tools, what an answer has to look like can be said by a JSON schema only")
    return f"%json {answer.text}"
