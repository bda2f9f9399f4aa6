"""Anthropic's client for Python, with the edge as its base URL."""

import os
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic", reason="make clients")

LARGER = pytest.mark.skipif("PREREAD_TESTED_EDGE" not in os.environ, reason="make clients, which has a larger model")
QUESTION = [{"role": "user", "content": "What is the code of the pump?"}]
TOOL = {
    "name": "code_of",
    "description": "The code of a part.",
    "input_schema": {"type": "object", "properties": {"part": {"type": "string"}}, "required": ["part"]},
}


@pytest.fixture(scope="module")
def client(site: Any) -> Any:
    return anthropic.Anthropic(base_url=site.url, api_key="none", max_retries=0)


def test_messages_create(client: Any, site: Any) -> None:
    message = client.messages.create(model=site.manual, messages=QUESTION, max_tokens=12, system="Be short.")
    assert message.content[0].type == "text" and message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.output_tokens > 0


def test_messages_stream(client: Any, site: Any) -> None:
    with client.messages.stream(model=site.manual, messages=QUESTION, max_tokens=12) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == message.content[0].text and message.usage.output_tokens > 0


def test_count_tokens(client: Any, site: Any) -> None:
    assert client.messages.count_tokens(model=site.model, messages=QUESTION).input_tokens > 5


@LARGER
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "code_of"}])
def test_tools(client: Any, site: Any, choice: dict[str, str]) -> None:
    asked = {"model": site.manual, "max_tokens": 80, "tools": [TOOL], "extra_body": {"temperature": 0}}
    message = client.messages.create(messages=QUESTION, tool_choice=choice, **asked)
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use" and call.name == "code_of" and isinstance(call.input["part"], str)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "114"}
    turns = [*QUESTION, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=turns, **asked).content


@LARGER
def test_tools_streamed(client: Any, site: Any) -> None:
    asked = {
        "model": site.manual,
        "max_tokens": 80,
        "tools": [TOOL],
        "extra_body": {"temperature": 0},
        "messages": QUESTION,
    }
    with client.messages.stream(tool_choice={"type": "any"}, **asked) as stream:
        message = stream.get_final_message()
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert isinstance(call.input["part"], str)


def test_an_error_is_the_clients_own(client: Any, site: Any) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model=f"{site.model}@nothing", messages=QUESTION, max_tokens=1)
