"""OpenAI's API as values: what is understood, what is refused and how, and what goes back."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.edge.body import Refused
from preread.edge.forms.form import Head
from preread.edge.forms.openai import ChatForm, CompletionForm
from preread.edge.openai import BadRequest, Bounds, Call, read_chat, read_completion
from preread.edge.request import Ask, Done, Piece, Timings, TokenOdds
from preread.engine.sampling import Sampling

BOUNDS = Bounds(window_tokens=2048, vocab_size=1000, answer_tokens=500)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> Call:
    return read_chat(json.dumps({"messages": HELLO, **fields}).encode(), BOUNDS, 7)


def completion(**fields: Any) -> Call:
    return read_completion(json.dumps({"prompt": "Hello", **fields}).encode(), BOUNDS, 7)


def sampled(call: Call) -> Sampling:
    (ask,) = call.asks
    return ask.sampling


def test_length_is_openais_default_and_sampling_llama_servers() -> None:
    wanted = Sampling(max_tokens=500, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=7)
    assert chat() == Call((Ask(messages=tuple(HELLO), sampling=wanted),), 1, False, False)
    wanted = replace(wanted, max_tokens=16)
    assert completion() == Call((Ask(prompt="Hello", sampling=wanted),), 1, False, False)


def test_sampling_is_as_the_models_file_recommends_where_a_request_does_not_say() -> None:
    bounds = replace(BOUNDS, usual=Sampling(temperature=0.3, top_k=7, repeat_penalty=1.1))
    body = json.dumps({"messages": HELLO, "top_k": 9}).encode()
    assert sampled(read_chat(body, bounds, 7)) == Sampling(500, 0.3, 9, seed=7, repeat_penalty=1.1)


def test_null_is_absence() -> None:
    names = "model context max_tokens temperature top_p top_k min_p seed frequency_penalty presence_penalty"
    common = dict.fromkeys([*names.split(), "logit_bias", "stop", "stream", "stream_options", "n", "logprobs"])
    only_chat = dict.fromkeys(["max_completion_tokens", "top_logprobs", "response_format", "tools", "functions"])
    assert chat(**common, **only_chat) == chat()
    assert completion(**common, **dict.fromkeys(["best_of", "echo", "suffix"])) == completion()


def test_what_nobody_here_knows_is_ignored() -> None:
    assert chat(user="me", metadata={"a": [1]}, cache_prompt=True, parallel_tool_calls=False, store=5) == chat()
    named = [{"role": "user", "content": "Hello", "mood": "calm", "x": 1}]
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
    assert sampled(chat(max_tokens=99, **given)) == wanted
    assert sampled(completion(max_tokens=99, **given)) == wanted
    call = chat(context="manual", stream=True, stream_options={"include_usage": True}, model="any", stop="\n")
    (ask,) = call.asks
    assert (ask.context, call.stream, call.include_usage, ask.stop) == ("manual", True, True, ("\n",))
    assert chat(stop=["a", "b"]).asks[0].stop == ("a", "b")


def test_samplers_of_other_servers_arrive() -> None:
    given = {
        "typical_p": 0.9, "top_n_sigma": 2, "xtc_probability": 0.5, "xtc_threshold": 0.2, "dynatemp_range": 0.3,
        "dynatemp_exponent": 2, "mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2, "min_tokens": 3,
    }  # fmt: skip
    for make in (chat, completion):
        sampling = sampled(make(**given))
        assert {name: getattr(sampling, name) for name in given} == given
        assert sampled(make(top_n_sigma=-1)).top_n_sigma == 0
        assert sampled(make(ignore_eos=True)).min_tokens == BOUNDS.window_tokens


@pytest.mark.parametrize(
    ("fields", "penalty", "last"),
    [
        ({}, 1.0, 64),
        ({"repeat_penalty": 1.3}, 1.3, 64),
        ({"repeat_penalty": 1.3, "repeat_last_n": 9}, 1.3, 9),
        ({"repeat_last_n": -1}, 1.0, 2048),
        ({"repetition_penalty": 1.2}, 1.2, 2048),
        ({"repetition_penalty": 1.2, "repeat_last_n": 10**9}, 1.2, 2048),
        ({"repetition_penalty": 1.0, "repeat_penalty": 1.3}, 1.3, 64),
    ],
)
def test_penalties_of_both_dialects(fields: dict[str, Any], penalty: float, last: int) -> None:
    sampling = sampled(chat(**fields))
    assert (sampling.repeat_penalty, sampling.repeat_last_n) == (penalty, last)


def test_max_tokens() -> None:
    assert sampled(chat(max_tokens=5)).max_tokens == 5
    assert sampled(chat(max_tokens=5, max_completion_tokens=6)).max_tokens == 6
    assert sampled(chat(max_tokens=10**30)).max_tokens == BOUNDS.window_tokens
    assert sampled(chat(max_tokens=-1)) == sampled(chat())
    assert sampled(completion(max_tokens=-1)).max_tokens == BOUNDS.window_tokens
    assert sampled(completion(n_predict=-1)).max_tokens == BOUNDS.window_tokens
    assert sampled(completion(n_predict=200)).max_tokens == sampled(chat(n_predict=200)).max_tokens == 200
    assert sampled(completion(max_tokens=0)).max_tokens == sampled(chat(max_completion_tokens=0)).max_tokens == 0


def test_biases_are_also_pairs_of_which_false_bans() -> None:
    pairs = [[3, -1.5], [4, False]]
    assert sampled(chat(logit_bias=pairs)).logit_bias == sampled(completion(logit_bias=pairs)).logit_bias
    assert sampled(chat(logit_bias=pairs)).logit_bias == ((3, -1.5), (4, -100.0))
    assert sampled(chat(logit_bias={"4": False})).logit_bias == ((4, -100.0),)


def test_a_context_can_be_chosen_by_the_models_name() -> None:
    def context(**fields: Any) -> str | None:
        return chat(**fields).asks[0].context

    assert context(model="preread@manual") == context(model="preread@manual", context="manual") == "manual"
    bounds = replace(BOUNDS, name="smollm2")
    body = json.dumps({"prompt": "x", "model": "smollm2@a@b"}).encode()
    assert read_completion(body, bounds, 0).asks[0].context == "a@b"
    assert context(model="other@manual") is None and context(model="other@manual", context="c") == "c"
    assert context(model="preread") is None
    with pytest.raises(BadRequest, match="'manual', and context for 'other'"):
        chat(model="preread@manual", context="other")


def test_several_choices_are_drawn_with_several_seeds() -> None:
    call = completion(prompt=["a", "b"], n=2, seed=2**32 - 2)
    assert [(ask.prompt, ask.sampling.seed) for ask in call.asks] == [
        ("a", 2**32 - 2), ("a", 0), ("b", 2**32 - 2), ("b", 0),
    ]  # fmt: skip
    assert call.prompts == 2 and completion(n=3, best_of=3).prompts == 1 and len(chat(n=3).asks) == 3


def test_echo() -> None:
    ask = completion(echo=True, logprobs=1, max_tokens=0).asks[0]
    assert ask.echo and ask.sampling.prompt_logprobs and ask.sampling.max_tokens == 0
    assert not completion(echo=False).asks[0].echo


@pytest.mark.parametrize(
    ("asked", "used"), [(0, 0), (-1, 7), (2**32 - 2, 2**32 - 2), (2**32 - 1, 0), (2**63, 2**31), (-5, 2**32 - 6)]
)
def test_any_seed_is_one_that_llama_cpp_takes_as_it_is(asked: int, used: int) -> None:
    assert sampled(chat(seed=asked)).seed == used


def test_top_k_may_be_off_in_every_dialect() -> None:
    assert [sampled(chat(top_k=k)).top_k for k in (-1, 0, 10**12)] == [0, 0, BOUNDS.vocab_size]


def test_logprobs() -> None:
    assert sampled(chat(logprobs=True)).top_logprobs == 0
    assert sampled(chat(logprobs=True, top_logprobs=20)).top_logprobs == 20
    assert sampled(chat(logprobs=False)).top_logprobs is None
    assert sampled(completion(logprobs=0)).top_logprobs == 0
    assert sampled(completion(logprobs=5)).top_logprobs == 5


def test_contents() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = chat(
        messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts}, {"role": "assistant"}]
    )
    assert call.asks[0].messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": ""},
    )


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("", [""]), ("a", ["a"]), (["a"], ["a"]), ([1, 2], [(1, 2)]), ([5], [(5,)]), ([[1, 2]], [(1, 2)]), ([], [()]),
        ([[]], [()]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [(1,), (2, 3)]), (["a", [1]], ["a", (1,)]),
    ],
)  # fmt: skip
def test_prompts(prompt: object, read: object) -> None:
    assert [ask.prompt for ask in completion(prompt=prompt).asks] == read


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
        ({"max_tokens": -3}, "max_tokens"),
        ({"mirostat": 3}, "mirostat"),
        ({"typical_p": 2}, "typical_p"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"messages": [{"role": "<|im_start|>", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0]"),
        ({"messages": [*HELLO, {"role": "assistant", "function_call": {"name": "f"}}]}, "messages[1].function_call"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
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
        ({"logit_bias": [[1000, 1]]}, "logit_bias"),
        ({"logit_bias": [[1, True]]}, "logit_bias"),
        ({"logit_bias": [["a", 1]]}, "logit_bias[0][0]"),
        ({"n_probs": 21}, "n_probs"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"context": 5}, "context"),
        ({"context": ["manual"]}, "context"),
        ({"model": 5}, "model"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}], "tool_choice": "auto"}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
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
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [1, "b"]}, "prompt"),
        ({"prompt": [[1], [2000]]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1000]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 6}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_completions_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        completion(**fields)
    assert refusal.value.param == param


@pytest.mark.parametrize("name", Refused.__struct_fields__)
def test_what_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    for make in (chat, completion):
        with pytest.raises(BadRequest, match=name) as refusal:
            make(**{name: ["x"]})
        assert refusal.value.param == name
        assert make(**{name: None}) == make(**{name: False}) == make(**{name: ""}) == make()


def test_tools_that_must_not_be_called_are_no_matter() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(tools=tools, tool_choice="none") == chat(tool_choice="auto") == chat()
    assert chat(functions=tools, function_call="none") == chat()


def test_history_of_tools_arrives_as_templates_expect_it() -> None:
    def called(arguments: Any) -> Any:
        call = {"id": "c1", "type": "function", "function": {"name": "fan", "arguments": arguments}}
        said = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."}
        result = {"role": "tool", "tool_call_id": "c1", "name": "fan", "content": "off"}
        *_, said, given = chat(messages=[*HELLO, said, result]).asks[0].messages or ()
        assert given == result and said["content"] == "" and said["reasoning_content"] == "Hm."
        assert said["tool_calls"][0]["id"] == "c1" and said["tool_calls"][0]["type"] == "function"
        assert said["tool_calls"][0]["function"]["name"] == "fan"
        return said["tool_calls"][0]["function"]["arguments"]

    assert called('{"on": [true]}') == called({"on": [True]}) == {"on": [True]}
    assert [called(text) for text in ("", "[1]", "{", "on")] == ["", "[1]", "{", "on"]


def test_variables_for_the_template_arrive() -> None:
    assert chat(chat_template_kwargs={"enable_thinking": False}).asks[0].template == {"enable_thinking": False}


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
    [
        "prompt",
        "messages",
        "stop",
        "temperature",
        "seed",
        "top_k",
        "logit_bias",
        "logprobs",
        "n",
        "max_tokens",
        "n_predict",
    ]
)


@settings(max_examples=60)
@given(st.dictionaries(fields, values), st.binary(max_size=30))
def test_any_body_is_understood_or_refused(body: dict[str, Any], noise: bytes) -> None:
    for data in (json.dumps({"prompt": "x", "messages": HELLO, **body}).encode(), noise):
        for read in (read_chat, read_completion):
            try:
                asks = read(data, BOUNDS, 0).asks
            except BadRequest:
                continue
            for sampling in [ask.sampling for ask in asks]:
                assert 0 <= sampling.seed < 2**32 - 1 and 0 <= sampling.max_tokens <= 2048
                assert 0 <= sampling.top_k <= 1000


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
E_ACUTE = TokenOdds(7, "é", b"\xc3\xa9", -0.5)
ODDS = replace(E_ACUTE, top=(E_ACUTE, TokenOdds(9, "x", b"x", float("-inf"))))
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
    answer = json.loads(ChatForm(head(chat())).whole([([Piece("Hél"), Piece("lo")], DONE)]))
    message = {"role": "assistant", "content": "Héllo", "refusal": None}
    assert answer == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "tiny",
        "system_fingerprint": "b",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
        "timings": TOLD,
    }


def test_whole_completion() -> None:
    answer = json.loads(CompletionForm(head(completion())).whole([([Piece("a"), Piece("b")], DONE)]))
    assert answer["object"] == "text_completion" and answer["usage"] == USAGE and answer["timings"] == TOLD
    assert answer["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"}]


def test_logprobs_in_both_forms() -> None:
    pieces = [Piece("é", (ODDS,)), Piece("é", (ODDS,))]
    first = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    other = {"token": "x", "logprob": -9999.0, "bytes": [120]}
    (choice,) = json.loads(ChatForm(head(chat(logprobs=True))).whole([(pieces, DONE)]))["choices"]
    assert choice["logprobs"] == {"content": [{**first, "top_logprobs": [first, other]}] * 2, "refusal": None}
    (choice,) = json.loads(CompletionForm(head(completion(logprobs=2))).whole([(pieces, DONE)]))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["é", "é"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"é": -0.5, "x": -9999.0}] * 2,
        "text_offset": [0, 1],
    }
    form = CompletionForm(head(completion(logprobs=2)))
    for at in (0, 1):
        (event,) = events(form.event(0, pieces[0]))
        assert event["choices"][0]["logprobs"]["text_offset"] == [at]


def test_several_answers_are_several_choices() -> None:
    call = completion(prompt=["a", "b"], n=2)
    answers = [([Piece(text)], DONE) for text in ("a1", "a2", "b1", "b2")]
    answer = json.loads(CompletionForm(head(call)).whole(answers))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "a1"), (1, "a2"), (2, "b1"), (3, "b2"),
    ]  # fmt: skip
    used = {"prompt_tokens": 200, "completion_tokens": 12, "total_tokens": 212}
    assert answer["usage"] == used | {"prompt_tokens_details": {"cached_tokens": 180}}


def test_echoed_tokens_have_odds_but_the_first() -> None:
    first = TokenOdds(5, "a", b"a", None)
    pieces = [Piece("aé", (first, replace(ODDS, top=ODDS.top[1:])))]
    (choice,) = json.loads(CompletionForm(head(completion(logprobs=1, echo=True))).whole([(pieces, DONE)]))["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
    assert choice["logprobs"]["top_logprobs"] == [None, {"x": -9999.0, "é": -0.5}], "also the one that came"
    assert choice["logprobs"]["text_offset"] == [0, 1]


def test_streamed_chat() -> None:
    form = ChatForm(head(chat(stream=True)))
    told = events(form.event(0, Piece("a")) + form.event(0, Piece("\n\n")))
    assert [event["choices"][0]["delta"] for event in told] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "\n\n"},
    ]
    assert {(event["id"], event["object"], event["model"]) for event in told} == {
        ("id-1", "chat.completion.chunk", "tiny")
    }
    last, done = events(form.event(0, DONE))
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert last["timings"] == TOLD and "usage" not in last and done == "[DONE]"


def test_streamed_completion() -> None:
    form = CompletionForm(head(completion(stream=True)))
    (event,) = events(form.event(0, Piece("a")))
    assert event["object"] == "text_completion"
    assert event["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]
    last, _ = events(form.event(0, DONE))
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


def test_streamed_choices_have_their_index_and_an_end_each() -> None:
    form = ChatForm(head(chat(n=2, stream=True)))
    told = events(form.event(1, Piece("b")) + form.event(0, Piece("a")) + form.event(1, DONE))
    said = [(choice["index"], choice["delta"].get("content")) for event in told for choice in event["choices"]]
    assert said == [(1, ""), (1, "b"), (0, ""), (0, "a"), (1, None)]
    last, done = events(form.event(0, replace(DONE, finish="length")))
    assert (last["choices"][0]["index"], last["choices"][0]["finish_reason"], done) == (0, "length", "[DONE]")
    wanted = completion(prompt=["a", "b"], n=2, stream=True, stream_options={"include_usage": True})
    text = CompletionForm(head(wanted))
    *ends, usage, _ = events(b"".join(text.event(choice, DONE) for choice in (3, 0, 2, 1)))
    assert [end["choices"][0]["index"] for end in ends] == [3, 0, 2, 1] and not any("timings" in end for end in ends)
    assert usage["usage"]["prompt_tokens"] == 200 and usage["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(("make", "form"), [(chat, ChatForm), (completion, CompletionForm)])
def test_usage_is_the_last_chunk_where_it_is_asked_for(make: Any, form: Any) -> None:
    asked = form(head(make(stream=True, stream_options={"include_usage": True})))
    asked.event(0, Piece("a"))
    last, usage, done = events(asked.event(0, DONE))
    assert last["choices"][0]["finish_reason"] == "stop" and "timings" not in last
    assert usage["choices"] == [] and usage["usage"] == USAGE and usage["timings"] == TOLD and done == "[DONE]"
    last, _ = events(form(head(make(stream=True, stream_options={}))).event(0, DONE))[-2:]
    assert "usage" not in last


def test_failure_after_the_beginning_is_an_event() -> None:
    for form in (ChatForm(head(chat())), CompletionForm(head(completion()))):
        assert events(form.failing({"error": {"message": "m"}})) == [{"error": {"message": "m"}}]
