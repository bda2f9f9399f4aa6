"""Decisions over real HTTP with a real model: OpenAI's own client, System One as others serve it, what is refused."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from preread.edge.decisions.labels import tokens_of
from preread.edge.decisions.question import INSTRUCTION
from preread.engine.base import Slice
from preread.engine.llamacpp import LlamaCpp
from preread.engine.marks import Prompt
from preread.engine.sampling import Sampling
from preread.errors import UsageError
from preread.fit.calibration import UNFITTED, Calibration, Scale

MODEL = "smollm2-135m-instruct"
STATE = "The package arrived with a broken screen. Ann from Leeds paid 300 pounds and wants her money back."
PREDICATE = {"type": "predicate", "name": "damaged", "instructions": "Does the customer report a damaged item?"}
CHOICE = {
    "type": "choice",
    "instructions": "Where does the customer live?",
    "choices": [{"value": "York"}, {"value": "Leeds", "description": "in the north"}, {"value": True}],
}
SCORE = {
    "type": "score",
    "name": "damage",
    "instructions": "How severe is the damage?",
    "levels": [{"label": "cosmetic"}, {"label": "broken"}],
}


@pytest.fixture(scope="module")
def client(edge: Any) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def _unfitted(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs this may have fitted the model."""
    monkeypatch.setattr(edge.opened.node, "calibration", UNFITTED)


def post(edge: Any, path: str, **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{edge.url}{path}", json=fields, trust_env=False, timeout=120)


def wait_for(true: Callable[[], bool]) -> None:
    """What an answer leaves is given back just after it was sent."""
    end_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_openais_client_gets_an_answer_to_each_kind_of_question(client: openai.OpenAI) -> None:
    decided = client.decisions.create(model=MODEL, input=STATE, questions=[PREDICATE, CHOICE, SCORE])
    damaged, lives, damage = decided.answers
    assert decided.model == MODEL
    assert damaged.type == "predicate" and damaged.name == "damaged" and 0 < damaged.probability < 1
    assert lives.type == "choice" and lives.name is None
    assert [each.value for each in lives.probabilities] == ["York", "Leeds", True]
    likeliest = max(lives.probabilities, key=lambda each: each.probability)
    assert (lives.choice, lives.confidence) == (likeliest.value, likeliest.probability)
    assert damage.type == "score" and damage.name == "damage"
    assert [(each.value, each.label) for each in damage.probabilities] == [(0, "cosmetic"), (1, "broken")]
    assert damage.score == pytest.approx(damage.probabilities[1].probability)
    for answer in (lives, damage):
        assert math.fsum(each.probability for each in answer.probabilities) == pytest.approx(1)
    assert decided.usage.output_tokens == 0 and decided.usage.total_tokens == decided.usage.input_tokens > 100
    assert decided.prompts == 2 + 3 + 2 and 0 < decided.label_mass <= 1


def test_a_context_is_shared_by_all_questions_and_nothing_of_them_is_kept(client: openai.OpenAI, edge: Any) -> None:
    edge.forget()
    questions = [{"type": "predicate", "instructions": f"The pump has code {code}."} for code in (114, 121, 7)]
    first = client.decisions.create(
        model=MODEL, input="", questions=questions, extra_body={"context": "manual", "permutations": 1}
    )
    timings = first.timings
    assert timings["context"] == "manual" and timings["way"] in ("streamed", "mixed") and first.prompts == 3
    assert first.usage.input_tokens_details.cached_tokens == timings["cache_n"]
    assert first.usage.input_tokens == timings["cache_n"] + timings["prompt_n"] > timings["context_n"] > 250
    again = client.decisions.create(
        model=f"{MODEL}@manual", input="", questions=questions, extra_body={"permutations": 1}
    )
    assert again.timings["way"] == "resident"
    assert again.usage.input_tokens_details.cached_tokens == again.timings["context_n"]
    for one, other in zip(first.answers, again.answers, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-3)  # what else is in a step may round
    wait_for(lambda: edge.opened.node.core.stats().cells["conversations"] == 0)


def test_an_input_that_begins_with_a_context_is_computed_behind_it(
    client: openai.OpenAI, edge: Any, manual: str
) -> None:
    spoken = [{"role": "system", "content": manual}, {"role": "user", "content": "Think of the pump."}]
    decided = client.decisions.create(model=MODEL, input=spoken, questions=[PREDICATE])
    assert decided.timings["context"] == "manual" and decided.usage.input_tokens_details.cached_tokens > 250


def test_the_odds_are_those_of_the_whole_prompt_by_itself(client: openai.OpenAI, smollm: Any) -> None:
    decided = client.decisions.create(
        model=MODEL, input=STATE, questions=[PREDICATE, SCORE], extra_body={"permutations": 1}
    )
    with closing(LlamaCpp.open(smollm, window_tokens=512)) as engine:
        shared = f"{STATE}\n\n{INSTRUCTION}\n\n"
        asked = f"{shared}{PREDICATE['instructions']}\nYes or No?"
        assert engine.chat is not None
        rendered = engine.chat.render([{"role": "user", "content": asked}])
        prompt = engine.tokenize_prompt(Prompt(f"{rendered.text}Answer:"))
        labels = tokens_of(("Yes", "No"), "<|im_start|>assistant\nAnswer:", engine.tokenize)
        reported = labels["Yes"] + labels["No"]
        with closing(engine.chooser(Sampling(max_tokens=1, reported=reported), prompt)) as choosing:
            engine.runner.arm()
            ((step,),) = engine.runner.run([Slice(engine.sequences[0], prompt, 0, choosing)])
    odds = dict(step.top)
    yes, no = (sum(math.exp(odds[id]) for id in labels[label]) for label in ("Yes", "No"))
    assert decided.answers[0].probability == pytest.approx(yes / (yes + no), abs=0.02)


def test_system_one_is_served_as_others_serve_it(edge: Any) -> None:
    told = post(
        edge,
        "/v1/systemone",
        model="any",
        state={"ticket": "I was charged twice. Please refund the extra payment."},
        questions={
            "route": {
                "type": "choice",
                "instructions": "Which team should handle this?",
                "criteria": {"billing": "Payments and refunds", "shipping": None},
            },
            "refund": {"type": "noul", "instructions": "Is a refund requested?", "criteria": {"true": "It is"}},
            "urgency": {"type": "score", "instructions": "How urgent is it?", "criteria": ["can wait", "now"]},
        },
    ).json()
    route, refund, urgency = (told["answers"][id] for id in ("route", "refund", "urgency"))
    assert route["type"] == "choice" and route["choice"] == max(route["probabilities"], key=route["probabilities"].get)
    assert list(route["probabilities"]) == ["billing", "shipping"] and 0 <= route["confidence"] <= 1
    assert refund.keys() == {"type", "noul"} and 0 < refund["noul"] < 1
    assert urgency["legend"] == {"0": "can wait", "1": "now"} and urgency["probabilities"].keys() == {"0", "1"}
    assert urgency["score"] == pytest.approx(urgency["probabilities"]["1"])
    assert told["usage"]["output_tokens"] == 0 and told["model"] == MODEL
    by_name = post(edge, "/systemone", state=None, context="manual", questions={"a": {**NOUL}}).json()
    assert by_name["timings"]["context"] == "manual"


def test_what_was_fitted_scales_what_is_told_and_is_said(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def decided() -> dict[str, Any]:
        return post(edge, "/v1/decisions", input=STATE, questions=[PREDICATE], permutations=1).json()  # type: ignore[no-any-return]

    plain = decided()
    scale = Scale(temperature=2.0, bias=0.5)
    monkeypatch.setattr(edge.opened.node, "calibration", Calibration({"predicate": scale}, 80))
    scaled = decided()
    odds = [math.log(p / (1 - p)) for p in (told["answers"][0]["probability"] for told in (plain, scaled))]
    assert odds[1] == pytest.approx((odds[0] - 0.5) / 2, abs=1e-2)
    assert plain["calibration"] == {"fitted_on": 0, "temperature": {}, "bias": {}}
    assert scaled["calibration"] == {"fitted_on": 80, "temperature": {"predicate": 2.0}, "bias": {"predicate": 0.5}}


NOUL = {"type": "noul", "instructions": "Has the pump a code?"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [{**PREDICATE, "instructions": " "}]}, "questions[0].instructions"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}] * 2}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": str(n)} for n in range(27)]}]}, "questions[0].choices"),
        ({"questions": [{**SCORE, "type": "box"}]}, "questions[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input[0].call_id"),
        ({"stream": True}, "stream"),
        ({"permutations": 0}, "permutations"),
        ({"context": "absent"}, "context"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused_by_name(edge: Any, fields: dict[str, Any], param: str) -> None:
    refused = post(edge, "/v1/decisions", **{"input": STATE, "questions": [PREDICATE], **fields})
    assert refused.status_code in (400, 404)
    assert refused.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"type": "choice", "instructions": "?", "criteria": ["a", "b"]}, "questions.a.criteria"),
        ({"type": "score", "instructions": "?", "criteria": ["a"]}, "questions.a.criteria"),
        ({"type": "noul", "instructions": "?", "criteria": {"maybe": "x"}}, "questions.a.criteria"),
        ({"type": "noul", "instructions": "?", "levels": 3}, "questions[...]"),
    ],
)
def test_system_one_refuses_by_name_too(edge: Any, asked: dict[str, Any], param: str) -> None:
    refused = post(edge, "/v1/systemone", state="x", questions={"a": asked})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param
    refused = post(edge, "/v1/systemone", state="x", images=["…"], questions={"a": NOUL})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "images"


def test_more_prompts_than_one_request_may_have_are_refused(edge: Any) -> None:
    choices = [{"value": str(n)} for n in range(26)]
    asked = [{**CHOICE, "choices": choices}] * 40
    refused = post(edge, "/v1/decisions", input=STATE, questions=asked)
    assert refused.status_code == 400 and "1040 prompts" in refused.json()["error"]["message"]


def test_what_looks_like_a_control_token_in_a_question_is_text(edge: Any) -> None:
    told = [
        post(edge, "/v1/decisions", input=state, questions=[{**PREDICATE, "instructions": text}], permutations=1).json()
        for state, text in ((STATE, "Broken?<|im_end|>"), (f"{STATE}<|im_end|>", "Broken?"), (STATE, "Broken?"))
    ]
    plain = told[2]["usage"]["input_tokens"]
    assert all(each["usage"]["input_tokens"] > plain + 2 for each in told[:2]), "it was read as one token"


def test_a_label_counts_only_as_one_token() -> None:
    vocabulary = {"a": 0, "b": 1, " ": 2, "Yes": 3, "yes": 4, "A": 5, " A": 6, ":": 7}

    def tokenize(text: str) -> Any:
        ids = []
        while text:
            piece = max((piece for piece in vocabulary if text.startswith(piece)), key=len, default=None)
            if piece is None:
                ids.append(99)
                text = text[1:]
                continue
            ids.append(vocabulary[piece])
            text = text[len(piece) :]
        return np.array(ids, np.int32)

    assert tokens_of(("Yes", "A"), ":", tokenize) == {"Yes": (3, 4), "A": (5, 6)}
    with pytest.raises(UsageError, match="'No' is not one token"):
        tokens_of(("No",), ":", tokenize)


def test_bodies_that_are_none_are_refused(edge: Any) -> None:
    for path in ("/v1/decisions", "/v1/systemone"):
        headers = {"Content-Type": "application/json"}
        refused = httpx2.post(f"{edge.url}{path}", content=b"{", headers=headers, trust_env=False, timeout=30)
        assert refused.status_code == 400 and "not JSON" in json.loads(refused.content)["error"]["message"]
