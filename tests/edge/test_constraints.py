"""What requests say of their answers' form, in the words of OpenAI, llama-server and vLLM."""

import json
from typing import Any

import msgspec
import pytest

from preread.edge.openai import BadRequest, Bounds, Call, read_chat, read_completion
from preread.engine.calls import Tools
from preread.engine.grammar import Grammar, of_choice, of_schema

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LENIENT, STRICT = of_schema(SCHEMA, lenient=True), of_schema(SCHEMA, lenient=False)
FAN = {"name": "fan", "description": "Turn the fan.", "parameters": SCHEMA}
LAMP = {"name": "lamp"}


def chat(**fields: Any) -> Call:
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    return read_chat(msgspec.json.encode(body), Bounds(512, 1000, 64), 1)


def completion(**fields: Any) -> Call:
    return read_completion(msgspec.json.encode({"prompt": "Hi", **fields}), Bounds(512, 1000, 64), 1)


def told(*functions: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": function} for function in functions]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, of_schema({"type": "object"}, lenient=True)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, LENIENT),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, LENIENT),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}}, STRICT),
        ({"json_schema": SCHEMA}, LENIENT),
        ({"json_schema": {}}, of_schema({}, lenient=True)),
        ({"grammar": 'root ::= "a"'}, Grammar("gbnf", 'root ::= "a"')),
        ({"grammar": ""}, None),
        ({"structured_outputs": {"json": SCHEMA}}, LENIENT),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, LENIENT),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, of_choice(["a", "b"])),
        ({"structured_outputs": {"grammar": "start: /a/"}}, Grammar("any", "start: /a/")),
        ({"structured_outputs": {"json_object": True}}, of_schema({"type": "object"}, lenient=True)),
        ({"structured_outputs": {"choice": ["a"], "disable_any_whitespace": True}}, of_choice(["a"])),
        ({"structured_outputs": None}, None),
        ({"guided_json": SCHEMA}, LENIENT),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"guided_choice": ["a", "b"]}, of_choice(["a", "b"])),
        ({"guided_grammar": "start: /a/"}, Grammar("any", "start: /a/")),
    ],
)
def test_a_grammar_is_what_a_field_says(fields: dict[str, Any], wanted: Grammar | None) -> None:
    for make in (chat, completion):
        assert make(**fields).asks[0].sampling.grammar == wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"json_schema": SCHEMA, "grammar": "x"}, "json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_choice": ["a"]}, "guided"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_json": "["}, "guided_json"),
        ({"guided_json": "3"}, "guided_json"),
        ({"structured_outputs": {"structural_tag": {"a": 1}}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"grammar": 5}, "grammar"),
        ({"guided_choice": ["a"] * 2000}, "guided_choice"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    for make in (chat, completion):
        with pytest.raises(BadRequest) as refusal:
            make(**fields)
        assert refusal.value.param == param and str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "allowed", "required", "parallel"),
    [
        ({}, ("fan", "lamp"), False, False),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, ("fan", "lamp"), False, True),
        ({"tool_choice": "required"}, ("fan", "lamp"), True, False),
        ({"tool_choice": {"type": "function", "function": {"name": "lamp"}}}, ("lamp",), True, False),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": told(LAMP)}}},
            ("lamp",),
            True,
            False,
        ),
    ],
)
def test_which_tools_may_be_called(
    fields: dict[str, Any], allowed: tuple[str, ...], required: bool, parallel: bool
) -> None:
    found = chat(tools=told(FAN, LAMP), **fields).asks[0].tools
    assert isinstance(found, Tools)
    assert (found.allowed, found.required, found.parallel) == (allowed, required, parallel)
    assert found.for_template[0] == {"type": "function", "function": FAN}
    assert found.functions[1]["parameters"] == {"type": "object", "properties": {}}


def test_tools_that_must_not_be_called_are_not_told() -> None:
    assert chat(tools=told(FAN), tool_choice="none").asks[0].tools is None
    assert chat(tools=[]).asks[0].tools is None and chat(tool_choice="auto").asks[0].tools is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": told(FAN, FAN)}, "tools"),
        ({"tools": told({"name": "no blanks"})}, "tools[0].function.name"),
        ({"tools": told({"name": "f", "parameters": {"type": "string"}})}, "tools[0].function.parameters"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": told(FAN), "tool_choice": {"type": "function", "function": {"name": "lamp"}}}, "tool_choice"),
        ({"tools": told(FAN), "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": told(FAN), "tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [FAN]}, "functions"),
        ({"tools": told(FAN) * 300}, "tools"),
    ],
)
def test_tools_that_cannot_be(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        chat(**fields)
    assert refusal.value.param == param
