"""LiteLLM, with the provider `openai/`."""

import json
from typing import Any

import pytest

litellm = pytest.importorskip("litellm", reason="make clients")

QUESTION = [{"role": "user", "content": "What is the code of the pump?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "code_of",
        "description": "The code of a part.",
        "parameters": {"type": "object", "properties": {"part": {"type": "string"}}, "required": ["part"]},
    },
}


@pytest.fixture(scope="module")
def asked(site: Any) -> dict[str, Any]:
    return {
        "model": f"openai/{site.manual}",
        "api_base": site.v1,
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 60,
        "num_retries": 0,
    }


def test_completion(asked: dict[str, Any]) -> None:
    answer = litellm.completion(messages=QUESTION, **asked)
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 0


def test_completion_streamed(asked: dict[str, Any]) -> None:
    chunks = list(litellm.completion(messages=QUESTION, stream=True, **asked))
    whole = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert whole.choices[0].message.content


def test_text_completion(asked: dict[str, Any], site: Any) -> None:
    given = asked | {"model": f"text-completion-openai/{site.model}"}
    assert litellm.text_completion(prompt="The capital of France is", **given).choices[0].text


def test_a_prompt_that_is_too_long_is_the_error_for_that(asked: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "ab " * 30_000}], **asked)


@pytest.mark.parametrize("stream", [False, True])
def test_tools(asked: dict[str, Any], stream: bool) -> None:
    answer = litellm.completion(messages=QUESTION, tools=[TOOL], tool_choice="required", stream=stream, **asked)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=QUESTION)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "code_of" and isinstance(json.loads(call.function.arguments)["part"], str)


def test_response_format(asked: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"code": {"type": "integer"}}, "required": ["code"]}
    form = {"type": "json_schema", "json_schema": {"name": "code", "schema": schema, "strict": True}}
    answer = litellm.completion(messages=QUESTION, response_format=form, **asked)
    assert isinstance(json.loads(answer.choices[0].message.content)["code"], int)


def test_messages_of_anthropic_are_bridged(asked: dict[str, Any]) -> None:
    given = {key: value for key, value in asked.items() if key != "num_retries"}
    answer = litellm.anthropic.messages.create(messages=QUESTION, **given)
    assert answer["content"][0]["type"] == "text"


def test_responses(asked: dict[str, Any]) -> None:
    given = {key: value for key, value in asked.items() if key != "max_tokens"}
    answer = litellm.responses(input="What is the code of the pump?", max_output_tokens=16, **given)
    assert answer.status in ("completed", "incomplete")
