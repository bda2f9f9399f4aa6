"""How models call tools: which form theirs has, how they are told what there is, and the grammar of what they may say.

Each family was taught a form of its own:

    Hermes, Qwen    <tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>
    Llama 3         {"name": …, "parameters": {…}}
    Mistral         [TOOL_CALLS] [{"name": …, "arguments": {…}}], or since 2025 [TOOL_CALLS]name[ARGS]{…}

Which one it is shows in the chat template. A model whose template knows nothing of tools is told about them in its
system prompt, in Hermes's form. What it says is bound to the form from where it begins to call, and arguments to their
schema.

Pure. `edge/calls.py` reads what comes out.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from preread.engine.grammar import Grammar, spaced
from preread.errors import UsageError

Message = dict[str, Any]
Function = dict[str, Any]


class Form(Enum):
    """How a model calls tools: the text that a call begins with."""

    HERMES = "<tool_call>"
    LLAMA = "{"
    MISTRAL = "[TOOL_CALLS]"
    MISTRAL_ARGS = "[TOOL_CALLS] "  # the same text; enumerations tell their members apart by value

    @property
    def begins(self) -> str:
        """The text that a call begins with."""
        return self.value.strip()

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts of calls that are control tokens in some vocabularies."""
        return (self.begins, ARGS, ENDS)


ENDS: Final = "</tool_call>"
"""Behind a call, in Hermes's form."""

ARGS: Final = "[ARGS]"
"""Between a function's name and its arguments, in Mistral's newer form."""


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


def form_of(template: str) -> Form:
    """The form that a chat template has for calls; Hermes's where it has none."""
    if "<tool_call>" in template:
        return Form.HERMES
    if ARGS in template:
        return Form.MISTRAL_ARGS
    if "[TOOL_CALLS]" in template:
        return Form.MISTRAL
    if "<|python_tag|>" in template or "ipython" in template:
        return Form.LLAMA
    return Form.HERMES


def preamble(functions: Sequence[dict[str, Any]], form: Form) -> str:
    """What tells a model about tools whose template does not, `functions` as in `Tools.for_template`."""
    listed = "\n".join(json.dumps(each, ensure_ascii=False) for each in functions)
    example = _text(form, "NAME", '{"ARGUMENT": VALUE}')
    return f"You can call these functions, described in JSON:\n{listed}\nTo call one, answer only:\n{example}"


def retold(messages: Sequence[Message], form: Form) -> list[Message]:
    """Messages without fields for calls: a call is the assistant's text, its result the user's."""
    chat: list[Message] = []
    for message in messages:
        plain = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
        if message["role"] == "tool":
            plain = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
            if chat and chat[-1].get("tool_result"):
                chat[-1] = chat[-1] | {"content": f"{chat[-1]['content']}\n{plain['content']}"}
                continue
            plain["tool_result"] = True
        elif calls := message.get("tool_calls"):
            said = (_text(form, call["function"]["name"], _json(call["function"]["arguments"])) for call in calls)
            plain["content"] = "\n".join([*([plain["content"]] if plain["content"] else []), *said])
        chat.append(plain)
    return [{key: value for key, value in message.items() if key != "tool_result"} for message in chat]


def _text(form: Form, name: str, arguments: str) -> str:
    """One call as text."""
    named = json.dumps(name, ensure_ascii=False)
    if form is Form.HERMES:
        return f'<tool_call>\n{{"name": {named}, "arguments": {arguments}}}\n{ENDS}'
    if form is Form.LLAMA:
        return f'{{"name": {named}, "parameters": {arguments}}}'
    if form is Form.MISTRAL:
        return f'[TOOL_CALLS] [{{"name": {named}, "arguments": {arguments}}}]'
    return f"[TOOL_CALLS]{name}{ARGS}{arguments}"


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def grammar(tools: Tools, form: Form, control: Callable[[str], int | None], answer: Grammar | None = None) -> Grammar:
    """What a model may say that has tools: text until it begins to call, and from there on a call.

    Args:
        tools: that it has.
        form: of its calls.
        control: the id of the control token that a text is; None: it is ordinary text.
        answer: what an answer without a call has to look like; None: any text.

    Raises:
        UsageError: what an answer has to look like can be said only by a JSON schema where there are tools.
    """

    def literal(text: str) -> str:
        id = control(text)
        return json.dumps(text) if id is None else f"<[{id}]>"

    begins = literal(form.begins) if form is not Form.LLAMA else ""
    named = [function for function in tools.functions if function["name"] in tools.allowed]
    rules = [f"call_{i}: {_call(form, function, literal)}" for i, function in enumerate(named)]
    rules += [f"call: {' | '.join(f'call_{i}' for i in range(len(named)))}", f"calls: {_calls(form, tools, begins)}"]
    if tools.required:
        start = [f"start: {begins} calls"]
    elif answer is not None:
        start = [f"start: {begins} calls | answer", f"answer: {_inline(answer)}"]
    elif form is Form.LLAMA:
        start = ["start: calls | TEXT", r"TEXT: /([^{](.|\n)*)?/"]
    elif control(form.begins) is not None:
        start = [f"start: TEXT ({begins} calls)?", r"TEXT: /(.|\n)*/"]
    else:  # a lazy lexeme ends where its text first stands, so that nothing but a call can follow it
        bare = [_bare(i, function) for i, function in enumerate(named)]
        also = "".join(f" | bare_{i}" for i in range(len(named)))
        start = [f"start: TEXT | until calls{also}", rf"until[lazy]: /(.|\n)*/ {begins}", r"TEXT: /(.|\n)*/", *bare]
    return Grammar("lark", "\n".join(["%llguidance {}", *start, *rules]) + "\n", closes=tools.required)


def _bare(number: int, function: Function) -> str:
    """A call without what calls begin with, at an answer's beginning, as Qwen's coders make them."""
    head = json.dumps(_head(Form.HERMES, function["name"]))
    return f'bare_{number}: head_{number} {_arguments(function)} "}}"\nhead_{number}[lazy]: {head}'


def _call(form: Form, function: Function, literal: Callable[[str], str]) -> str:
    """One call, behind what calls begin with."""
    arguments = _arguments(function)
    if form is Form.MISTRAL_ARGS:
        return f"{json.dumps(function['name'])} {literal(ARGS)} {arguments}"
    head = _head(form, function["name"])
    if form is Form.HERMES:
        return f"{json.dumps(chr(10) + head)} {arguments} {json.dumps('}' + chr(10))} {literal(ENDS)}"
    return f'{json.dumps(head)} {arguments} "}}"'


def _head(form: Form, name: str) -> str:
    key = "parameters" if form is Form.LLAMA else "arguments"
    return f'{{"name": {json.dumps(name)}, "{key}": '


def _arguments(function: Function) -> str:
    schema = {"type": "object", **(function.get("parameters") or {"properties": {}})}
    return f"%json {json.dumps(spaced(schema, lenient=not function.get('strict')))}"


def _calls(form: Form, tools: Tools, begins: str) -> str:
    """One call, or several in one answer."""
    further = tools.parallel
    if form is Form.HERMES:
        return f'call ("\\n" {begins} call)*' if further else "call"
    if form is Form.MISTRAL:
        return '" "? "[" call (", " call)* "]"' if further else '" "? "[" call "]"'
    if form is Form.MISTRAL_ARGS:
        return f"call ({begins} call)*" if further else "call"
    return "call"


def _inline(answer: Grammar) -> str:
    if answer.kind != "json":
        raise UsageError("with tools, what an answer has to look like can be said by a JSON schema only")
    return f"%json {answer.text}"
