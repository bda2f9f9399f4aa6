"""How tokens are chosen: what is used where nothing is said, and that each parameter does what it is for."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import USUAL, Sampling, log_probabilities, usual

PROMPT = np.arange(500, 540, dtype=np.int32)
HOT = Sampling(max_tokens=8, temperature=1.5, seed=3)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, threads=1, scored_tokens=64)) as engine:
        yield engine


def generated(engine: LlamaCpp, sampling: Sampling) -> list[int]:
    return [step.token for step in engine.session.generate(PROMPT, sampling, reuse=0)]


def test_what_is_usual_is_what_the_models_file_recommends_as_far_as_it_makes_sense() -> None:
    assert usual(lambda key: None) == USUAL == Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
    given = {"temp": "0.3", "top_k": "20", "penalty_repeat": "1.05", "penalty_last_n": "128", "mirostat": "1"}
    found = usual(lambda key: given.get(key.removeprefix("general.sampling.")))
    wanted = {"temperature": 0.3, "top_k": 20, "repeat_penalty": 1.05, "repeat_last_n": 128, "mirostat": 1}
    assert found == replace(USUAL, **wanted)  # type: ignore[arg-type]
    for nonsense in ("", "hot", "-1", "nan", "inf", "1e400"):
        assert usual(lambda key, value=nonsense: value) == USUAL  # type: ignore[misc]


def test_same_seed_same_tokens_whatever_chooses(engine: LlamaCpp) -> None:
    ways: tuple[Sampling, ...] = (
        replace(HOT, typical_p=0.7),
        replace(HOT, top_n_sigma=2.0),
        replace(HOT, top_k=3),
        replace(HOT, top_k=3, xtc_probability=1.0, xtc_threshold=0.01),
        replace(HOT, dynatemp_range=1.0),
        replace(HOT, mirostat=1, mirostat_tau=2.0),
        replace(HOT, mirostat=2, mirostat_tau=6.0),
    )
    answers = [generated(engine, way) for way in (HOT, *ways)]
    assert answers == [generated(engine, way) for way in (HOT, *ways)]
    assert len({*map(tuple, answers)}) == len(answers), "each way makes a difference"


def test_a_repeat_penalty_counts_prompt_and_answer(engine: LlamaCpp) -> None:
    bias = tuple((token, 100.0) for token in (*map(int, PROMPT[-2:]), 700, 701))
    only = Sampling(max_tokens=4, logit_bias=bias)
    assert max(Counter(generated(engine, only)).values()) > 1
    penalised = generated(engine, replace(only, repeat_penalty=10.0))
    assert sorted(penalised[:2]) == [700, 701], "those of the prompt come last"
    assert sorted(generated(engine, replace(only, repeat_penalty=10.0, repeat_last_n=0))) == sorted(
        generated(engine, only)
    )


def test_an_answer_does_not_end_before_its_least_length(engine: LlamaCpp) -> None:
    end = int(engine._loaded.ends[0])
    ending = Sampling(max_tokens=8, logit_bias=((end, 1000.0),), top_logprobs=0)
    (step,) = engine.session.generate(PROMPT, ending, reuse=0)
    assert step.end
    steps = list(engine.session.generate(PROMPT, replace(ending, min_tokens=5), reuse=0))
    assert [step.end for step in steps] == [False] * 5 + [True]
    assert all(np.isfinite(step.logprob or 0.0) for step in steps)


def test_a_prompts_own_tokens_are_as_likely_as_scoring_says(engine: LlamaCpp) -> None:
    sampling = Sampling(max_tokens=2, top_logprobs=2, prompt_logprobs=True)
    *given, first, _ = engine.session.generate(PROMPT, sampling, reuse=0)
    assert [step.token for step in given] == list(PROMPT) and all(step.given for step in given) and not first.given
    assert given[0].logprob is None and given[0].top == ()
    logits = engine.session.score(PROMPT, reuse=0)
    for step, row in zip(given[1:], logits, strict=False):
        logprob, top = log_probabilities(row, step.token, 2)
        assert step.logprob == pytest.approx(logprob, abs=0.05) and step.top[0][0] == top[0][0]
    plain = next(engine.session.generate(PROMPT, replace(sampling, prompt_logprobs=False), reuse=0))
    assert first.token == plain.token
