"""What answers say of how much was reused, in llama-server's own words, however they arrive."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.attach.reused import Reused

TIMINGS = {"cache_n": 1008, "prompt_n": 40, "prompt_ms": 400.5, "prompt_per_second": 99.87, "predicted_n": 7}


def _looked(data: bytes, size: int = 1 << 20) -> Reused:
    looked = Reused()
    for at in range(0, len(data), size):
        looked.feed(data[at : at + size])
    return looked


@pytest.mark.parametrize(
    "end",
    [
        {"timings": TIMINGS},
        {"usage": {"prompt_tokens": 1048, "prompt_tokens_details": {"cached_tokens": 1008}}},
        {"usage": {"input_tokens": 40, "cache_read_input_tokens": 1008}},
        {"response": {"usage": {"input_tokens_details": {"cached_tokens": 1008}}}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_each_api_says_how_many_tokens_were_reused(end: dict[str, object], stream: bool) -> None:
    text = json.dumps({"choices": [{"text": "x" * 100_000}], **end})
    data = f"data: {text}\n\ndata: [DONE]\n\n" if stream else text
    assert _looked(data.encode(), 4096).tokens == 1008


def test_how_fast_a_prompt_was_computed_is_told_of_long_ones_only() -> None:
    assert _looked(json.dumps({"timings": TIMINGS}).encode()).tokens_s == 99.87
    assert _looked(json.dumps({"timings": TIMINGS | {"prompt_n": 3}}).encode()).tokens_s is None


@given(st.text(), st.integers(1, 50))
def test_what_an_answer_says_is_not_taken_for_what_the_server_says(text: str, size: int) -> None:
    spoken = text + '{"timings": {"cache_n": 77, "prompt_n": 5}} "cached_tokens":9' + text
    looked = _looked(json.dumps({"content": spoken}).encode(), size)
    assert looked.tokens is None and looked.computed is None


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at(data: bytes) -> None:
    looked = _looked(data, 7)
    assert looked.tokens is None or looked.tokens >= 0
