"""What is read of a request, and what is changed in it: its context and its slot, and nothing else."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.attach.asked import Asked, Spoken, read
from preread.errors import UsageError
from preread.values import ContextId

MODELS = frozenset({"small", "preread"})
TOKENS = np.array([5, 6, 7], np.int32)
SYSTEM = Spoken(ContextId("a" * 64), "manual", "chat", TOKENS, "You know the manual.")
TEXT = Spoken(ContextId("b" * 64), "story", "text", TOKENS, "Once upon a time")
USER = {"role": "user", "content": "Which port?"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _read(path: str, body: Any) -> Asked:
    asked = read(path, json.dumps(body).encode(), MODELS)
    assert asked is not None
    return asked


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=8).filter(lambda key: key not in ("context", "model")), JSON, max_size=5))
def test_a_request_without_a_context_stays_what_it_is(body: dict[str, Any]) -> None:
    asked = _read("/v1/chat/completions", body)
    assert asked.context is None and not asked.changed and asked.body == body
    assert json.loads(asked.placed(2).encoded()) == {**body, "id_slot": 2}


@given(
    st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(["/v1/x", "/props"])
)
def test_other_paths_and_other_bodies_are_left_to_the_server(data: bytes, path: str) -> None:
    assert read(path, data, MODELS) is None
    asked = read("/completion", data, MODELS)
    assert asked is None or isinstance(json.loads(data), dict)


def test_what_nests_too_deeply_is_left_to_the_server() -> None:
    assert read("/completion", b"[" * 100_000, MODELS) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
@pytest.mark.parametrize(
    "body", [{"context": "manual"}, {"model": "small@manual"}, {"model": "preread@manual", "context": "manual"}]
)
def test_a_context_is_named_in_its_field_or_behind_the_model(path: str, body: dict[str, Any]) -> None:
    asked = _read(path, {**body, "messages": [USER], "temperature": 0})
    assert asked.context == "manual" and asked.changed
    assert "context" not in asked.body and "@" not in asked.body.get("model", "")
    assert asked.body["messages"] == [USER] and asked.body["temperature"] == 0


def test_an_at_in_another_models_name_is_part_of_the_name() -> None:
    asked = _read("/v1/chat/completions", {"model": "team@other", "messages": [USER]})
    assert asked.context is None and not asked.changed and asked.body["model"] == "team@other"


def test_two_contexts_in_one_request_are_refused() -> None:
    with pytest.raises(UsageError, match="asks for context 'manual'"):
        _read("/completion", {"model": "small@manual", "context": "other"})


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (
            "/v1/chat/completions",
            {"messages": [USER]},
            {"messages": [{"role": "system", "content": SYSTEM.text}, USER]},
        ),
        ("/v1/messages", {"messages": [USER]}, {"system": SYSTEM.text, "messages": [USER]}),
        ("/v1/messages", {"system": "Be brief."}, {"system": f"{SYSTEM.text}\n\nBe brief."}),
        (
            "/v1/messages",
            {"system": [{"type": "text", "text": "x"}]},
            {"system": [{"type": "text", "text": SYSTEM.text}, {"type": "text", "text": "x"}]},
        ),
        ("/v1/responses", {"input": "Hi"}, {"instructions": SYSTEM.text, "input": "Hi"}),
        ("/v1/completions", {"prompt": "Hi"}, {"prompt": [5, 6, 7, "Hi"]}),
        ("/completion", {"prompt": [8, "Hi"]}, {"prompt": [5, 6, 7, 8, "Hi"]}),
        ("/completion", {"prompt": ["a", [8]]}, {"prompt": [[5, 6, 7, "a"], [5, 6, 7, 8]]}),
        ("/completion", {}, {"prompt": [5, 6, 7, ""]}),
    ],
)
def test_a_context_stands_in_front_of_what_is_asked(path: str, body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _read(path, body).about(SYSTEM).body == expected


def test_what_the_api_has_no_place_for_is_refused_with_what_to_do() -> None:
    chat = _read("/v1/chat/completions", {"messages": [USER]})
    with pytest.raises(UsageError, match="/v1/completions"):
        chat.about(TEXT)
    with pytest.raises(UsageError, match="/v1/completions"):
        chat.about(Spoken(SYSTEM.context, "manual", "chat", TOKENS, None))
    with pytest.raises(UsageError, match="a text or a list"):
        _read("/completion", {"prompt": {"prompt_string": "x"}}).about(SYSTEM)


@pytest.mark.parametrize(
    ("path", "body", "spoken"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "system", "content": " You know the manual.\n"}, USER]},
            SYSTEM,
        ),
        ("/v1/chat/completions", {"messages": [{"role": "developer", "content": SYSTEM.text}]}, SYSTEM),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "system", "content": [{"type": "text", "text": SYSTEM.text}]}]},
            SYSTEM,
        ),
        ("/v1/messages", {"system": SYSTEM.text}, SYSTEM),
        ("/v1/responses", {"instructions": SYSTEM.text}, SYSTEM),
        ("/completion", {"prompt": "Once upon a time there"}, TEXT),
        ("/completion", {"prompt": [5, 6, 7, 8]}, TEXT),
    ],
)
def test_a_prompt_that_begins_with_a_context_is_noticed(path: str, body: dict[str, Any], spoken: Spoken) -> None:
    asked = _read(path, body)
    assert asked.begins_with(spoken)
    assert not _read(path, {}).begins_with(spoken)
    other = Spoken(spoken.context, "x", spoken.form, np.array([5, 6, 8], np.int32), "Something else")
    assert not asked.begins_with(other)


@given(JSON, st.sampled_from(["/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion"]))
def test_whatever_stands_where_messages_stand_is_passed_over_or_refused(value: Any, path: str) -> None:
    for field in ("messages", "system", "instructions", "prompt", "input"):
        asked = _read(path, {field: value})
        asked.begins_with(SYSTEM)
        assert asked.begins in (True, False)
        try:
            json.loads(asked.about(SYSTEM).encoded())
        except UsageError:
            pass


def test_a_request_that_says_where_it_is_computed_is_left_alone() -> None:
    for own in ({"id_slot": 1}, {"cache_prompt": False}, {"lora": [{"id": 0, "scale": 1.0}]}):
        assert not _read("/completion", {"prompt": "x", **own}).reuses
    assert _read("/completion", {"prompt": "x", "cache_prompt": True}).reuses


def test_a_conversation_that_goes_on_is_told_from_one_that_begins() -> None:
    answered = [USER, {"role": "assistant", "content": "8000"}, USER]
    assert _read("/v1/chat/completions", {"messages": [USER]}).begins
    assert not _read("/v1/chat/completions", {"messages": answered}).begins
    assert not _read("/v1/responses", {"input": answered}).begins
