"""OpenAI's API as values: what is understood, what is refused and how, and what goes back."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.edge import reply
from preread.edge.openai import BadRequest, Bounds, Call, read_chat, read_completion
from preread.edge.reply import Head
from preread.edge.request import Ask, Done, Piece, Timings, TokenOdds
from preread.engine.sampling import Sampling

BOUNDS = Bounds(window_tokens=2048, vocab_size=1000)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> Call:
    return read_chat(json.dumps({"messages": HELLO, **fields}).encode(), BOUNDS, 7)


def completion(**fields: Any) -> Call:
    return read_completion(json.dumps({"prompt": "Hello", **fields}).encode(), BOUNDS, 7)


def test_defaults_are_openais() -> None:
    wanted = Sampling(max_tokens=2048, temperature=1.0, seed=7)
    assert chat() == Call(Ask(messages=tuple(HELLO), sampling=wanted), True, False, False)
    wanted = Sampling(max_tokens=16, temperature=1.0, seed=7)
    assert completion() == Call(Ask(prompt="Hello", sampling=wanted), False, False, False)


def test_null_is_absence() -> None:
    names = "model context max_tokens temperature top_p top_k min_p seed frequency_penalty presence_penalty"
    common = dict.fromkeys([*names.split(), "logit_bias", "stop", "stream", "stream_options", "n", "logprobs"])
    only_chat = dict.fromkeys(["max_completion_tokens", "top_logprobs", "response_format", "tools", "functions"])
    assert chat(**common, **only_chat) == chat()
    assert completion(**common, **dict.fromkeys(["best_of", "echo", "suffix"])) == completion()


def test_what_nobody_here_knows_is_ignored() -> None:
    assert chat(user="me", metadata={"a": [1]}, cache_prompt=True, parallel_tool_calls=False, store=5) == chat()
    named = [{"role": "user", "content": "Hello", "name": "me", "x": 1}]
    assert read_chat(json.dumps({"messages": named}).encode(), BOUNDS, 7) == chat()


def test_every_parameter_arrives() -> None:
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 5,
        "frequency_penalty": -1,
        "presence_penalty": 2,
        "logit_bias": {"3": -100, "999": 1.5},
    }
    wanted = Sampling(99, 0.5, 40, 0.9, 0.1, 5, -1.0, 2.0, ((3, -100.0), (999, 1.5)), None)
    assert chat(max_tokens=99, **given).ask.sampling == wanted
    assert completion(max_tokens=99, **given).ask.sampling == wanted
    call = chat(context="manual", stream=True, stream_options={"include_usage": True}, model="any", stop="\n")
    assert (call.ask.context, call.stream, call.include_usage, call.ask.stop) == ("manual", True, True, ("\n",))
    assert chat(stop=["a", "b"]).ask.stop == ("a", "b")


def test_max_tokens() -> None:
    assert chat(max_tokens=5).ask.sampling.max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=6).ask.sampling.max_tokens == 6
    assert chat(max_tokens=10**30).ask.sampling.max_tokens == BOUNDS.window_tokens


@pytest.mark.parametrize(
    ("asked", "used"), [(0, 0), (-1, 7), (2**32 - 2, 2**32 - 2), (2**32 - 1, 0), (2**63, 2**31), (-5, 2**32 - 6)]
)
def test_any_seed_is_one_that_llama_cpp_takes_as_it_is(asked: int, used: int) -> None:
    assert chat(seed=asked).ask.sampling.seed == used


def test_top_k_may_be_off_in_every_dialect() -> None:
    assert [chat(top_k=k).ask.sampling.top_k for k in (-1, 0, 10**12)] == [0, 0, BOUNDS.vocab_size]


def test_logprobs() -> None:
    assert chat(logprobs=True).ask.sampling.top_logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).ask.sampling.top_logprobs == 20
    assert chat(logprobs=False).ask.sampling.top_logprobs is None
    assert completion(logprobs=0).ask.sampling.top_logprobs == 0
    assert completion(logprobs=5).ask.sampling.top_logprobs == 5


def test_contents() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = chat(
        messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts}, {"role": "assistant"}]
    )
    assert call.ask.messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": ""},
    )


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("", ""), ("a", "a"), (["a"], "a"), ([1, 2], (1, 2)), ([5], (5,)), ([[1, 2]], (1, 2)), ([], ()), ([[]], ())],
)
def test_prompts(prompt: object, read: object) -> None:
    assert completion(prompt=prompt).ask.prompt == read


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"seed": "x"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"1000": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"context": 5}, "context"),
        ({"context": ["manual"]}, "context"),
        ({"model": 5}, "model"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ],
)  # fmt: skip
def test_chats_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        chat(**fields)
    assert refusal.value.param == param and str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1000]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_completions_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        completion(**fields)
    assert refusal.value.param == param


def test_a_body_without_what_it_is_about_is_refused() -> None:
    for read, field in ((read_chat, "messages"), (read_completion, "prompt")):
        with pytest.raises(BadRequest, match=field):
            read(b"{}", BOUNDS, 0)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"5", b"[" * 100_000, b'{"prompt": "\\ud800"}', b"{} {}"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    for read in (read_chat, read_completion):
        with pytest.raises(BadRequest) as refusal:
            read(body, BOUNDS, 0)
        assert refusal.value.param in (None, "prompt")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["prompt", "messages", "stop", "temperature", "seed", "top_k", "logit_bias", "logprobs", "n", "max_tokens"]
)


@settings(max_examples=60)
@given(st.dictionaries(fields, values), st.binary(max_size=30))
def test_any_body_is_understood_or_refused(body: dict[str, Any], noise: bytes) -> None:
    for data in (json.dumps({"prompt": "x", "messages": HELLO, **body}).encode(), noise):
        for read in (read_chat, read_completion):
            try:
                sampling = read(data, BOUNDS, 0).ask.sampling
            except BadRequest:
                continue
            assert 0 <= sampling.seed < 2**32 - 1 and 1 <= sampling.max_tokens <= 2048 and 0 <= sampling.top_k <= 1000


TIMINGS = Timings(
    context="manual", way="streamed", rung="q8", cache_n=90, context_n=91, prompt_n=10, predicted_n=3,
    bytes_received=1234, queue_ms=5.0, load_ms=20.0, ttft_ms=30.0004, predicted_ms=50.0,
)  # fmt: skip
DONE = Done("stop", 100, TIMINGS)
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 3,
    "total_tokens": 103,
    "prompt_tokens_details": {"cached_tokens": 90},
}
ODDS = TokenOdds("é", b"\xc3\xa9", -0.5, (("é", b"\xc3\xa9", -0.5), ("x", b"x", float("-inf"))))
TOLD = {
    "context": "manual", "way": "streamed", "reason": None, "rung": "q8", "refined_to": None,
    "refined_share": 0.0, "cache_n": 90, "context_n": 91,
    "prompt_n": 10, "prompt_ms": 25.0, "predicted_n": 3, "predicted_ms": 50.0, "predicted_per_second": 40.0,
    "bytes_received": 1234, "queue_ms": 5.0, "load_ms": 20.0, "context_ms": 0.0, "ttft_ms": 30.0,
}  # fmt: skip


def head(call: Call) -> Head:
    return Head("id-1", 1700000000, "tiny", call)


def events(data: bytes) -> list[Any]:
    assert data.endswith(b"\n\n")
    lines = data.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def test_whole_chat() -> None:
    answer = json.loads(reply.whole(head(chat()), [Piece("Hél"), Piece("lo")], DONE))
    message = {"role": "assistant", "content": "Héllo", "refusal": None}
    assert answer == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
        "timings": TOLD,
    }


def test_whole_completion() -> None:
    answer = json.loads(reply.whole(head(completion()), [Piece("a"), Piece("b")], DONE))
    assert answer["object"] == "text_completion" and answer["usage"] == USAGE and answer["timings"] == TOLD
    assert answer["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"}]


def test_logprobs_in_both_forms() -> None:
    pieces = [Piece("é", (ODDS,)), Piece("é", (ODDS,))]
    first = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    other = {"token": "x", "logprob": -9999.0, "bytes": [120]}
    (choice,) = json.loads(reply.whole(head(chat(logprobs=True)), pieces, DONE))["choices"]
    assert choice["logprobs"] == {"content": [{**first, "top_logprobs": [first, other]}] * 2, "refusal": None}
    (choice,) = json.loads(reply.whole(head(completion(logprobs=2)), pieces, DONE))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["é", "é"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"é": -0.5, "x": -9999.0}] * 2,
        "text_offset": [0, 1],
    }
    (event,) = events(reply.part(head(completion(logprobs=2)), pieces[1], 41))
    assert event["choices"][0]["logprobs"]["text_offset"] == [41]


def test_streamed_chat() -> None:
    top = head(chat(stream=True))
    told = events(reply.opening(top) + reply.part(top, Piece("a"), 0) + reply.part(top, Piece("\n\n"), 1))
    assert [event["choices"][0]["delta"] for event in told] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "\n\n"},
    ]
    assert {(event["id"], event["object"], event["model"]) for event in told} == {
        ("id-1", "chat.completion.chunk", "tiny")
    }
    last, done = events(reply.closing(top, DONE))
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert last["timings"] == TOLD and "usage" not in last and done == "[DONE]"


def test_streamed_completion() -> None:
    top = head(completion(stream=True))
    assert reply.opening(top) == b""
    (event,) = events(reply.part(top, Piece("a"), 0))
    assert event["object"] == "text_completion"
    assert event["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]
    last, _ = events(reply.closing(top, DONE))
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("make", [chat, completion])
def test_usage_is_the_last_chunk_where_it_is_asked_for(make: Any) -> None:
    last, usage, done = events(reply.closing(head(make(stream=True, stream_options={"include_usage": True})), DONE))
    assert last["choices"][0]["finish_reason"] == "stop" and "timings" not in last
    assert usage["choices"] == [] and usage["usage"] == USAGE and usage["timings"] == TOLD and done == "[DONE]"
    last, _ = events(reply.closing(head(make(stream=True, stream_options={})), DONE))
    assert "usage" not in last


def test_failure_after_the_beginning_is_an_event() -> None:
    assert events(reply.failing({"error": {"message": "m"}})) == [{"error": {"message": "m"}}]
