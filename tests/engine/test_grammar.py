"""Answers that have to have a form: what may come next, what comes, and that no grammar keeps the engine for itself."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.engine.grammar import MOST_BYTES, Grammar, of_choice, of_schema
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampled, Sampling
from preread.errors import UsageError

PROMPT = np.arange(500, 540, dtype=np.int32)
CAT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["soft", "loud"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, threads=1, scored_tokens=64)) as engine:
        yield engine


def answer(engine: LlamaCpp, grammar: Grammar, **sampling: Any) -> tuple[str, list[Sampled]]:
    """What a model of random weights says, up to where it ends."""
    given: dict[str, Any] = {"max_tokens": 200, "grammar": grammar, **sampling}
    steps: list[Sampled] = []
    for step in engine.session.generate(PROMPT, Sampling(**given), reuse=0):
        steps.append(step)
        if step.last or step.end:
            break
    return b"".join(step.piece for step in steps).decode(), steps


def fits(engine: LlamaCpp, grammar: Grammar, text: str) -> bool:
    """Whether a text is an answer of this form."""
    constraint = engine.grammars.constraint(grammar)
    for token in engine.tokenize(text, special=False).tolist():
        if token not in constraint.allowed():
            return False
        constraint.take(token)
    return constraint.complete or bool(np.isin(constraint.allowed(), engine._loaded.ends).any())


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_model_that_knows_nothing_says_what_its_schema_wants(engine: LlamaCpp, temperature: float) -> None:
    text, steps = answer(engine, of_schema(CAT, lenient=False), temperature=temperature, seed=3)
    cat = json.loads(text)
    assert set(cat) == {"name", "age", "tags"} and isinstance(cat["name"], str) and isinstance(cat["age"], int)
    assert set(cat["tags"]) <= {"soft", "loud"}
    assert steps[-1].last and not steps[-1].end, "nothing can follow: no end has to be computed"


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (of_choice(["yes", 'no "never"']), ["yes", 'no "never"'], ["maybe", "", "yesyes"]),
        (Grammar("regex", r"[A-C]\d{2}"), ["A12"], ["D12", "A1"]),
        (Grammar("gbnf", 'root ::= "a" ("," "b")*'), ["a", "a,b,b"], ["b", "a,"]),
        (Grammar("any", 'root ::= "x" | "y"'), ["x"], ["z"]),
        (Grammar("any", 'start: "x" | "y"'), ["y"], ["z"]),
        (of_schema({"type": "integer", "minimum": 3, "maximum": 7}, lenient=False), ["3", "7"], ["8", "2", "33"]),
        (of_schema(True, lenient=False), ['{"a": [1, null]}', "3"], ["a"]),
    ],
)
def test_what_fits_a_grammar(engine: LlamaCpp, grammar: Grammar, good: list[str], bad: list[str]) -> None:
    assert all(fits(engine, grammar, text) for text in good)
    assert not any(fits(engine, grammar, text) for text in bad)
    assert answer(engine, grammar)[0] and fits(engine, grammar, answer(engine, grammar, max_tokens=400)[0])


def test_every_way_to_choose_keeps_to_the_grammar(engine: LlamaCpp) -> None:
    grammar = of_choice(["alpha", "beta", "gamma", "delta"])
    ways: tuple[dict[str, Any], ...] = (
        {"typical_p": 0.5},
        {"top_k": 1},
        {"mirostat": 1},
        {"mirostat": 2},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"frequency_penalty": 2.0, "repeat_penalty": 2.0},
        {"logit_bias": ((40, 100.0),)},
        {"min_tokens": 50},
    )
    for way in ways:
        for seed in range(3):
            said, _ = answer(engine, grammar, temperature=2.0, seed=seed, **way)
            assert said in ("alpha", "beta", "gamma", "delta"), way
    seen = {answer(engine, grammar, temperature=5.0, seed=seed)[0] for seed in range(30)}
    assert len(seen) > 1, "it is still the model that chooses"


def test_the_likeliest_token_that_may_come_comes_and_its_odds_are_the_models(engine: LlamaCpp) -> None:
    free = next(iter(engine.session.generate(PROMPT, Sampling(max_tokens=1, top_logprobs=20), reuse=0)))
    grammar = of_choice([engine.piece(token).decode(errors="ignore") or "x" for token, _ in free.top[5:9]])
    _, steps = answer(engine, grammar, top_logprobs=20)
    assert steps[0].top == free.top and steps[0].logprob is not None
    assert steps[0].logprob <= free.top[0][1]


def test_what_nothing_else_can_follow_is_told_ahead_and_comes(engine: LlamaCpp) -> None:
    _, steps = answer(engine, of_schema(CAT, lenient=False), seed=1)
    forced = [step.forced for step in steps]
    assert any(len(each) > 1 for each in forced)
    for (ahead, _), (_, after) in pairwise(zip(forced, steps, strict=True)):
        assert not ahead or after.token == ahead[0]


@pytest.mark.parametrize("most", [40, 100])
def test_json_that_would_be_cut_off_is_brought_to_its_end(engine: LlamaCpp, most: int) -> None:
    grammar = of_schema({**CAT, "properties": {**CAT["properties"], "tags": {"type": "array"}}}, lenient=False)
    for seed in range(3):
        text, steps = answer(engine, grammar, temperature=1.0, seed=seed, max_tokens=most)
        assert set(json.loads(text)) == {"name", "age", "tags"} and len(steps) <= most
    many = {"type": "array", "items": {**CAT, "additionalProperties": True}}
    text, steps = answer(engine, of_schema(many, lenient=False), temperature=1.0, seed=most, max_tokens=most)
    assert isinstance(json.loads(text), list) and len(steps) <= most
    text, _ = answer(engine, of_schema({"type": "integer"}, lenient=False), temperature=1.0, max_tokens=most)
    assert isinstance(json.loads(text), int)
    text, _ = answer(engine, replace(grammar, closes=False), max_tokens=12)
    with pytest.raises(ValueError):
        json.loads(text)


HOSTILE: dict[str, Callable[[], Grammar]] = {
    "nested rules": lambda: Grammar("gbnf", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
    "no such rule": lambda: Grammar("gbnf", "root ::= other"),
    "no root": lambda: Grammar("gbnf", 'other ::= "a"'),
    "no grammar": lambda: Grammar("gbnf", "((((("),
    "too long for GBNF": lambda: Grammar("gbnf", 'root ::= "' + "a" * 40_000 + '"'),
    "too long": lambda: Grammar("lark", 'start: "' + "a" * MOST_BYTES + '"'),
    "nested regex": lambda: Grammar("regex", "(" * 5000 + "a" + ")" * 5000),
    "no regex": lambda: Grammar("regex", "("),
    "look-ahead": lambda: Grammar("regex", "a(?=b)"),
    "nested schema": lambda: Grammar("json", '{"items":' * 20_000 + "{}" + "}" * 20_000),
    "a schema of somebody else's": lambda: of_schema({"$ref": "https://example.com/schema.json"}, lenient=False),
    "what nothing fits": lambda: of_schema({"type": "string", "enum": []}, lenient=False),
    "a keyword that cannot be enforced": lambda: of_schema({"type": "array", "uniqueItems": True}, lenient=False),
    "no JSON": lambda: Grammar("json", "{"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_grammar_that_cannot_be_used_is_the_callers_fault(engine: LlamaCpp, name: str) -> None:
    with pytest.raises(UsageError, match="grammar of the answer") as refusal:
        engine.grammars.check(HOSTILE[name]())
    assert len(str(refusal.value)) < 500


def test_a_keyword_that_cannot_be_enforced_may_be_passed_over(engine: LlamaCpp) -> None:
    engine.grammars.check(of_schema({"type": "array", "uniqueItems": True}, lenient=True))


COSTLY = {
    "ambiguous": "start: a a a a a a a a\na: (/[a-z]*/ /[a-z]*/ /[a-z]*/ /[a-z]*/ /[a-z]*/ /[a-z]*/)*",
    "repeats of repeats": 'start: (("a" | "aa"){1,500}){1,500}',
    "many states": "start: /(.*a.{60}){3}/",
    "long texts": 'start: "a"{1,1000000}',
    "one's own beginning": 'start: start "a" | "a"',
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_grammar_ends_its_own_answer_at_most(engine: LlamaCpp, name: str) -> None:
    try:
        constraint = engine.grammars.constraint(Grammar("lark", COSTLY[name]))
    except UsageError:
        return
    for _ in range(50):
        ids = constraint.allowed()
        if not len(ids):
            assert constraint.failure or constraint.complete
            return
        constraint.take(int(ids[len(ids) // 2]))


def test_an_answer_whose_grammar_takes_too_much_fails_alone(engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    from preread.engine.grammar import Constraint

    monkeypatch.setattr(Constraint, "allowed", lambda self: np.empty(0, np.intp))
    monkeypatch.setattr(Constraint, "failure", "it took too much")
    _, steps = answer(engine, of_choice(["yes"]))
    assert [(step.failure, step.end) for step in steps] == [("it took too much", True)]


@settings(max_examples=50, deadline=None)
@given(st.text(), st.sampled_from(["json", "regex", "gbnf", "lark", "any"]))
def test_any_text_is_a_grammar_or_refused(engine: LlamaCpp, text: str, kind: Any) -> None:
    try:
        allowed = engine.grammars.constraint(Grammar(kind, text)).allowed()
    except UsageError as refused:
        assert str(refused)
    else:
        assert allowed.tolist() == sorted(set(allowed.tolist()))


def test_what_was_made_of_a_grammar_is_kept_for_the_next_answer(engine: LlamaCpp) -> None:
    grammar = of_choice(["once"])
    first, second = engine.grammars.constraint(grammar), engine.grammars.constraint(grammar)
    first.take(int(first.allowed()[0]))
    assert len(second.allowed()) and engine.grammars._matcher(grammar) is engine.grammars._matcher(grammar)
    for number in range(40):
        engine.grammars.check(of_choice([str(number)]))
    assert len(engine.grammars._made) == 32
