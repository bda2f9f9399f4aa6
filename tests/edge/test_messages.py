"""Anthropic's messages API: which chat a request is, what its answers and errors look like, and Anthropic's client."""

import json
from typing import Any

import anthropic
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import RawMessageStreamEvent
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from preread.edge.app import create_app
from preread.edge.forms.form import Head
from preread.edge.forms.messages import MessageForm, error
from preread.edge.messages import Messages, read_messages
from preread.edge.openai import BadRequest, Bounds, Call, read_chat
from preread.edge.request import CallPart, Done, Piece, Timings
from preread.store.auth import Keys
from preread.store.guard import Access

BOUNDS = Bounds(window_tokens=2048, vocab_size=1000, answer_tokens=500)
HELLO = [{"role": "user", "content": "Hello"}]
DONE = Done("stop", 100, Timings(cache_n=90, prompt_n=10, predicted_n=3))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "role", "content", "text", "name", "id", "input", "tool_use_id", "thinking", "format", "schema"]
    ), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def read(**fields: Any) -> Call:
    return read_messages(json.dumps({"messages": HELLO, "max_tokens": 9, **fields}).encode(), BOUNDS, 7)


def test_messages_are_a_chat() -> None:
    fields = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "context": "manual"}
    system = {"role": "system", "content": "Be brief.\nAnd kind."}
    chat = {"messages": [system, *HELLO], "max_tokens": 9, "stop": ["x"], **fields}
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
              {"type": "text", "text": "And kind."}]  # fmt: skip
    call = read(system=blocks, stop_sequences=["x"], stream=True, **fields)
    assert call.asks == read_chat(json.dumps(chat).encode(), BOUNDS, 7).asks and call.stream
    assert read(model="preread@manual").asks[0].context == "manual"
    form = {"messages": HELLO, "max_tokens": 9, "response_format": {"type": "json_object"}}
    assert read(**form).asks == read_chat(json.dumps(form).encode(), BOUNDS, 7).asks


def test_uses_of_tools_and_their_results_are_the_chat_so_far() -> None:
    said = read(
        messages=[
            *HELLO,
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Hi"},
                {"type": "tool_use", "id": "t1", "name": "code", "input": {"part": "pump"}},
                {"type": "tool_use", "id": "t2", "name": "code", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "114"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "none"}]},
                {"type": "text", "text": "And?"},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t3", "is_error": True}]},
        ],
    ).asks[0].messages  # fmt: skip
    calls = [{"id": "t1", "type": "function", "function": {"name": "code", "arguments": {"part": "pump"}}},
             {"id": "t2", "type": "function", "function": {"name": "code", "arguments": {}}}]  # fmt: skip
    assert said == (
        *HELLO,
        {"role": "assistant", "content": "Hi", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "t1", "content": "114"},
        {"role": "tool", "tool_call_id": "t2", "content": "none"},
        {"role": "user", "content": "And?"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"n": 3}, "n"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_the_name_that_it_has_here(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read(**fields)
    assert refusal.value.param == param


def test_hints_are_taken() -> None:
    taken = {
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low"},
        "cache_control": {"type": "ephemeral"},
    }
    assert read(**taken).asks == read().asks


@given(st.dictionaries(st.sampled_from(Messages.__struct_fields__), JSON, max_size=5))
@example({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "tool_use"}]}]}]})
def test_every_body_is_a_call_or_refused(fields: dict[str, Any]) -> None:
    try:
        assert len(read(**fields).asks) == 1
    except BadRequest:
        pass


# What goes back

CALLS = (
    Piece("Well."),
    Piece("", calls=(CallPart(0, id="t1", name="code"), CallPart(0, '{"part": '))),
    Piece("", calls=(CallPart(0, '"pump"}'), CallPart(1, id="t2", name="list"))),
)
USED = Done("tool_calls", 100, Timings(cache_n=90, predicted_n=9))


def form() -> MessageForm:
    return MessageForm(Head("msg_1", 1700000000, "tiny", read()))


def test_whole_answers() -> None:
    told = json.loads(form().whole([([Piece("Hél"), Piece("lo")], DONE)]))
    usage = {"input_tokens": 10, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 0, "output_tokens": 3}
    assert told.pop("timings")["cache_n"] == 90
    assert told == {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "tiny", "usage": usage,
        "content": [{"type": "text", "text": "Héllo"}], "stop_reason": "end_turn", "stop_sequence": None,
    }  # fmt: skip
    stopped = json.loads(form().whole([([], Done("stop", 1, Timings(), "END"))]))
    assert (stopped["stop_reason"], stopped["stop_sequence"], stopped["content"]) == ("stop_sequence", "END", [])
    assert json.loads(form().whole([([], Done("length", 1, Timings()))]))["stop_reason"] == "max_tokens"
    used = json.loads(form().whole([(CALLS, USED)]))
    assert used["stop_reason"] == "tool_use" and used["content"] == [
        {"type": "text", "text": "Well."},
        {"type": "tool_use", "id": "t1", "name": "code", "input": {"part": "pump"}},
        {"type": "tool_use", "id": "t2", "name": "list", "input": {}},
    ]


@pytest.mark.parametrize("pieces", [(), (Piece("a"), Piece("b")), CALLS, CALLS[1:]])
def test_events_come_to_the_whole_answer(pieces: tuple[Piece, ...]) -> None:
    """As Anthropic's own client puts them together."""
    streamed, snapshot, buffers = form(), None, dict[int, bytes]()
    data = b"".join(streamed.event(0, item) for item in (*pieces, USED))
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        name, line = block.split("\n")
        event = TypeAdapter(RawMessageStreamEvent).validate_json(line.removeprefix("data: "))
        assert name == f"event: {event.type}"
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)
    assert name == "event: message_stop" and snapshot is not None
    whole = json.loads(form().whole([(pieces, USED)]))
    told = snapshot.to_dict()
    for field in ("id", "role", "model", "stop_reason", "stop_sequence"):
        assert told.get(field) == whole[field]
    assert [block.to_dict() for block in snapshot.content] == whole["content"]
    assert {name: getattr(snapshot.usage, name) for name in whole["usage"]} == whole["usage"]


def test_errors_say_what_they_are_and_keep_openais_code() -> None:
    said = {"error": {"message": "m", "type": "invalid_request_error", "param": None, "code": "unknown_context"}}
    kinds = [error(status, said)["error"]["type"] for status in (400, 401, 404, 418, 429, 500, 503)]
    assert kinds == ["invalid_request_error", "authentication_error", "not_found_error", "invalid_request_error",
                     "rate_limit_error", "api_error", "overloaded_error"]  # fmt: skip
    told = error(404, said)
    assert told["type"] == "error" and told["error"]["code"] == "unknown_context"
    assert form().failing(told).startswith(b"event: error\n")


# Anthropic's client


def client_of(url: str, key: str = "none") -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(trust_env=False)
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, http_client=http)


def test_anthropics_client(edge: Any) -> None:
    question = "What is the code of the pump?"
    asked: Any = {"model": "any@x", "messages": [{"role": "user", "content": question}], "max_tokens": 6,
                  "extra_body": {"context": "manual", "temperature": 0}}  # fmt: skip
    with client_of(edge.url) as client:
        whole = client.messages.create(**asked)
        (block,) = whole.content
        assert block.type == "text" and block.text and whole.stop_reason == "max_tokens"
        assert (whole.usage.cache_read_input_tokens or 0) > 250 and whole.usage.output_tokens == 6
        with client.messages.stream(**asked) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        assert "".join(pieces) == block.text and len(pieces) > 3
        assert (final.content[0].to_dict(), final.usage) == (block.to_dict(), whole.usage)
        stopped = client.messages.create(**asked, stop_sequences=[pieces[2].strip()])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", pieces[2].strip())
        with pytest.raises(anthropic.NotFoundError, match="manuel") as refusal:
            client.messages.create(**{**asked, "extra_body": {"context": "manuel"}})
        body: Any = refusal.value.body
        assert body["type"] == "error" and body["error"]["type"] == "not_found_error"


def test_its_key_is_taken_as_it_sends_it(edge: Any) -> None:
    access = Access(Keys.of(("one",), "ask"))

    async def check() -> None:
        import httpx2

        transport = httpx2.ASGITransport(create_app(edge.opened, access))
        async with httpx2.AsyncClient(transport=transport, base_url="http://edge") as client:
            for headers, status in (({"x-api-key": "one"}, 200), ({"x-api-key": "two"}, 401), ({"x-api-key": ""}, 401),
                                    ({"x-api-key": "one", "authorization": "Bearer two"}, 401)):  # fmt: skip
                assert (await client.get("/v1/models", headers=headers)).status_code == status

    edge.run(check)


def test_a_tool_that_has_to_be_used_is(edge: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": [1, 2]}}, "required": ["n"]}
    tool: Any = {"name": "press", "input_schema": {**schema, "additionalProperties": False}}
    said: Any = {"model": "any", "messages": [{"role": "user", "content": "Press a key."}], "max_tokens": 60}
    with client_of(edge.url) as client:
        answer = client.messages.create(**said, tools=[tool], tool_choice={"type": "any"})
    (block,) = answer.content
    assert block.type == "tool_use" and block.name == "press" and block.input["n"] in (1, 2)
    assert answer.stop_reason == "tool_use"
