"""How models of each family are told of tools, and what they may say then."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preread.engine.calls import CallFormat, Tools, format_of, grammar, preamble, retold
from preread.engine.chat import ChatTemplate
from preread.engine.grammar import Grammar, of_choice, of_schema
from preread.engine.llamacpp import LlamaCpp
from preread.engine.marks import Controls
from preread.errors import UsageError

FAN = {
    "name": "fan",
    "description": "Turn the fan.",
    "parameters": {
        "type": "object",
        "properties": {"speed": {"type": "integer"}},
        "required": ["speed"],
        "additionalProperties": False,
    },
    "strict": True,
}
LAMP = {"name": "lamp", "description": "", "parameters": {"type": "object", "properties": {}}, "strict": None}
BOTH = Tools((FAN, LAMP), ("fan", "lamp"))
SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": {"name": "fan", "arguments": {"speed": 2}}}],
}
RESULT = {"role": "tool", "name": "fan", "tool_call_id": "a1b2c3d4e", "content": "done"}

PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
WITHIN = """{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}
{%- if loop.first and tools %}\n# Tools{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n<tool_call>{% endif %}
{%- for call in m.tool_calls or [] %}CALL {{ call.function.name }} {{ call.function.arguments }}{% endfor %}<|im_end|>
{% endfor %}"""
BEHIND = """{% for m in messages %}
{%- if tools and m.role == "user" %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[{{ m.role }}]{{ m.content }}
{%- for call in m.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}{% endfor %}</s>{% endfor %}"""


def template(source: str) -> ChatTemplate:
    controls = ("<|im_end|>", "<|im_start|>", "</s>")

    def boundary(text: str) -> int:
        return max((text.rfind(end) + len(end) for end in controls if end in text), default=0)

    return ChatTemplate(source, "", "", Controls(controls), boundary)


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (WITHIN, CallFormat.HERMES),
        (PLAIN, CallFormat.HERMES),
        (BEHIND, CallFormat.MISTRAL),
        ("{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}", CallFormat.MISTRAL_ARGS),
        ('{{ "Environment: ipython" }}', CallFormat.LLAMA),
        ("<|python_tag|>", CallFormat.LLAMA),
    ],
)
def test_a_templates_text_shows_the_form_of_calls(source: str, form: CallFormat) -> None:
    assert format_of(source) is form


def test_a_template_that_knows_tools_is_given_them() -> None:
    with closing(template(WITHIN)) as chat:
        prompt = chat.render([SYSTEM, USER, CALLED, RESULT], {"tools": BOTH.for_template}).text
    assert prompt.count("Turn the fan.") == 1 and "You can call" not in prompt
    assert 'CALL fan {"speed": 2}' in prompt and "<|im_start|>tool\ndone" in prompt and "strict" not in prompt


def test_to_a_template_that_does_not_they_are_told_as_text() -> None:
    with closing(template(PLAIN)) as chat:
        prompt = chat.render([SYSTEM, USER, CALLED, RESULT, RESULT], {"tools": BOTH.for_template}).text
        alone = chat.render([USER], {"tools": BOTH.for_template}).text
    text = preamble(BOTH.for_template, CallFormat.HERMES)
    assert prompt.startswith(f"<|im_start|>system\nS\n\n{text}<|im_end|>") and '"Turn the fan."' in text
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "fan", "arguments": {"speed": 2}}\n</tool_call><|im_end|>'
        in prompt
    )
    results = "<tool_response>\ndone\n</tool_response>"
    assert prompt.endswith(f"<|im_start|>user\n{results}\n{results}<|im_end|>\n"), "one message for all"
    assert alone == f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"


def test_messages_without_calls_are_left_as_they_are() -> None:
    assert retold([SYSTEM, USER], CallFormat.LLAMA) == [SYSTEM, USER]
    (said,) = retold([CALLED | {"content": "Now."}], CallFormat.LLAMA)
    assert said == {"role": "assistant", "content": 'Now.\n{"name": "fan", "parameters": {"speed": 2}}'}


def test_tools_within_a_shared_system_prompt_come_instead_of_its_end() -> None:
    with closing(template(WITHIN)) as chat:
        following = chat.following([USER], {"tools": BOTH.for_template})
        whole = chat.render([SYSTEM, USER], {"tools": BOTH.for_template}).text
        prefix = chat.system_prefix("S").text
        plain, after = chat.following([USER]), chat.after_system([USER])
    assert following.instead == "<|im_end|>\n<|im_start|>"
    assert prefix.removesuffix(following.instead) + following.prompt.text == whole
    assert plain.instead == "" and plain.prompt == after


def test_tools_that_may_not_stand_there_have_a_message_of_their_own() -> None:
    with closing(template(WITHIN)) as chat:
        following = chat.following([USER], {"tools": BOTH.for_template}, within=False)
    told = preamble(BOTH.for_template, CallFormat.HERMES)
    assert following.prompt.text == f"system\n{told}<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    assert following.instead == ""


def test_tools_behind_a_shared_system_prompt_are_no_matter() -> None:
    with closing(template(BEHIND)) as chat:
        following = chat.following([USER], {"tools": BOTH.for_template})
        whole = chat.render([SYSTEM, USER], {"tools": BOTH.for_template}).text
    assert following.instead == "" and whole.endswith(following.prompt.text) and "[TOOLS]" in following.prompt.text


# What may be said


@pytest.fixture(scope="module")
def fits(tiny_model: Path) -> Iterator[Callable[..., bool]]:
    """Whether a model that has tools may say a text, and end there."""
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, threads=1)) as engine:

        def fits(text: str, form: CallFormat, answer: Grammar | None = None, **choice: Any) -> bool:
            bound = grammar(Tools((FAN, LAMP), **{"allowed": ("fan", "lamp"), **choice}), form, engine.control, answer)
            constraint = engine.grammars.constraint(bound)
            for token in engine.tokenize(text, special=False).tolist():
                if token not in constraint.allowed():
                    return False
                constraint.take(token)
            return constraint.complete or bool(np.isin(constraint.allowed(), engine._loaded.ends).any())

        yield fits


def said(form: CallFormat, name: str, arguments: dict[str, Any]) -> str:
    call = {"function": {"name": name, "arguments": arguments}}
    (message,) = retold([{"role": "assistant", "content": "", "tool_calls": [call]}], form)
    return str(message["content"])


@pytest.mark.parametrize("form", CallFormat)
def test_a_call_has_its_form_and_its_schema(fits: Callable[..., bool], form: CallFormat) -> None:
    good, other = said(form, "fan", {"speed": 3}), said(form, "lamp", {})
    wrong = [said(form, "fan", {"speed": "x"}), said(form, "fan", {}), said(form, "fan", {"speed": 1, "more": 2})]
    for required in (False, True):
        assert fits(good, form, required=required) and fits(other, form, required=required)
        assert not any(fits(text, form, required=required) for text in wrong)
        assert not fits(said(form, "door", {}), form, required=required)
        assert not fits(other, form, allowed=("fan",), required=required)
        assert fits("No tool is needed.", form, required=required) is not required
    assert not fits("", form, required=True) and not fits(good + "\nmore", form, required=True)


def test_text_may_come_before_a_call_but_what_begins_as_one_is_one(fits: Callable[..., bool]) -> None:
    good = said(CallFormat.HERMES, "fan", {"speed": 3})
    assert fits("Let me see.\n" + good, CallFormat.HERMES) and fits("a < b", CallFormat.HERMES)
    assert not fits("Let me see.\n<tool_call>what", CallFormat.HERMES)
    bare = good.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert fits(bare, CallFormat.HERMES), "as Qwen's coders do"
    assert not fits(bare.replace("3", '"x"'), CallFormat.HERMES)


def test_several_calls_where_they_are_wanted(fits: Callable[..., bool]) -> None:
    for form, between in ((CallFormat.HERMES, "\n"), (CallFormat.MISTRAL_ARGS, "")):
        two = said(form, "fan", {"speed": 3}) + between + said(form, "lamp", {})
        assert fits(two, form, parallel=True) and not fits(two, form)
    two = (
        said(CallFormat.MISTRAL, "fan", {"speed": 3})[:-1]
        + ", "
        + said(CallFormat.MISTRAL, "lamp", {})[len("[TOOL_CALLS] [") :]
    )
    assert fits(two, CallFormat.MISTRAL, parallel=True) and not fits(two, CallFormat.MISTRAL)


def test_an_answer_without_a_call_may_have_a_form_too(fits: Callable[..., bool]) -> None:
    whole = of_schema({"type": "integer"}, lenient=False)
    assert fits("3", CallFormat.HERMES, whole) and fits(said(CallFormat.HERMES, "lamp", {}), CallFormat.HERMES, whole)
    assert not fits("three", CallFormat.HERMES, whole)
    with pytest.raises(UsageError, match="JSON schema only"):
        fits("a", CallFormat.HERMES, of_choice(["a"]))


def test_control_tokens_of_a_form_are_that_and_no_text() -> None:
    text = grammar(BOTH, CallFormat.MISTRAL, {"[TOOL_CALLS]": 5}.get).text
    assert "<[5]>" in text and "[TOOL_CALLS]" not in text
    assert json.dumps("[TOOL_CALLS]")[1:-1] in grammar(BOTH, CallFormat.MISTRAL, lambda _: None).text
