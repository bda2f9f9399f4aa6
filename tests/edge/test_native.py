"""llama-server's own /completion and /infill, and `suffix`: what a model is shown, and what comes back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.edge.app import create_app
from preread.edge.edge import AsyncEdge
from preread.edge.forms.form import Head
from preread.edge.forms.native import NativeForm
from preread.edge.native import read_infill, read_native
from preread.edge.openai import BadRequest, Bounds, read_completion
from preread.edge.request import Done, Piece, Timings, TokenOdds
from preread.engine.infill import FimTokens, Gap, fim_prompt
from preread.testing.cloud import serving

BOUNDS = Bounds(window_tokens=2048, vocab_size=1000, answer_tokens=500, fills=True)
WITH_FILES, BARE = FimTokens(-1, -2, -3, -4, -5), FimTokens(-1, -2, -3)
NAMES = {-1: "<PRE>", -2: "<SUF>", -3: "<MID>", -4: "<REP>", -5: "<SEP>"}


def shown(before: str, gap: Gap, fim: FimTokens) -> str:
    """What a model is shown, as text: each character is a token."""
    ids = fim_prompt(before, gap, fim, lambda text: np.array([ord(c) for c in text], np.int32))
    return "".join(NAMES[id] if id < 0 else chr(id) for id in ids.tolist())


def test_a_gap_is_shown_as_models_are_taught() -> None:
    assert shown("a", Gap("c"), BARE) == "<PRE>a<SUF>c<MID>"
    assert shown("", Gap("", begun="b"), WITH_FILES) == "<PRE><SUF><MID>b"
    files = (("x.py", "X"), ("y.py", "Y"))
    assert shown("a", Gap("c", files), BARE) == "X\nY\n<PRE>a<SUF>c<MID>"
    assert shown("a", Gap("c", files), WITH_FILES) == (
        "<REP>myproject\n<SEP>x.py\nX\n<SEP>y.py\nY\n<SEP>filename\n<PRE>a<SUF>c<MID>"
    )


def test_a_suffix_is_a_gaps() -> None:
    (ask,) = read_completion(json.dumps({"prompt": "a", "suffix": "c"}).encode(), BOUNDS, 7).asks
    assert (ask.prompt, ask.gap) == ("a", Gap("c"))
    body = {"input_prefix": "a", "input_suffix": "c", "prompt": "b", "input_extra": [{"filename": "x", "text": "X"}]}
    (ask,) = read_infill(json.dumps({**body, "n_predict": 3}).encode(), BOUNDS, 7).asks
    assert (ask.prompt, ask.gap, ask.sampling.max_tokens) == ("a", Gap("c", (("x", "X"),), "b"), 3)
    assert read_infill(b"{}", BOUNDS, 7).asks[0].sampling.max_tokens == 500
    assert read_native(b'{"prompt": "a"}', BOUNDS, 7).asks[0].sampling.max_tokens == 500


@pytest.mark.parametrize(
    ("fields", "param"), [({"echo": True}, "echo"), ({"prompt": [1, 2]}, "prompt"), ({"prompt": ["a", "b"]}, "prompt")]
)
def test_what_a_gap_cannot_have_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read_completion(json.dumps({"prompt": "a", "suffix": "c", **fields}).encode(), BOUNDS, 7)
    assert refusal.value.param == param


def test_models_that_cannot_fill_in_say_so() -> None:
    bounds = Bounds(2048, 1000, 500)
    for read, param in ((read_completion, "suffix"), (read_infill, "input_suffix")):
        with pytest.raises(BadRequest, match="filling in the middle") as refusal:
            read(b'{"prompt": "a", "suffix": "c", "input_suffix": "c"}', bounds, 7)
        assert refusal.value.param == param


NAMED = st.sampled_from(["input_prefix", "input_suffix", "input_extra", "prompt", "n_predict", "n"])
VALUES = st.none() | st.integers(-3, 300) | st.text(max_size=5) | st.lists(st.text(max_size=3))


@given(st.dictionaries(NAMED, VALUES))
def test_every_infill_is_a_call_or_refused(fields: dict[str, Any]) -> None:
    try:
        assert read_infill(json.dumps(fields).encode(), BOUNDS, 7).asks[0].gap is not None
    except BadRequest:
        pass


def test_answers_are_llama_servers() -> None:
    call = read_native(b'{"prompt": ["a", "b"], "stop": "END"}', BOUNDS, 7)
    form, done = NativeForm(Head("cmpl-1", 0, "tiny", call)), Done("stop", 9, Timings(predicted_n=2, cache_n=4), "END")
    first, second = json.loads(form.whole([([Piece("x"), Piece("\ny")], done), ([], Done("length", 9, Timings()))]))
    assert (first["content"], first["index"], first["stop"], first["has_new_line"]) == ("x\ny", 0, True, True)
    assert (first["stop_type"], first["stopping_word"], second["stop_type"]) == ("word", "END", "limit")
    assert (first["tokens_evaluated"], first["tokens_predicted"], first["tokens_cached"]) == (9, 2, 4)
    assert second["generation_settings"]["max_tokens"] == 500 and not second["has_new_line"]
    told = form.event(1, Piece("x")) + form.event(1, done)
    part, last = [json.loads(line.removeprefix("data: ")) for line in told.decode().removesuffix("\n\n").split("\n\n")]
    assert (part["content"], part["stop"], last["stop"], last["index"]) == ("x", False, True, 1)
    assert "completion_probabilities" not in first | part


def test_how_likely_tokens_were_is_told_as_llama_server_does() -> None:
    call = read_native(b'{"prompt": "a", "n_probs": 2}', BOUNDS, 7)
    assert call.asks[0].sampling.top_logprobs == 2
    assert read_native(b'{"prompt": "a", "n_probs": 0}', BOUNDS, 7).asks[0].sampling.top_logprobs is None
    form, odds = (
        NativeForm(Head("cmpl-1", 0, "tiny", call)),
        TokenOdds(7, "x", b"x", -0.5, (TokenOdds(9, "y", b"y", -1),)),
    )
    one = {"id": 7, "token": "x", "bytes": [120], "logprob": -0.5}
    told = [one | {"top_logprobs": [{"id": 9, "token": "y", "bytes": [121], "logprob": -1}]}]
    whole = json.loads(form.whole([([Piece("x", (odds,))], Done("stop", 9, Timings()))]))
    assert whole["completion_probabilities"] == told
    part = json.loads(form.event(0, Piece("x", (odds,))).removeprefix(b"data: "))
    assert part["completion_probabilities"] == told


@pytest.fixture(scope="module")
def coder(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(create_app(AsyncEdge(str(qwen), window_tokens=512, folder=tmp_path_factory.mktemp("edge")))) as url:
        yield url


@pytest.mark.long
@pytest.mark.models
def test_a_coder_fills_in(coder: str) -> None:
    before, after = "def area(width, height):\n    return ", "\n\nprint(area(3, 4))  # 12\n"

    def post(path: str, **body: Any) -> Any:
        asked = {"temperature": 0, "max_tokens": 6, "stop": "\n", **body}
        return httpx2.post(f"{coder}{path}", json=asked, trust_env=False, timeout=120).json()

    filled = post("/v1/completions", prompt=before, suffix=after)["choices"][0]["text"]
    assert filled.strip() == "width * height"
    infill = post("/infill", input_prefix=before, input_suffix=after)
    assert infill["content"] == filled and infill["stop"]
    looks = {"filename": "x.py", "text": "<|fim_suffix|> is text here"}
    begun = post("/infill", input_prefix=before, input_suffix=after, prompt="width *", input_extra=[looks])
    assert begun["content"].strip() == "height"


def test_llama_servers_own_completion_is_ours(edge: Any) -> None:
    def post(path: str, **body: Any) -> httpx2.Response:
        asked = {"prompt": "The capital of France is", "temperature": 0, "n_predict": 4, **body}
        return httpx2.post(f"{edge.url}{path}", json=asked, trust_env=False, timeout=60)

    whole = post("/completion").json()
    assert whole["content"] == post("/v1/completions").json()["choices"][0]["text"]
    assert whole["tokens_predicted"] == 4 and whole["stop_type"] == "limit"
    lines = [line for line in post("/completion", stream=True).text.split("\n\n") if line.startswith("data: ")]
    told = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(each["content"] for each in told) == whole["content"]
    assert [each["stop"] for each in told] == [False] * (len(told) - 1) + [True]
    likely = post("/completion", n_probs=3).json()["completion_probabilities"]
    assert "".join(each["token"] for each in likely) == whole["content"]
    assert all(each["top_logprobs"][0]["id"] == each["id"] and len(each["top_logprobs"]) == 3 for each in likely)
    without = post("/completion", logit_bias=[[likely[0]["id"], False]]).json()["content"]
    assert not without.startswith(likely[0]["token"])
    refused = post("/infill", input_prefix="a")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "input_suffix"
