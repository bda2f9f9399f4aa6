"""The requests of OpenAI's responses API: a body becomes a chat. What goes back is in `forms/responses.py`.

Pure. Nothing is stored: who asks brings the whole conversation, as with Ollama and vLLM without a store.
"""

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from preread.edge.body import Common
from preread.edge.openai import BadRequest, Bounds, Call, decoded
from preread.edge.translated import chat_call, refuse_fields

_ODDS: Final = "message.output_text.logprobs"
_NAMES: Final = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}
_REFUSED: Final = ("previous_response_id", "conversation", "prompt", "background", "context_management", "moderation")
_TEXTS: Final = ("input_text", "output_text", "text")


class Content(msgspec.Struct, frozen=True):
    """A part of a message, of a reasoning, or of what a tool gave."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, frozen=True):
    """Something that was said: a message (which need not say so), a call of a function, what that gave, a reasoning."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Content] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Content] | None = None
    summary: list[Content] | None = None


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Allowed(msgspec.Struct, frozen=True):
    """Which tool is to be called: one of this name, or of those named, if any has to be (`mode`)."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = []


class TextFormat(msgspec.Struct, frozen=True):
    """Of an answer: text, any JSON, or JSON of a schema."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class Text(msgspec.Struct, frozen=True):
    """How an answer is to be; `verbosity` is a hint that small models do not know."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Response(Common, frozen=True, kw_only=True):
    """POST /v1/responses. What a chat's body may have besides, this one may have too."""

    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=0)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    text: Text | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | Allowed | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None
    context_management: Any = None
    moderation: Any = None


def read_response(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /v1/responses; `seed` is for requests that bring none.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    request = decoded(body, Response)
    refuse_fields(request, _REFUSED, "nothing is stored; send the whole conversation as input")
    if request.truncation == "auto":
        raise BadRequest("nothing is left out here: what is too long is refused, so leave truncation out", "truncation")
    wants_odds = request.top_logprobs or _ODDS in (request.include or ())
    odds = (request.top_logprobs or 0) if wants_odds else None
    tools, choice = _tools(request), request.tool_choice
    if isinstance(choice, Allowed) and choice.type == "allowed_tools":
        allowed = {tool.get("name") for tool in choice.tools}
        tools = [tool for tool in tools or () if tool["function"]["name"] in allowed]
    chat = {
        "messages": _messages(request),
        "max_completion_tokens": request.max_output_tokens,
        "logprobs": None if odds is None else True,
        "top_logprobs": odds,
        "response_format": _format(request.text.format if request.text else None),
        "tools": tools or None,
        "tool_choice": _choice(choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "chat_template_kwargs": request.chat_template_kwargs,
    }
    return replace(chat_call(request, chat, _NAMES, bounds, seed), told=_told(request))


def _told(request: Response) -> dict[str, Any]:
    """What the answer repeats."""
    usual: dict[str, Any] = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "tools": [],
        "tool_choice": "auto",
        "top_logprobs": 0,
    }
    given = {name: value for name in usual if (value := getattr(request, name)) is not None}
    format = TextFormat("text") if request.text is None or request.text.format is None else request.text.format
    always = {"text": {"format": _bare(format)}, "parallel_tool_calls": request.parallel_tool_calls is not False}
    return dict(msgspec.to_builtins(usual | given | always))


def _bare(told: Tool | TextFormat) -> dict[str, Any]:
    """The fields that it has."""
    return {name: value for name, value in msgspec.structs.asdict(told).items() if value is not None}


def _format(format: TextFormat | None) -> dict[str, Any] | None:
    """As a chat has it, which puts a schema's name and itself into a field of its own."""
    if format is None or format.type != "json_schema":
        return None if format is None else {"type": format.type}
    fields = _bare(format)
    return {"type": fields.pop("type"), "json_schema": fields}


def _tools(request: Response) -> list[dict[str, Any]] | None:
    if request.tools is None:
        return None
    tools = []
    for i, tool in enumerate(request.tools):
        if tool.type != "function" or not tool.name:
            raise BadRequest(
                f"tools[{i}]: functions of yours can be called, not tools of a server: leave {tool.type[:80]!r} out",
                f"tools[{i}].type",
            )
        function = _bare(tool)
        tools.append({"type": function.pop("type"), "function": function})
    return tools


def _choice(choice: str | Allowed | None) -> Any:
    if not isinstance(choice, Allowed):
        return choice
    if choice.type == "allowed_tools":
        return choice.mode
    if choice.type != "function":
        raise BadRequest("tool_choice: only functions can be called", "tool_choice.type")
    return {"type": "function", "function": {"name": choice.name}}


def _messages(request: Response) -> list[dict[str, Any]]:
    """The conversation as a chat. Calls of functions, and what was thought before them, are the assistant's message."""
    said: list[dict[str, Any]] = []
    if request.instructions:
        said.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*said, {"role": "user", "content": request.input}]
    thought = ""
    for i, item in enumerate(request.input):
        at, last = f"input[{i}]", said[-1] if said else None
        if item.type == "reasoning":
            thought += "".join(part.text or "" for part in _parts(item.content) or item.summary or ())
            continue
        if item.type == "function_call" and last is not None and last["role"] == "assistant" and not thought:
            last["tool_calls"] = [*last.get("tool_calls", ()), _called(item)]
            continue
        message = _message(item, at)
        if thought and message["role"] == "assistant":
            message["reasoning_content"], thought = thought, ""
        said.append(message)
    return said


def _message(item: Item, at: str) -> dict[str, Any]:
    """An item as a message of its own."""
    if item.type in (None, "message") and item.role is not None:
        return {"role": item.role, "content": _text(item.content, f"{at}.content")}
    if item.type == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_called(item)]}
    if item.type == "function_call_output":
        return {"role": "tool", "tool_call_id": item.call_id or "", "content": _text(item.output, f"{at}.output")}
    kind = item.type or "an item without type and role"
    raise BadRequest(f"{at}: {kind[:80]} cannot be read: messages and calls of functions can", f"{at}.type")


def _called(item: Item) -> dict[str, Any]:
    function = {"name": item.name or "", "arguments": item.arguments or ""}
    return {"id": item.call_id, "type": "function", "function": function}


def _parts(content: str | list[Content] | None) -> list[Content]:
    return [Content("text", content)] if isinstance(content, str) else content or []


def _text(content: str | list[Content] | None, at: str) -> str | list[dict[str, str]]:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*_TEXTS, "refusal") or text is None:
            raise BadRequest(f"{at}[{i}]: this model reads text, not {part.type[:80]}", f"{at}[{i}]")
        texts.append({"type": "text", "text": text})
    return texts
