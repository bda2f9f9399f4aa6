"""What cannot fit is refused before it is rendered or tokenised: by characters, messages and tokens."""

import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.edge.bounds import MOST_STOP_CHARACTERS, check_size, most_body_bytes
from preread.edge.openai import Bounds, read_chat
from preread.edge.request import Ask
from preread.errors import TooLong, UsageError

WINDOW, CHARACTERS = 100, 5
BOUNDS = Bounds(WINDOW, vocab_size=1000, answer_tokens=10)


def chat(*contents: str) -> Ask:
    return Ask(messages=tuple({"role": "user", "content": content} for content in contents))


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (chat("x" * 501), "501 characters"),
        (chat("x" * 300, "x" * 300), "600 characters"),
        (chat(*[""] * 100), "100 messages"),
        (Ask(prompt="x" * 501), "501 characters"),
        (Ask(prompt=(1,) * 100), "100 tokens"),
    ],
)
def test_what_cannot_fit_is_too_long(ask: Ask, what: str) -> None:
    with pytest.raises(TooLong, match=f"maximum context length is 100 tokens.*{what}"):
        check_size(ask, WINDOW, CHARACTERS)


@pytest.mark.parametrize("ask", [chat("x" * 500), chat(*[""] * 99), Ask(prompt="x" * 500), Ask(prompt=(1,) * 99)])
def test_what_may_fit_is_let_through(ask: Ask) -> None:
    check_size(ask, WINDOW, CHARACTERS)


def test_long_stop_texts_are_refused() -> None:
    check_size(Ask(prompt="a", stop=("x" * MOST_STOP_CHARACTERS,)), WINDOW, CHARACTERS)
    with pytest.raises(UsageError, match="stop text has at most 1000 characters"):
        check_size(Ask(prompt="a", stop=("ok", "x" * (MOST_STOP_CHARACTERS + 1))), WINDOW, CHARACTERS)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_body_of_what_fits_is_within_its_bound(contents: list[str]) -> None:
    ask = chat(*contents)
    try:
        check_size(ask, WINDOW, CHARACTERS)
    except TooLong:
        return
    body = json.dumps({"messages": ask.messages})
    assert len(body) <= most_body_bytes(WINDOW, CHARACTERS)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "a" * 500_000}]},
        {"messages": [{"role": "user", "content": "a"}] * 9000},
    ],
    ids=["letters", "messages"],
)
def test_nothing_is_tokenised_of_what_cannot_fit(
    edge: Any, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = edge.opened.node.engine
    tokenised: list[str] = []
    monkeypatch.setattr(engine, "tokenize_prompt", tokenised.append)
    answer = httpx2.post(f"{edge.url}/v1/chat/completions", json=fields, trust_env=False, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 2048 tokens" in error["message"] and not tokenised


def test_of_what_is_far_too_long_only_a_beginning_is_tokenised(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, read = edge.opened.node.engine, [0]
    tokenize = engine.tokenize

    def counted(text: str, **how: bool) -> Any:
        read[0] += len(text)
        return tokenize(text, **how)

    monkeypatch.setattr(engine, "tokenize", counted)
    fields = {"messages": [{"role": "user", "content": "b " * 40_000}]}
    answer = httpx2.post(f"{edge.url}/v1/chat/completions", json=fields, trust_env=False, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert read[0] < 40_000, "all of it was read"


def test_more_messages_than_a_window_holds_are_not_even_read() -> None:
    unreadable = b'{"messages": [' + b",".join([b'{"role": 1}'] * WINDOW) + b"]}"
    with pytest.raises(TooLong, match="100 messages"):
        read_chat(unreadable, BOUNDS, 0)


def test_what_a_text_says_of_roles_is_not_counted() -> None:
    said = json.dumps({"messages": [{"role": "user", "content": '{"role": "user"}' * WINDOW}]}).encode()
    assert read_chat(said, BOUNDS, 0).asks[0].messages is not None
