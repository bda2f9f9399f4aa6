"""Chat templates: the Jinja text that a GGUF carries, rendered as Hugging Face's tokenizers do.

The system prompt of a chat can be a shared context. Where it ends is found by rendering, not by knowing templates: see
`system_prefix` and `after_system`.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from preread.engine.rendering import renderer
from preread.errors import UsageError

Message = dict[str, Any]
"""{"role": …, "content": …} as in OpenAI's API, content already text."""

_PLACEHOLDER = "\ue000 the shared context stands here \ue001"


class ChatTemplate:
    """A model's template, compiled once; `rendering.py` says where.

    Args:
        source: Jinja text.
        bos, eos: texts of these tokens.
        boundary: how many characters of a text lie up to the end of its last control token, 0 if it has none. Text
            after a control token is tokenised on its own, so only there may a context end.

    Raises:
        UsageError: the text is too long to be a template.
    """

    def __init__(self, source: str, bos: str, eos: str, boundary: Callable[[str], int]) -> None:
        self._renderer = renderer(source)
        self.bos, self.eos, self._boundary = bos, eos, boundary

    def render(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """The prompt for these messages; with `reply`, up to where the assistant's answer begins.

        Raises:
            UsageError: the template cannot be read, or refuses the messages, for example their order of roles.
        """
        variables = {
            "messages": list(messages),
            "add_generation_prompt": reply,
            "bos_token": self.bos,
            "eos_token": self.eos,
        }
        return self._renderer.render(variables)

    def close(self) -> None:
        """End what the template is rendered in."""
        self._renderer.close()

    def system_prefix(self, system: str) -> str:
        """What every chat with this system prompt begins with, up to where the first other message starts.

        Raises:
            UsageError: the template has no place for a system prompt of its own.
        """
        before, after = self._around_system
        return before + system + after

    def after_system(self, messages: Sequence[Message]) -> str:
        """What follows `system_prefix` when these messages, none of them the context's system prompt, are rendered."""
        _, after = self._around_system
        rendered = self.render([{"role": "system", "content": _PLACEHOLDER}, *messages])
        _, found, rest = rendered.partition(_PLACEHOLDER)
        if not found or not rest.startswith(after):
            raise UsageError("the model's chat template cannot put these messages after a shared system prompt")
        return rest[len(after) :]

    @cached_property
    def _around_system(self) -> tuple[str, str]:
        """Texts before and after a system prompt, as far as they do not depend on what comes next."""
        chats = ([{"role": "user", "content": content}] for content in ("a", "b"))
        system = {"role": "system", "content": _PLACEHOLDER}
        renders = [self.render([system, *chat], reply=False) for chat in chats]
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


def _common_prefix(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
