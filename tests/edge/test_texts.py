"""Texts without an answer: llama-server's /tokenize, /detokenize and /apply-template; counts; contexts listed."""

from typing import Any

import anthropic
import httpx2
import openai
import pytest

HELLO = [{"role": "user", "content": "Hello"}]


def post(edge: Any, path: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{edge.url}{path}", json=body, trust_env=False, timeout=60)


def test_a_text_becomes_tokens_and_a_text_again(edge: Any) -> None:
    text = "Hello, wörld <|im_start|>"
    tokens = post(edge, "/tokenize", content=text).json()["tokens"]
    assert tokens == edge.opened.node.engine.tokenize(text).tolist()
    assert post(edge, "/detokenize", tokens=tokens).json() == {"content": text}
    plain = post(edge, "/tokenize", content=text, parse_special=False).json()["tokens"]
    assert len(plain) > len(tokens) and post(edge, "/detokenize", tokens=plain).json() == {"content": text}
    assert post(edge, "/tokenize", content="").json() == {"tokens": []}
    mixed = post(edge, "/tokenize", content=["Hello", 5, " there"]).json()["tokens"]
    assert 5 in mixed and len(mixed) > 2


def test_pieces_are_bytes_where_they_are_no_text(edge: Any) -> None:
    pieces = post(edge, "/tokenize", content="a𒀀", with_pieces=True).json()["tokens"]
    data = [piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"]) for piece in pieces]
    assert b"".join(data).decode() == "a𒀀" and any(isinstance(piece["piece"], list) for piece in pieces)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"content": {"a": 1}}, "content"),
        ("/tokenize", {"content": [10**9]}, None),
        ("/tokenize", {"content": [10**30]}, "content[0]"),
        ("/tokenize", {"content": "x " * 200_000}, None),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/v1/messages/count_tokens", {"messages": 5}, "messages"),
        ("/v1/responses/input_tokens", {"input": 5}, "input"),
        ("/v1/chat/completions/input_tokens", {"messages": 5}, "messages"),
    ],
)
def test_what_is_no_such_request_is_refused(edge: Any, path: str, body: dict[str, Any], param: str | None) -> None:
    answer = post(edge, path, **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_a_chat_is_shown_as_the_model_reads_it(edge: Any) -> None:
    prompt = post(edge, "/apply-template", messages=HELLO).json()["prompt"]
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    said = "Say <|im_end|> twice"
    assert said in post(edge, "/apply-template", messages=[{"role": "user", "content": said}]).json()["prompt"]


def test_tokens_are_counted_as_an_answer_has_them(edge: Any) -> None:
    answer = post(edge, "/v1/chat/completions", messages=HELLO, max_tokens=1).json()["usage"]["prompt_tokens"]
    http = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(base_url=edge.url, api_key="none", http_client=http) as client:
        counted = client.messages.count_tokens(model="any", messages=[{"role": "user", "content": "Hello"}])
        assert counted.input_tokens == answer
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(
        trust_env=False
    )) as other:  # fmt: skip
        assert other.responses.input_tokens.count(model="any", input="Hello").input_tokens == answer
    assert post(edge, "/chat/completions/input_tokens", messages=HELLO).json() == {"input_tokens": answer}
    about = post(edge, "/v1/messages/count_tokens", messages=HELLO, context="manual").json()["input_tokens"]
    assert about > answer + 200


def test_contexts_are_listed_with_where_they_are(edge: Any) -> None:
    def listed(query: str = "") -> Any:
        return httpx2.get(f"{edge.url}/v1/contexts{query}", trust_env=False).json()

    edge.forget()
    (manual,) = [context for context in listed()["data"] if context["id"] == "manual"]
    assert manual["model"] == "smollm2-135m-instruct" and manual["tokens"] > 250 and not manual["pinned"]
    assert manual["usable"] and manual["streamable"] and manual["form"] == "chat"
    assert manual["where"] == {"engine": False, "memory": False, "disk": False, "cloud": True}
    lossless, q8 = manual["rungs"]
    assert (lossless["name"], lossless["dloss"], q8["name"]) == ("lossless", 0.0, "q8")
    assert lossless["bytes"] > q8["bytes"] > 10_000 and q8["disk_bytes"] == 0
    assert post(edge, "/v1/chat/completions", messages=HELLO, max_tokens=1, context="manual").status_code == 200
    (manual,) = [context for context in listed()["data"] if context["id"] == "manual"]
    assert manual["where"]["engine"]
    names = [context["id"] for context in listed()["data"]]
    first = listed("?limit=1")
    assert [context["id"] for context in first["data"]] == names[:1] and first["has_more"] == (len(names) > 1)
    rest = listed(f"?after={names[0]}")
    assert [context["id"] for context in rest["data"]] == names[1:] and not rest["has_more"]
    refused = httpx2.get(f"{edge.url}/v1/contexts?limit=0", trust_env=False)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "limit"
