"""The edge over real HTTP with a real model: OpenAI's own client, clients that go away, errors, keys, limits."""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from preread.edge import sending, serving
from preread.edge.app import create_app
from preread.edge.edge import AsyncEdge
from preread.edge.forms.openai import ChatForm
from preread.engine.chooser import Chooser
from preread.engine.sampling import Sampled
from preread.errors import EngineError
from preread.store.auth import Keys
from preread.store.guard import Access

QUESTION = [{"role": "user", "content": "What is the code of the pump?"}]
MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def client(edge: Any) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    standard = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 6}
    return client.chat.completions.create(**{**standard, **fields})


def about(name: str) -> dict[str, Any]:
    return {"extra_body": {"context": name}}


def post(edge: Any, path: str = "/v1/chat/completions", **fields: Any) -> httpx2.Response:
    body = {"messages": QUESTION, "max_tokens": 3, "temperature": 0, **fields}
    return httpx2.post(f"{edge.url}{path}", json=body, trust_env=False, timeout=60)


def test_context_is_streamed_by_name_and_found_by_itself(client: openai.OpenAI, edge: Any, manual: str) -> None:
    edge.forget()
    first = ask(client, **about("manual"))
    timings = first.timings
    assert (timings["context"], timings["way"], timings["rung"]) == ("manual", "streamed", "lossless")
    assert timings["bytes_received"] > 0 and timings["load_ms"] > 0 and timings["reason"] is None
    assert first.usage.prompt_tokens_details.cached_tokens == timings["cache_n"] == timings["context_n"] > 250
    assert first.usage.prompt_tokens == timings["cache_n"] + timings["prompt_n"]
    assert first.usage.completion_tokens == timings["predicted_n"] <= 6
    assert first.id.startswith("chatcmpl-") and first.model == MODEL and first.object == "chat.completion"
    whole = ask(client, messages=[{"role": "system", "content": manual}, *QUESTION])
    assert (whole.timings["context"], whole.timings["way"]) == ("manual", "resident")
    assert whole.usage == first.usage and whole.choices == first.choices
    assert whole.timings["bytes_received"] == 0 and whole.id != first.id


def test_streamed_answer_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    whole = ask(client, **about("manual"))
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **about("manual")))
    *parts, last, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts] == [None] * len(parts)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.choices == [] and usage.usage == whole.usage and usage.timings["way"] == "resident"
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(parts) > 3, "it came in one piece: that is not streaming"


def test_no_context(client: openai.OpenAI) -> None:
    answer = ask(client, max_tokens=1)
    assert answer.timings["way"] == "none" and answer.timings["context"] is None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.choices[0].finish_reason == "length"


def test_completions(client: openai.OpenAI, edge: Any) -> None:
    standard = {"model": "another/name", "max_tokens": 4, "temperature": 0}
    text = client.completions.create(prompt="The capital of France is", **standard)
    assert text.object == "text_completion" and text.id.startswith("cmpl-") and text.model == MODEL
    assert "Paris" in text.choices[0].text and text.usage.completion_tokens == 4
    ids = edge.opened.node.engine.tokenize("The capital of France is", start=True).tolist()
    assert client.completions.create(prompt=ids, **standard).choices[0].text == text.choices[0].text
    chunks = list(client.completions.create(prompt=[ids], stream=True, **standard))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].timings["predicted_n"] == 4


def test_sampling_parameters(client: openai.OpenAI, edge: Any) -> None:
    def text(**fields: Any) -> str:
        return str(ask(client, **fields).choices[0].message.content)

    drawn = [text(seed=seed, temperature=1.5) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    every = {"top_k": 0, "min_p": 0}
    assert text(temperature=2, top_p=1, extra_body=every) != text(temperature=2, top_p=1, extra_body=every), (
        "a seed is drawn where none is given"
    )
    greedy = text()
    assert text(temperature=2, top_p=0) == greedy
    assert text(temperature=2, extra_body={"top_k": 1}) == greedy
    assert text(temperature=2, extra_body={"min_p": 1}) == greedy
    first = int(edge.opened.node.engine.tokenize(greedy)[0])
    assert not text(logit_bias={first: -100}).startswith(greedy[:3])


def test_who_says_nothing_of_sampling_gets_what_the_models_file_recommends(
    edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = edge.opened.node.engine
    greedy = post(edge, max_tokens=16).json()["choices"]
    monkeypatch.setattr(engine, "sampling", replace(engine.sampling, temperature=0.0))
    assert post(edge, max_tokens=16, temperature=None).json()["choices"] == greedy


def test_penalties(client: openai.OpenAI, edge: Any) -> None:
    animals = [int(edge.opened.node.engine.tokenize(f" {word}")[0]) for word in ("dog", "cat", "bird", "fish", "horse")]

    def different(**penalty: float) -> int:
        """How many of the animals are in an answer of nothing but animals."""
        answer = ask(client, logit_bias=dict.fromkeys(animals, 100), max_tokens=8, **penalty)
        words = answer.choices[0].message.content.split()
        assert len(words) == 8
        return len(set(words))

    assert different() < different(frequency_penalty=2)
    assert different() < different(presence_penalty=2)


def test_a_repeat_penalty_is_honoured(client: openai.OpenAI, edge: Any) -> None:
    animals = [int(edge.opened.node.engine.tokenize(f" {word}")[0]) for word in ("dog", "cat", "bird", "fish", "horse")]

    def different(**fields: Any) -> int:
        answer = ask(client, logit_bias=dict.fromkeys(animals, 100), max_tokens=5, extra_body=fields)
        return len(set(answer.choices[0].message.content.split()))

    assert different() < different(repeat_penalty=5) == different(repetition_penalty=5) == 5


def test_several_prompts_and_choices_in_one_request(client: openai.OpenAI) -> None:
    standard = {"model": MODEL, "max_tokens": 3, "temperature": 0}
    prompts = ["The capital of France is", "One, two, three,"]
    alone = [client.completions.create(prompt=prompt, **standard) for prompt in prompts]
    both = client.completions.create(prompt=prompts, **standard)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert [choice.text for choice in both.choices] == [one.choices[0].text for one in alone]
    assert both.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert both.usage.completion_tokens == 6
    texts = ["", ""]
    for chunk in client.completions.create(prompt=prompts, stream=True, **standard):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in both.choices]
    twice = ask(client, n=2, temperature=1.5, seed=1)
    assert twice.choices[0].message.content != twice.choices[1].message.content
    assert twice.choices[1].message.content == ask(client, temperature=1.5, seed=2).choices[0].message.content


def test_echo_with_logprobs_scores_a_prompt(client: openai.OpenAI, edge: Any) -> None:
    """As lm-eval's local-completions asks: the tokens of a context and of a continuation, and one more."""
    tokenize = edge.opened.node.engine.tokenize
    context, ends = tokenize("The capital of France is", start=True).tolist(), (" Paris", " cheese")
    prompts = [context + tokenize(end).tolist() for end in ends]
    standard = {"model": MODEL, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    answer = client.completions.create(prompt=prompts, max_tokens=1, **standard)
    scores = []
    for choice, prompt, end in zip(answer.choices, prompts, ends, strict=True):
        odds = choice.logprobs
        assert len(odds.token_logprobs) == len(prompt) + 1 and odds.token_logprobs[0] is None
        assert choice.text.startswith(f"The capital of France is{end}") and "".join(odds.tokens) == choice.text
        assert odds.top_logprobs[0] is None and len(odds.top_logprobs[len(context)]) <= 2
        scores.append(sum(odds.token_logprobs[len(context) : -1]))
        best = max(odds.top_logprobs[len(context)].values())
        assert (odds.token_logprobs[len(context)] == best) == (end == " Paris")
    assert scores[0] > scores[1] + 2 and answer.usage.completion_tokens == 2
    only = client.completions.create(prompt=prompts[0], max_tokens=0, **standard).choices[0]
    assert only.logprobs.token_logprobs == answer.choices[0].logprobs.token_logprobs[:-1]
    assert only.text == "The capital of France is Paris" and only.finish_reason == "length"


def test_echo_without_logprobs_and_in_events(client: openai.OpenAI) -> None:
    standard = {"model": MODEL, "temperature": 0, "max_tokens": 3, "prompt": "The capital of France is"}
    text = client.completions.create(**standard).choices[0].text
    assert client.completions.create(echo=True, **standard).choices[0].text == standard["prompt"] + text
    chunks = list(client.completions.create(echo=True, stream=True, logprobs=0, **standard))
    assert "".join(chunk.choices[0].text for chunk in chunks) == standard["prompt"] + text
    offsets = [at for chunk in chunks if chunk.choices[0].logprobs for at in chunk.choices[0].logprobs.text_offset]
    assert offsets == sorted(offsets) and len(set(offsets)) == len(offsets)


def test_nothing_is_generated_where_nothing_is_wanted(client: openai.OpenAI, edge: Any) -> None:
    edge.forget()
    warmed = ask(client, max_tokens=0, **about("manual"))
    assert (warmed.choices[0].message.content, warmed.usage.completion_tokens) == ("", 0)
    assert warmed.timings["way"] == "streamed" and warmed.choices[0].finish_reason == "length"
    assert ask(client, **about("manual")).timings["way"] == "resident"


def test_history_of_tools_is_rendered(client: openai.OpenAI) -> None:
    """SmolLM2's template shows contents only: these are there, and nothing is refused."""
    call = {"id": "c1", "type": "function", "function": {"name": "code", "arguments": '{"part": "pump"}'}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "114"}]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "code"}}]
    plain = ask(client, max_tokens=1).usage.prompt_tokens
    answer = ask(client, messages=[*QUESTION, *said], tools=tools, tool_choice="none", max_tokens=1)
    assert answer.usage.prompt_tokens > plain + 8


def test_stop(client: openai.OpenAI) -> None:
    whole = ask(client, max_tokens=12).choices[0].message.content
    stop = whole.split()[2]
    answer = ask(client, max_tokens=12, stop=[stop, "never this"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert bytes(byte for token in content for byte in token.bytes).decode() == answer.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
    chunks = list(ask(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]


def test_models_and_health(client: openai.OpenAI, edge: Any) -> None:
    model, *contexts = client.models.list().data
    assert model.id == MODEL and model.meta["n_ctx"] == 2048 and model.meta["n_vocab"] == 49152
    assert model.max_model_len == 2048 and f"{MODEL}@manual" in [context.id for context in contexts]
    health = httpx2.get(f"{edge.url}/health", trust_env=False).json()
    known = len(edge.opened.node.contexts.entries())
    assert health == {"status": "ok", "model": MODEL, "injection": None, "cloud": None, "contexts": known, "missing": 0}


def test_a_listed_context_can_be_chosen_as_a_model(client: openai.OpenAI) -> None:
    assert client.models.retrieve(MODEL).id == MODEL
    chosen = client.models.retrieve(f"{MODEL}@manual")
    assert chosen.meta["context"] == "manual" and chosen.meta["context_tokens"] > 250
    answer = ask(client, model=chosen.id)
    assert answer.timings["context"] == "manual"
    assert answer.choices == ask(client, **about("manual")).choices
    with pytest.raises(openai.NotFoundError, match="/v1/models lists all"):
        client.models.retrieve("other/model")
    with pytest.raises(openai.BadRequestError, match="'manual', and context for 'other'"):
        ask(client, model=chosen.id, **about("other"))


def test_what_other_servers_have_is_here_or_named(edge: Any) -> None:
    def get(path: str) -> httpx2.Response:
        return httpx2.get(f"{edge.url}{path}", trust_env=False)

    assert get("/props").json()["default_generation_settings"]["n_ctx"] == 2048
    for path in ("/v1/embeddings", "/v1/rerank"):
        for answer in (get(path), httpx2.post(f"{edge.url}{path}", json={}, trust_env=False)):
            error = answer.json()["error"]
            assert answer.status_code == 501 and error["code"] == "not_supported"
            assert error["message"].startswith(f"{path} is not supported: ")


def test_unknown_context_names_the_known_ones(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as refusal:
            ask(client, stream=stream, **about("manuel"))
        body: Any = refusal.value.body
        assert "'manuel'" in body["message"] and "manual" in body["message"].partition("known contexts:")[2]
        assert (body["type"], body["param"], body["code"]) == ("invalid_request_error", "context", "unknown_context")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", "float"),
        (
            {"messages": [{"role": "user", "content": "many words " * 2000}]},
            None,
            "maximum context length is 2048 tokens",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "text"),
        ({"n": 200}, "n", "at most 128"),
        ({"bad_words": ["no"]}, "bad_words", "bad_words cannot be honoured"),
    ],
)
def test_bad_requests(edge: Any, fields: dict[str, Any], param: str | None, words: str, stream: bool) -> None:
    answer = post(edge, stream=stream, **fields)
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["param"] == param and words in error["message"]


def test_other_paths_methods_and_types(edge: Any) -> None:
    url = edge.url
    for answer, status in (
        (httpx2.get(f"{url}/v1/nothing", trust_env=False), 404),
        (httpx2.get(f"{url}/v1/chat/completions", trust_env=False), 405),
        (httpx2.post(f"{url}/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"},
                     trust_env=False), 415),
    ):  # fmt: skip
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("chunked", [False, True])
def test_body_has_a_limit(edge: Any, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_BODY_BYTES", 1000)
    body = json.dumps({"prompt": "x" * 1000}).encode()
    headers = {"Content-Type": "application/json"}
    content = iter([body]) if chunked else body
    answer = httpx2.post(f"{edge.url}/v1/completions", content=content, headers=headers, trust_env=False)
    assert answer.status_code == 413 and "at most 1000 bytes" in answer.json()["error"]["message"]


def test_headers_keep_events_flowing_and_answers_out_of_caches(edge: Any) -> None:
    headers = post(edge, stream=True).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    assert post(edge).headers["cache-control"] == "no-store"
    assert not any(name.startswith("access-control") for name in headers)


def test_simultaneous_questions_get_their_own_answers(client: openai.OpenAI) -> None:
    questions = [
        {"messages": [{"role": "user", "content": "What is the code of the fan?"}], **about("manual")},
        {"messages": [{"role": "user", "content": "Write one line about the sea."}]},
        {"messages": [{"role": "user", "content": "How often is the hose changed?"}], **about("manual")},
        {"messages": [{"role": "user", "content": "Count to five."}]},
    ]

    def answer(fields: dict[str, Any]) -> str:
        return str(ask(client, **fields).choices[0].message.content)

    one_by_one = [answer(fields) for fields in questions]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, questions)) == one_by_one
    assert len(set(one_by_one)) == 4


# An engine that is watched


class Watch:
    """Counts the tokens that the engine generates, and tells when it begins and when it generated some."""

    def __init__(self) -> None:
        self.tokens, self.fail_after = 0, 10**9
        self.begun, self.generating = threading.Event(), threading.Event()


@pytest.fixture
def watch(edge: Any, monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch, engine = Watch(), edge.opened.node.engine
    make = engine.chooser

    def watched(*args: Any) -> Chooser:
        chooser = make(*args)
        choose = chooser.choose

        def watched(context: object, index: int) -> Sampled:
            if watch.tokens == watch.fail_after:
                raise EngineError("the engine is tired")
            watch.tokens += 1
            if watch.tokens == 3:
                watch.generating.set()
            return choose(context, index)

        watch.begun.set()
        monkeypatch.setattr(chooser, "choose", watched)
        return chooser

    monkeypatch.setattr(engine, "chooser", watched)
    return watch


def test_failure_before_the_answer_has_a_status(edge: Any, watch: Watch) -> None:
    watch.fail_after = 0
    answer = post(edge)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_error"


def test_failure_before_the_first_token_of_a_stream_is_its_only_event(edge: Any, watch: Watch) -> None:
    watch.fail_after = 0
    answer = post(edge, stream=True)
    assert answer.status_code == 200 and answer.text.count("data: ") == 1
    assert json.loads(answer.text.removeprefix("data: "))["error"]["code"] == "engine_error"


def test_failure_within_the_answer(client: openai.OpenAI, edge: Any, watch: Watch) -> None:
    watch.fail_after = 2
    answer = post(edge, stream=True)
    *_, last = answer.text.split("\n\n")[:-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert answer.status_code == 200 and error["message"] == "the engine is tired" and error["type"] == "server_error"
    watch.tokens = 0
    with pytest.raises(openai.APIError, match="the engine is tired"):
        list(ask(client, stream=True))
    watch.fail_after = 10**9
    assert ask(client).choices[0].message.content, "the engine can be used again"


@pytest.mark.parametrize("stream", [False, True])
def test_unforeseen_failure_tells_no_details(edge: Any, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(ChatForm, "whole", broken)
    monkeypatch.setattr(ChatForm, "event", broken)
    answer = post(edge, stream=stream)
    assert "internal_error" in answer.text and "secret" not in answer.text
    assert answer.status_code == (200 if stream else 500)


# Clients that go away


def long_request(**fields: Any) -> bytes:
    """A raw request for an answer that the model would not end by itself."""
    no_end = {"0": -100, "1": -100, "2": -100}
    standard = {"messages": QUESTION, "max_tokens": 1500, "temperature": 0, "logit_bias": no_end}
    body = json.dumps({**standard, **fields}).encode()
    top = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return f"{top}Content-Type: application/json\r\n\r\n".encode() + body


def connected(edge: Any) -> socket.socket:
    parts = urlsplit(edge.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def free(edge: Any) -> None:
    """Returns when nobody asks for anything; fails when that takes a long time."""

    async def idle() -> None:
        while not edge.opened.node.core.idle:
            await asyncio.sleep(0.001)

    edge.run(idle)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ending", ["close", "half-close"])
def test_client_that_goes_away_while_tokens_come(edge: Any, watch: Watch, stream: bool, ending: str) -> None:
    with connected(edge) as sock:
        sock.sendall(long_request(stream=stream))
        assert watch.generating.wait(60)
        if ending == "half-close":
            sock.shutdown(socket.SHUT_WR)
            before = watch.tokens
            free(edge)
    if ending == "close":
        before = watch.tokens
        free(edge)
    assert watch.tokens < before + 50, "generation went on for a client that was gone"
    assert post(edge).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_goes_away_during_prefill(edge: Any, watch: Watch, stream: bool) -> None:
    with connected(edge) as sock:
        sock.sendall(long_request(stream=stream, messages=[{"role": "user", "content": "many words " * 800}]))
        assert watch.begun.wait(60)
    free(edge)
    assert watch.tokens == 0, "the whole prompt was computed for a client that was gone"
    assert post(edge).status_code == 200


def asgi_call(edge: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> Any:
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")], "root_path": "",
    }  # fmt: skip
    return create_app(edge.opened)(scope, receive, send)


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_goes_away_while_it_waits_for_its_turn(edge: Any, watch: Watch, stream: bool) -> None:
    body = json.dumps({"messages": QUESTION, "stream": stream}).encode()
    sent: list[Any] = []

    async def main() -> None:
        gone = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            if (message := next(messages, None)) is not None:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        async with edge.opened.node.core.paused():
            call = asyncio.ensure_future(asgi_call(edge, receive, send))
            asyncio.get_running_loop().call_soon(gone.set)
            await asyncio.wait_for(call, 30)

    edge.run(main)
    assert [message["type"] for message in sent] in ([], ["http.response.start"] * stream)
    assert not watch.begun.is_set()
    free(edge)


def test_client_that_takes_nothing_of_its_answer(edge: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MOST_STALL_S", 0.01)
    messages = iter([{"type": "http.request", "body": long_request(stream=True).partition(b"\r\n\r\n")[2]}])

    async def main() -> None:
        never = asyncio.Event()

        async def receive() -> Any:
            if (message := next(messages, None)) is not None:
                return message
            await never.wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await never.wait()

        await asyncio.wait_for(asgi_call(edge, receive, send), 30)

    edge.run(main)
    free(edge)
    assert watch.tokens < 500


def test_client_that_goes_away_before_its_request_is_whole(edge: Any, caplog: pytest.LogCaptureFixture) -> None:
    with connected(edge) as sock:
        sock.sendall(long_request()[:-10])
    assert post(edge).status_code == 200
    assert not caplog.records


# Keys


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/completions", "/nothing"])
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic one"])
def test_keys(edge: Any, path: str, header: str | None) -> None:
    async def main() -> None:
        transport = httpx2.ASGITransport(create_app(edge.opened, Access(Keys.of(("one", "another"), "ask"))))
        headers = {} if header is None else {"Authorization": header}
        async with httpx2.AsyncClient(transport=transport, base_url="http://edge", headers=headers) as client:
            answer = await client.get(path)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert (await client.get("/health")).status_code == (await client.get("/v1/health")).status_code == 200
            assert (await client.get(path, headers={"Authorization": "Bearer one"})).status_code != 401

    edge.run(main)


def test_model_that_cannot_be_loaded_keeps_the_server_from_starting(tmp_path: Any) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but nothing more")
    app = create_app(AsyncEdge(str(broken), folder=tmp_path))

    async def main() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        with pytest.raises(Exception, match=r"cannot load .*broken.gguf"):
            await app({"type": "lifespan"}, receive, send)
        return sent

    (message,) = asyncio.run(main())
    assert message["type"] == "lifespan.startup.failed"
