"""OpenAI's client for Python (github.com/openai/openai-python): chats, completions, models, errors."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="pip install openai")
import pydantic  # noqa: E402

LARGER = pytest.mark.skipif("PREREAD_TESTED_EDGE" not in os.environ, reason="make clients, which has a larger model")

QUESTION = [{"role": "user", "content": "What is the code of the pump?"}]


@pytest.fixture(scope="module")
def client(site: Any) -> Iterator[Any]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=site.v1, api_key="none", http_client=http, max_retries=0) as client:
        yield client


def test_a_chat_names_a_context_behind_the_models_name(client: Any, site: Any) -> None:
    answer = client.chat.completions.create(model=site.manual, messages=QUESTION, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens_details.cached_tokens > 200 or answer.timings["context"] == "manual"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_ends_with_usage(client: Any, site: Any) -> None:
    asked = {"messages": QUESTION, "max_tokens": 8, "temperature": 0}
    chunks = list(
        client.chat.completions.create(model=site.manual, stream=True, stream_options={"include_usage": True}, **asked)
    )
    whole = client.chat.completions.create(model=site.manual, **asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_streaming_helper_gathers_the_answer(client: Any, site: Any) -> None:
    # It takes an answer that is cut off for an error, so this one ends by a stop text.
    with client.chat.completions.stream(model=site.manual, messages=QUESTION, temperature=0, stop=[" "]) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert answer.choices[0].message.content


def test_the_asynchronous_client_asks_several_at_once(site: Any) -> None:
    async def ask() -> list[Any]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(base_url=site.v1, api_key="none", http_client=http) as client:
            asked = {"model": site.manual, "messages": QUESTION, "max_tokens": 4, "temperature": 0}
            return await asyncio.gather(*[client.chat.completions.create(**asked) for _ in range(3)])

    assert len({answer.choices[0].message.content for answer in asyncio.run(ask())}) == 1


def test_a_completion_continues_a_text(client: Any, site: Any) -> None:
    answer = client.completions.create(model=site.model, prompt="The capital of France is", max_tokens=4, logprobs=2)
    assert answer.choices[0].text and len(answer.choices[0].logprobs.tokens) == 4


def test_models_are_listed_and_retrieved(client: Any, site: Any) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [site.model, site.manual]
    assert client.models.retrieve(site.manual).id == site.manual


def test_errors_are_the_clients_own(client: Any, site: Any) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=site.model, messages=[{"role": "user", "content": "ab " * 30_000}])
    assert long.value.code == "context_length_exceeded" and "maximum context length" in long.value.message
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model=f"{site.model}@nothing", messages=QUESTION)
    assert "nothing" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as odd:
        client.chat.completions.create(model=site.model, messages=QUESTION, temperature=-1)
    assert odd.value.param == "temperature"


def test_decisions(client: Any, site: Any) -> None:
    if not hasattr(client, "decisions"):
        pytest.skip("openai before 3.26 has no decisions")
    asked = {"type": "choice", "instructions": "The code of the pump", "choices": [{"value": "107"}, {"value": "114"}]}
    decided = client.decisions.create(model=site.manual, input="I have the manual.", questions=[asked])
    (answer,) = decided.answers
    assert answer.choice in ("107", "114") and 0 < answer.confidence <= 1 and decided.usage.output_tokens == 0


def test_a_response(client: Any, site: Any) -> None:
    asked = {"model": site.manual, "input": QUESTION, "max_output_tokens": 8, "temperature": 0}
    response = client.responses.create(instructions="Be short.", **asked)
    assert response.output_text and response.usage.output_tokens > 0
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and "response.output_text.delta" in kinds


class Part(pydantic.BaseModel):
    """A part of the machine."""

    name: str
    code: int


@LARGER
def test_parse(client: Any, site: Any) -> None:
    asked = {"model": site.manual, "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    answer = client.chat.completions.parse(response_format=Part, **asked)
    assert isinstance(answer.choices[0].message.parsed, Part)


@LARGER
def test_a_response_is_parsed(client: Any, site: Any) -> None:
    asked = {"model": site.manual, "input": QUESTION, "temperature": 0, "max_output_tokens": 60}
    assert isinstance(client.responses.parse(text_format=Part, **asked).output_parsed, Part)


class code_of(pydantic.BaseModel):
    """The code of a part."""

    part: str


@LARGER
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "code_of"}}])
def test_a_tool_is_called_and_its_result_read(client: Any, site: Any, choice: Any) -> None:
    tools = [openai.pydantic_function_tool(code_of)]
    asked = {"model": site.manual, "tools": tools, "temperature": 0, "max_tokens": 60}
    answer = client.chat.completions.parse(messages=QUESTION, tool_choice=choice, **asked).choices[0]
    (call,) = answer.message.tool_calls
    assert isinstance(call.function.parsed_arguments, code_of)
    result = {"role": "tool", "tool_call_id": call.id, "content": "114"}
    turns = [*QUESTION, answer.message.model_dump(exclude_none=True), result]
    assert client.chat.completions.create(messages=turns, **asked).choices[0].finish_reason


@LARGER
def test_a_tool_call_is_streamed(client: Any, site: Any) -> None:
    tools = [openai.pydantic_function_tool(code_of)]
    asked = {"model": site.manual, "tools": tools, "temperature": 0, "max_tokens": 60}
    with client.chat.completions.stream(messages=QUESTION, tool_choice="required", **asked) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds and answer.finish_reason == "tool_calls"
    assert isinstance(answer.message.tool_calls[0].function.parsed_arguments, code_of)
