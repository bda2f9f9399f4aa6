"""Tools and answers of a form, over real HTTP with a real model and OpenAI's own client."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx2
import numpy as np
import openai
import pytest
from pydantic import BaseModel

from preread.engine.grammar import Constraint

QUESTION = [{"role": "user", "content": "What is the code of the pump?"}]
CODE = {
    "type": "function",
    "function": {
        "name": "set_code",
        "description": "Give a part another code.",
        "parameters": {
            "type": "object",
            "properties": {"part": {"enum": ["pump", "fan"]}, "code": {"type": "integer"}},
            "required": ["part", "code"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
PRESS = {"type": "function", "function": {"name": "press"}}


class Part(BaseModel):
    name: str
    code: int
    state: Literal["on", "off"]


@pytest.fixture(scope="module")
def client(edge: Any) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    standard = {"model": "preread", "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    return client.chat.completions.create(**{**standard, **fields})


def valid(arguments: str) -> bool:
    told = json.loads(arguments)
    return set(told) == {"part", "code"} and told["part"] in ("pump", "fan") and isinstance(told["code"], int)


def test_a_tool_that_has_to_be_called_is_called_as_its_schema_wants(client: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "set_code"}}):
        answer = ask(client, tools=[CODE, PRESS] if choice != "required" else [CODE], tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls
        assert call.type == "function" and call.function.name == "set_code" and valid(call.function.arguments)
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
        assert answer.usage.completion_tokens == answer.timings["predicted_n"] > 10


def test_a_streamed_call_is_the_whole_one_in_parts(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"tools": [CODE], "tool_choice": "required", "extra_body": {"context": "manual"}}
    whole = ask(client, **fields).choices[0]
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True, **fields)]
    assert all(len(chunk.delta.tool_calls or ()) <= 1 for chunk in chunks), "clients look at the first one only"
    parts = [part for chunk in chunks for part in chunk.delta.tool_calls or ()]
    assert len(parts) > 3 and {part.index for part in parts} == {0}
    assert parts[0].id and parts[0].function.name == "set_code" and not any(part.id for part in parts[1:])
    arguments = "".join(part.function.arguments for part in parts)
    assert arguments == whole.message.tool_calls[0].function.arguments and valid(arguments)
    assert chunks[-1].finish_reason == "tool_calls" and not any(chunk.delta.content for chunk in chunks)


def test_a_calls_result_is_read_and_answered(client: openai.OpenAI) -> None:
    said = ask(client, tools=[CODE], tool_choice="required").choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "The pump has code 907 now."}
    answer = ask(client, messages=[*QUESTION, said, result], tools=[CODE], tool_choice="none")
    assert "907" in answer.choices[0].message.content


def test_tools_go_with_a_context(client: openai.OpenAI, edge: Any) -> None:
    ask(client, extra_body={"context": "manual"}, max_tokens=1)
    answer = ask(client, tools=[CODE], tool_choice="required", extra_body={"context": "manual"})
    assert valid(answer.choices[0].message.tool_calls[0].function.arguments)
    tokens = answer.timings["context_n"]
    assert answer.timings["way"] == "resident" and tokens - 4 <= answer.timings["cache_n"] < tokens


def test_an_answer_is_parsed_into_what_was_asked_for(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "preread", "messages": QUESTION, "extra_body": {"context": "manual"}}
    answer = client.chat.completions.parse(response_format=Part, max_tokens=60, temperature=0, **fields)
    assert isinstance(answer.choices[0].message.parsed, Part) and answer.choices[0].finish_reason == "stop"


@pytest.mark.long
def test_answers_with_and_without_a_form_share_steps(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "part", "schema": Part.model_json_schema()}}
    plain = ask(client, max_tokens=24).choices[0].message.content
    asked: list[dict[str, Any]] = [{"response_format": schema, "temperature": 1, "seed": i} for i in range(3)]
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda each: ask(client, **each), [*asked, {"max_tokens": 24}])]
    for answer in answers[:3]:
        Part.model_validate_json(answer.choices[0].message.content)
    assert answers[3].choices[0].message.content.split()[:4] == plain.split()[:4]


def test_choices_of_a_form_are_drawn_each_by_itself(client: openai.OpenAI) -> None:
    body = {"guided_choice": ["pump", "fan", "key"], "seed": 3}
    answer = ask(client, n=4, temperature=2, extra_body=body)
    said = [choice.message.content for choice in answer.choices]
    assert set(said) <= {"pump", "fan", "key"} and len({*said}) > 1
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_completions_take_grammars_as_llama_server_does(edge: Any) -> None:
    def complete(**fields: Any) -> Any:
        body = {"prompt": "The code is", "max_tokens": 12, "temperature": 0, **fields}
        answer = httpx2.post(f"{edge.url}/v1/completions", json=body, trust_env=False, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    assert complete(grammar='root ::= " " [0-9] [0-9] "!"').strip().rstrip("!").isdigit()
    assert complete(json_schema={"const": "x"}) == '"x"' and complete(structured_outputs={"regex": "[ab]{3}"}) in {
        a + b + c for a in "ab" for b in "ab" for c in "ab"
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "root ::= other"},
        {"guided_regex": "("},
        {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": {"uniqueItems": True}}}},
    ],
)
def test_a_grammar_that_is_none_is_refused(edge: Any, fields: dict[str, Any]) -> None:
    body = {"messages": QUESTION, **fields}
    answer = httpx2.post(f"{edge.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 400 and "grammar of the answer" in answer.json()["error"]["message"]


def test_an_answer_that_cannot_go_on_is_an_error(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Constraint, "allowed", lambda self: np.empty(0, np.intp))
    monkeypatch.setattr(Constraint, "failure", "it took too much")
    body = {"messages": QUESTION, "guided_choice": ["a"]}
    answer = httpx2.post(f"{edge.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 400 and "it took too much" in answer.json()["error"]["message"]
