"""Chat templates: the Jinja text that a GGUF carries, rendered as Hugging Face's tokenizers do.

Where a template has no system prompt, or refuses two messages of one role in a row, the messages are first brought into
a form that it takes, as llama-server does with system prompts.

Where it knows nothing of tools, they and their calls are told as text (`calls.py`).

The system prompt of a chat can be a shared context. Where it ends is found by rendering, not by knowing templates: see
`system_prefix` and `after_system`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from preread.engine.calls import CallFormat, format_of, preamble, retold
from preread.engine.marks import Controls, Prompt
from preread.engine.rendering import renderer
from preread.errors import UsageError

Message = dict[str, Any]
"""{"role": …, "content": …} as in OpenAI's API, content already text, a tool call's arguments already an object."""

_PLACEHOLDER: Final = "\ue000 the shared context stands here \ue001"
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_PROBE: Final = "preread_probe"
_TOOL: Final = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {"type": "object"}}}
_CALLED: Final[list[Message]] = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": {"name": _PROBE, "arguments": {}}}],
    },
    {"role": "tool", "name": _PROBE, "tool_call_id": "a1b2c3d4e", "content": _PLACEHOLDER},
]


@dataclass(frozen=True, slots=True)
class Following:
    """What follows a shared system prompt.

    Attributes:
        prompt: the rendered rest.
        instead: a text at the system prompt's end that the rest comes instead of: tools stand within the system prompt.
    """

    prompt: Prompt
    instead: str = ""


class ChatTemplate:
    """A model's template, compiled once; `rendering.py` says where.

    Args:
        source: Jinja text.
        bos, eos: texts of these tokens.
        controls: all control tokens; none of them is read in contents.
        boundary: how many characters of a text lie up to the end of its last control token, 0 if it has none. Text
            after a control token is tokenised on its own, so only there may a context end.

    Raises:
        UsageError: the text is too long to be a template.
    """

    def __init__(self, source: str, bos: str, eos: str, controls: Controls, boundary: Callable[[str], int]) -> None:
        self._renderer = renderer(source)
        self._source, self.bos, self.eos = source, bos, eos
        self.controls, self._boundary = controls, boundary

    def render(self, messages: Sequence[Message], more: Mapping[str, Any] = _NOTHING, *, reply: bool = True) -> Prompt:
        """The prompt for these messages; with `reply`, up to where the assistant's answer begins.

        Args:
            messages: of the chat.
            more: further variables for the template, for example `enable_thinking`, or `tools` as `Tools.for_template`.
            reply: whether an answer is to follow.

        Raises:
            UsageError: the template cannot be read, or refuses the messages, for example their order of roles.
        """
        messages, more = self._told(messages, more)
        mark = self.controls.mark_for(self._source, list(messages), dict(more))
        chat = self.controls.marked(list(messages), mark)
        if any(message["role"] == "system" for message in chat) and not self._has_system:
            chat = _folded(chat)
        variables = self.controls.marked(dict(more), mark)
        try:
            return Prompt(self._rendered(chat, variables, reply), mark)
        except UsageError:
            merged = _merged(chat)
            if len(merged) == len(chat):
                raise
            return Prompt(self._rendered(merged, variables, reply), mark)

    def close(self) -> None:
        """End what the template is rendered in."""
        self._renderer.close()

    def system_prefix(self, system: str) -> Prompt:
        """What every chat with this system prompt begins with, up to where the first other message starts.

        Raises:
            UsageError: the template has no place for a system prompt of its own.
        """
        before, after = self._around_system
        mark = self.controls.mark_for(self._source, system)
        return Prompt(before + str(self.controls.marked(system, mark)) + after, mark)

    def after_system(self, messages: Sequence[Message], more: Mapping[str, Any] = _NOTHING) -> Prompt:
        """What follows `system_prefix` when these messages, none of them the context's system prompt, are rendered.

        Raises:
            UsageError: as `following` does.
        """
        return self.following(messages, more).prompt

    def following(
        self, messages: Sequence[Message], more: Mapping[str, Any] = _NOTHING, *, within: bool = True
    ) -> Following:
        """The same with tools among the variables.

        Tools stand where the template has them, which may be within the system prompt, or in a message of their own.

        Args:
            messages: of the chat.
            more: as for `render`.
            within: whether tools may stand within the system prompt.

        Raises:
            UsageError: as `render` does; the template, given these messages or `more`, does not begin so.
        """
        before, after = self._around_system
        prompt = self.render([{"role": "system", "content": _PLACEHOLDER}, *messages], more)
        begun, tools = before + _PLACEHOLDER, more.get("tools")
        if prompt.text.startswith(begun + after):
            return Following(Prompt(prompt.text[len(begun + after) :], prompt.mark))
        if tools and within and prompt.text.startswith(begun):
            return Following(Prompt(prompt.text[len(begun) :], prompt.mark), instead=after)
        if tools:
            told = {"role": "system", "content": preamble(tools, self.call_format)}
            return self.following([told, *messages], {**more, "tools": None})
        raise UsageError("the model's chat template cannot put these messages after a shared system prompt")

    @cached_property
    def call_format(self) -> CallFormat:
        """How the model calls tools."""
        return format_of(self._source)

    def _told(
        self, messages: Sequence[Message], more: Mapping[str, Any]
    ) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """Messages and variables with tools and calls as text, where the template does not know these."""
        if any(message["role"] == "tool" or message.get("tool_calls") for message in messages) and not self._has_calls:
            messages = retold(messages, self.call_format)
        tools = more.get("tools")
        if not tools or self._has_tools:
            return messages, more
        text, more = preamble(tools, self.call_format), {**more, "tools": None}
        if messages and messages[0]["role"] == "system":
            first = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}
            return [first, *messages[1:]], more
        return [{"role": "system", "content": text}, *messages], more

    def _rendered(self, messages: Sequence[Message], more: Mapping[str, Any], reply: bool) -> str:
        variables = {
            "tools": None,
            "documents": None,
            **more,
            "messages": list(messages),
            "add_generation_prompt": reply,
            "bos_token": self.bos,
            "eos_token": self.eos,
        }
        return self._renderer.render(variables)

    @cached_property
    def _has_system(self) -> bool:
        """Whether what a system message says gets into the prompt."""
        chat = [{"role": "system", "content": _PLACEHOLDER}, {"role": "user", "content": "a"}]
        return self._shows(chat, _NOTHING, _PLACEHOLDER)

    @cached_property
    def _has_tools(self) -> bool:
        """Whether tools get into the prompt."""
        return self._shows(_CALLED[:1], {"tools": [_TOOL]}, _PROBE)

    @cached_property
    def _has_calls(self) -> bool:
        """Whether calls and their results do."""
        return self._shows(_CALLED[:2], _NOTHING, _PROBE) and self._shows(_CALLED, _NOTHING, _PLACEHOLDER)

    def _shows(self, chat: Sequence[Message], variables: Mapping[str, Any], text: str) -> bool:
        try:
            return text in self._rendered(chat, variables, False)
        except UsageError:
            return False

    @cached_property
    def _around_system(self) -> tuple[str, str]:
        """Texts before and after a system prompt, as far as they do not depend on what comes next."""
        chats = ([{"role": "user", "content": content}] for content in ("a", "b"))
        system = {"role": "system", "content": _PLACEHOLDER}
        renders = [self._rendered([system, *chat], _NOTHING, False) for chat in chats] if self._has_system else [""]
        if any(render.count(_PLACEHOLDER) != 1 for render in renders):
            raise UsageError("the model's chat template has no system prompt: publish the context as text (--as text)")
        before, rest = renders[0].split(_PLACEHOLDER)
        common = _common_prefix(rest, renders[1].split(_PLACEHOLDER)[1])
        end = self._boundary(common)
        if not end:
            raise UsageError(
                "the model's chat template does not mark the end of a system prompt: publish as text (--as text)"
            )
        return before, common[:end]


def _folded(messages: Sequence[Message]) -> list[Message]:
    """Each system message put before the user's message that follows it; one that none follows becomes one."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in [*messages, {"role": "end"}]:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user":
            folded.append(message | {"content": "\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            if waiting:
                folded.append({"role": "user", "content": "\n".join(waiting)})
                waiting = []
            folded.append(message)
    return folded[:-1]


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Messages of plain text that follow one of the same role become one with it, a blank line between them."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if message["role"] == last.get("role") and message.keys() == last.keys() == {"role", "content"}:
            merged[-1] = last | {"content": f"{last['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _common_prefix(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
