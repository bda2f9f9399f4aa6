"""The requests of Anthropic's messages API: a body becomes a chat. What goes back is in `forms/messages.py`.

Pure. What is said of caching (`cache_control`) is passed over: an edge reuses what it has, whoever says so.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from preread.edge.body import Common
from preread.edge.openai import BadRequest, Bounds, Call, decoded
from preread.edge.translated import chat_call, refuse_fields

_NAMES: Final = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
}
_REFUSED: Final = ("container", "mcp_servers", "context_management")
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


class Block(msgspec.Struct, frozen=True):
    """A part of a message: text, a use of a tool, what came of one, or what was thought."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None


class Said(msgspec.Struct, frozen=True):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may use."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(msgspec.Struct, frozen=True):
    """Whether a tool is to be used, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Format(msgspec.Struct, frozen=True):
    """Of an answer: JSON of a schema."""

    type: str
    schema: dict[str, Any] | None = None


class Output(msgspec.Struct, frozen=True):
    """How an answer is to be; `effort` is a hint that small models do not know."""

    format: Format | None = None
    effort: str | None = None


class Thinking(msgspec.Struct, frozen=True):
    """Whether to think before the answer."""

    type: str


class Messages(Common, frozen=True, kw_only=True):
    """POST /v1/messages. What a chat's body may have besides, this one may have too."""

    messages: Annotated[list[Said], Meta(min_length=1)]
    system: str | list[Block] | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=16)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    output_config: Output | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None


def read_messages(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /v1/messages; `seed` is for requests that bring none.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    request = decoded(body, Messages)
    if request.max_tokens is None:
        raise BadRequest("max_tokens is missing: of how many tokens the answer may be", "max_tokens")
    return _call(request, bounds, seed)


def read_counted(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /v1/messages/count_tokens, which is one for an answer of no tokens.

    Raises:
        BadRequest: as `read_messages` does.
    """
    return _call(msgspec.structs.replace(decoded(body, Messages), max_tokens=0), bounds, seed)


def _call(request: Messages, bounds: Bounds, seed: int) -> Call:
    refuse_fields(request, _REFUSED, "tools and their state are the client's")
    choice = request.tool_choice
    chat = {
        "messages": _messages(request),
        "stop": request.stop_sequences if request.stop is None else request.stop,
        "response_format": _format(request.output_config.format if request.output_config else None),
        "tools": None if request.tools is None else [_tool(tool, i) for i, tool in enumerate(request.tools)],
        "tool_choice": None if choice is None else _choice(choice),
        "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
        "chat_template_kwargs": request.chat_template_kwargs,
    }
    return chat_call(request, chat, _NAMES, bounds, seed)


def _format(format: Format | None) -> dict[str, Any] | None:
    """As a chat has it, where a schema has a name."""
    if format is None:
        return None
    return {"type": format.type, "json_schema": {"name": "answer", "schema": format.schema, "strict": True}}


def _tool(tool: Tool, number: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        at = f"tools[{number}].type"
        raise BadRequest(f"{at}: tools of yours can be used, not a server's: leave {tool.type[:80]!r} out", at)
    function = {"name": tool.name, "parameters": tool.input_schema or {"type": "object"}}
    given = {"description": tool.description, "strict": tool.strict}
    return {"type": "function", "function": function | {name: it for name, it in given.items() if it is not None}}


def _choice(choice: Choice) -> Any:
    return _CHOICES[choice.type] if choice.type != "tool" else {"type": "function", "function": {"name": choice.name}}


def _messages(request: Messages) -> list[dict[str, Any]]:
    """The conversation as a chat: what came of uses of tools are messages of their own, before the rest of theirs."""
    system = _text(_blocks(request.system), "system")
    said: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for i, message in enumerate(request.messages):
        at, blocks = f"messages[{i}].content", _blocks(message.content)
        if message.role == "assistant":
            said.append(_answered(blocks, at))
            continue
        results = [(j, block) for j, block in enumerate(blocks) if block.type == "tool_result"]
        for j, block in results:
            content = _text(_blocks(block.content), f"{at}[{j}].content")
            said.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": content})
        rest = [block for block in blocks if block.type != "tool_result"]
        if rest or not results:
            said.append({"role": message.role, "content": _text(rest, at)})
    return said


def _answered(blocks: list[Block], at: str) -> dict[str, Any]:
    """A message of the assistant: what it thought, what it said, which tools it used."""
    apart = "tool_use", "thinking", "redacted_thinking"
    message: dict[str, Any] = {"role": "assistant", "content": _text([b for b in blocks if b.type not in apart], at)}
    uses = [block for block in blocks if block.type == "tool_use"]
    if thought := "".join(block.thinking or "" for block in blocks if block.type == "thinking"):
        message["reasoning_content"] = thought
    if uses:
        message["tool_calls"] = [
            {"id": use.id, "type": "function", "function": {"name": use.name or "", "arguments": use.input or {}}}
            for use in uses
        ]
    return message


def _blocks(content: str | list[Block] | None) -> list[Block]:
    if isinstance(content, str):
        return [Block("text", text=content)] if content else []
    return content or []


def _text(blocks: list[Block], at: str) -> str:
    for block in blocks:
        if block.type != "text" or block.text is None:
            raise BadRequest(f"{at}: this model reads text, not {block.type[:80]}", at)
    return "\n".join(block.text or "" for block in blocks)
