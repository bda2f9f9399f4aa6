"""OpenAI's responses API: which chat a request is, what its answers look like, and OpenAI's own client."""

import json
from typing import Any

import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preread.edge.forms.form import Head
from preread.edge.forms.responses import ResponseForm
from preread.edge.openai import BadRequest, Bounds, Call, read_chat
from preread.edge.request import CallPart, Done, Piece, Timings, TokenOdds
from preread.edge.responses import Response, read_response

BOUNDS = Bounds(window_tokens=2048, vocab_size=1000, answer_tokens=500)
HELLO = [{"role": "user", "content": "Hello"}]
DONE = Done("stop", 100, Timings(cache_n=90, prompt_n=10, predicted_n=3))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "role", "content", "text", "name", "id", "input", "output", "call_id", "arguments", "tools", "format"]
    ), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def read(**fields: Any) -> Call:
    return read_response(json.dumps({"input": "Hello", **fields}).encode(), BOUNDS, 7)


def messages(*items: dict[str, Any], **fields: Any) -> Any:
    return read(input=list(items), **fields).asks[0].messages


def test_a_text_is_a_chat_of_one_message() -> None:
    chat = read_chat(json.dumps({"messages": HELLO}).encode(), BOUNDS, 7)
    assert read().asks == chat.asks
    assert messages(*HELLO) == tuple(HELLO)
    assert read(instructions="Be brief.").asks[0].messages[0] == {"role": "system", "content": "Be brief."}


def test_fields_of_chats_are_those_of_chats() -> None:
    fields = {"temperature": 0.5, "top_p": 0.5, "seed": 3, "top_k": 5, "context": "manual", "stop": ["x"]}
    chat = {"messages": HELLO, "max_tokens": 9, "logprobs": True, "top_logprobs": 2, **fields}
    read_as = read(max_output_tokens=9, top_logprobs=2, stream=True, **fields)
    assert read_as.asks == read_chat(json.dumps(chat).encode(), BOUNDS, 7).asks and read_as.stream
    form = {"response_format": {"type": "json_object"}}
    assert read(**form).asks == read_chat(json.dumps({"messages": HELLO, **form}).encode(), BOUNDS, 7).asks
    assert read(include=["message.output_text.logprobs"]).asks[0].sampling.top_logprobs == 0


def test_what_was_said_before_is_the_chat_so_far() -> None:
    said = messages(
        *HELLO,
        {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "id": "m1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Hi", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "code", "arguments": '{"part": "pump"}'},
        {"type": "function_call", "call_id": "c2", "name": "code", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "114"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "none"}]},
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    )  # fmt: skip
    calls = [{"id": "c1", "type": "function", "function": {"name": "code", "arguments": {"part": "pump"}}},
             {"id": "c2", "type": "function", "function": {"name": "code", "arguments": {}}}]  # fmt: skip
    assert said == (
        *HELLO,
        {"role": "assistant", "content": "Hi", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "114"},
        {"role": "tool", "tool_call_id": "c2", "content": "none"},
        {"role": "system", "content": "Be brief."},
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "r1"}, "previous_response_id"),
        ({"conversation": "c1"}, "conversation"),
        ({"prompt": {"id": "p1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "i1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"id": "neither"}]}, "input[0].type"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"dry_multiplier": 0.5}, "dry_multiplier"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_the_name_that_it_has_here(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read(**fields)
    assert refusal.value.param == param


def test_hints_and_what_is_so_anyway_are_taken() -> None:
    taken = {"store": True, "service_tier": "flex", "user": "me", "prompt_cache_key": "k", "truncation": "disabled",
             "background": False, "reasoning": {"effort": "low"}, "text": {"verbosity": "low"}}  # fmt: skip
    assert read(**taken).asks == read().asks


@given(st.dictionaries(st.sampled_from(Response.__struct_fields__), JSON, max_size=5))
@example({"input": [{"type": "reasoning", "content": "Hm."}]})
@example({"input": [{"type": "function_call"}, {"type": "function_call_output"}]})
def test_every_body_is_a_call_or_refused(fields: dict[str, Any]) -> None:
    try:
        assert len(read(**fields).asks) == 1
    except BadRequest:
        pass


# What goes back


def form(**fields: Any) -> ResponseForm:
    return ResponseForm(Head("resp_1a", 1700000000, "tiny", read(**fields)))


def events(*data: bytes) -> list[dict[str, Any]]:
    told = []
    for block in b"".join(data).decode().removesuffix("\n\n").split("\n\n"):
        name, line = block.split("\n")
        told.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


CALLS = (
    Piece("Well.\n"),
    Piece("", calls=(CallPart(0, id="c1", name="code"), CallPart(0, '{"part": '))),
    Piece("", calls=(CallPart(0, '"pump"}'), CallPart(1, "{}", id="c2", name="list"))),
)


def test_whole_answer() -> None:
    told = json.loads(form(metadata={"a": "b"}).whole([([Piece("Hél"), Piece("lo")], DONE)]))
    (message,) = told["output"]
    part = {"type": "output_text", "text": "Héllo", "annotations": [], "logprobs": []}
    assert message == {"type": "message", "id": message["id"], "status": "completed", "role": "assistant",
                       "content": [part]}  # fmt: skip
    assert (told["id"], told["object"], told["status"], told["store"]) == ("resp_1a", "response", "completed", False)
    assert told["metadata"] == {"a": "b"} and told["tools"] == [] and told["tool_choice"] == "auto"
    assert told["usage"]["input_tokens"] == 100 and told["usage"]["input_tokens_details"]["cached_tokens"] == 90
    assert told["usage"]["output_tokens"] == 3 and told["timings"]["cache_n"] == 90
    cut = json.loads(form().whole([([], Done("length", 100, Timings()))]))
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["content"][0]["text"] == ""


def test_calls_are_items() -> None:
    told = json.loads(form().whole([(CALLS, Done("tool_calls", 100, Timings()))]))
    text, first, second = told["output"]
    assert text["content"][0]["text"] == "Well.\n" and told["status"] == "completed"
    assert (first["type"], first["call_id"], first["name"]) == ("function_call", "c1", "code")
    assert (first["arguments"], second["arguments"], second["call_id"]) == ('{"part": "pump"}', "{}", "c2")
    assert len({item["id"] for item in told["output"]}) == 3


@pytest.mark.parametrize("pieces", [(), (Piece("a"), Piece("b")), CALLS, CALLS[1:]])
def test_events_come_to_the_whole_answer(pieces: tuple[Piece, ...]) -> None:
    """As OpenAI's own client puts them together, which knows which event may follow which."""
    from openai.lib.streaming.responses._responses import ResponseStreamState
    from openai.types.responses import ResponseStreamEvent
    from pydantic import TypeAdapter

    streamed = form()
    told = events(*(streamed.event(0, piece) for piece in pieces), streamed.event(0, DONE))
    state = ResponseStreamState(input_tools=[], text_format=openai.omit)
    for event in told:
        state.handle_event(TypeAdapter(ResponseStreamEvent).validate_python(event))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    whole = json.loads(form().whole([(pieces, DONE)]))
    assert told[-1]["type"] == "response.completed" and told[-1]["response"] == whole
    added = [event["item"] for event in told if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == whole["output"] and [item["status"] for item in added] == ["in_progress"] * len(done)
    for kind, field in (("output_text", "text"), ("function_call_arguments", "arguments")):
        ends = [event[field] for event in told if event["type"] == f"response.{kind}.done"]
        deltas = [event["delta"] for event in told if event["type"] == f"response.{kind}.delta"]
        assert "".join(deltas) == "".join(ends)


def test_odds_where_they_are_asked_for() -> None:
    odds = TokenOdds(7, "é", b"\xc3\xa9", -0.5, (TokenOdds(7, "é", b"\xc3\xa9", -0.5),))
    one = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    asked = form(top_logprobs=1)
    told = events(asked.event(0, Piece("é", (odds,))), asked.event(0, DONE))
    (delta,) = [event for event in told if event["type"] == "response.output_text.delta"]
    assert delta["logprobs"] == [{**one, "top_logprobs": [one]}]
    assert told[-1]["response"]["output"][0]["content"][0]["logprobs"] == delta["logprobs"]


def test_a_failure_within_the_answer_is_one_for_the_client_too(edge: Any) -> None:
    (event,) = events(form().failing({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}))
    assert (event["type"], event["message"], event["code"]) == ("error", "m", "c") and event["error"]["message"] == "m"


# OpenAI's client


@pytest.fixture(scope="module")
def client(edge: Any) -> Any:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


def test_openais_client(client: openai.OpenAI) -> None:
    asked: Any = {"model": "any", "input": "What is the code of the pump?", "temperature": 0, "max_output_tokens": 6,
                  "extra_body": {"context": "manual"}}  # fmt: skip
    whole = client.responses.create(**asked)
    chat = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": asked["input"]}], temperature=0, max_tokens=6,
        extra_body=asked["extra_body"],
    )  # fmt: skip
    assert whole.output_text == chat.choices[0].message.content != ""
    assert whole.usage is not None and chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens and whole.usage.input_tokens_details.cached_tokens > 250
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text and len(deltas) > 3
    ends = {**asked, "max_output_tokens": 40, "extra_body": {**asked["extra_body"], "stop": deltas[2]}}
    with client.responses.stream(**ends) as stream:
        assert stream.get_final_response().output_text == "".join(deltas[:2])
    with pytest.raises(openai.NotFoundError, match="manuel"):
        client.responses.create(**{**asked, "extra_body": {"context": "manuel"}})


def test_a_tool_that_has_to_be_called_is(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": [1, 2]}}, "required": ["n"]}
    tool: Any = {"type": "function", "name": "press", "parameters": {**schema, "additionalProperties": False}}
    asked: Any = {"model": "any", "input": "Press a key.", "tools": [tool], "temperature": 0, "max_output_tokens": 60}
    with client.responses.stream(**asked, tool_choice="required") as stream:
        (call,) = stream.get_final_response().output
    assert call.type == "function_call" and call.name == "press" and json.loads(call.arguments)["n"] in (1, 2)
