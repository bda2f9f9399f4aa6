"""A large model studies a document for a small one. The smallest real model is both here, or a stranger's teacher."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.fit.study import BARELY, BRIEFLY, PASSAGE_CHARACTERS, passages, questions, study
from preread.wire.digest import context_id

TEXT = """The air cleaner is cleaned once a week. Its filter has the code 107 and lasts for six months.
The fan turns at 900 revolutions a minute. The pump needs two litres of water a day, and is filled in the morning.
"""


@pytest.fixture(scope="module")
def model(smollm: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(smollm, window_tokens=1024, scored_tokens=TAIL_TOKENS)) as opened:
        yield opened


@pytest.mark.long
def test_a_model_asks_and_answers_itself(model: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preread.fit.study._FEWEST", 2)  # the smallest model finds few that it can answer
    told: dict[str, list[tuple[int, int]]] = {}
    found = study(model, model, TEXT, lambda stage, *at: told.setdefault(stage, []).append(at), rounds=2)
    assert list(told) == ["ask", "answer"] and all(steps[-1][0] == steps[-1][1] for steps in told.values())
    chat = model.chat
    assert chat is not None
    context = model.tokenize_prompt(chat.system_prefix(TEXT))
    assert found.context == context_id(model.spec.fingerprint, context)
    model.session.prefill(context)
    prompts = [b"".join(map(model.piece, one.prompt)).decode() for one in found.exchanges]
    manners = [next(manner for manner in (BRIEFLY, BARELY) if f"? {manner}" in prompt) for prompt in prompts]
    assert len(set(prompts)) == len(prompts) >= 2 and set(manners) == {BRIEFLY, BARELY}
    for one in found.exchanges:
        assert model.tokenize(chat.eos).tolist() == [one.answer[-1]]
        # The answer was greedy: of the candidates, its tokens are the likeliest, but for what batches round.
        best = np.take_along_axis(one.candidates, one.logprobs.argmax(axis=1)[:, None], axis=1)[:, 0]
        assert (best == one.answer).mean() > 0.8
        assert (np.exp(one.logprobs).sum(axis=1) <= 1.001).all() and (one.losses >= 0).all()


@pytest.mark.long
def test_a_document_that_gives_few_questions_is_refused(model: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preread.fit.study._FEWEST", 99)
    with pytest.raises(UsageError, match="99 are needed"):
        study(model, model, "A fan.", lambda *_: None, rounds=1)


def test_a_model_without_chats_is_refused(model: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "chat", None)
    with pytest.raises(UsageError, match="chat template"):
        study(model, model, TEXT, lambda *_: None)


@given(st.text(alphabet="ab \n", max_size=3000))
def test_passages_are_the_document_in_pieces(text: str) -> None:
    found = passages(text)
    assert "".join(found) == text
    assert all(len(part) >= PASSAGE_CHARACTERS for part in found) or len(found) == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("1. What is it?\n2) Who?\n\n- Why so?", ["What is it?", "Who?", "Why so?"]),
        ("Here are some questions:\nWhat is it? It is a fan.\n**How many?**", []),
        ("?\n   \n" + "a" * 200 + "?", []),
    ],
)
def test_questions_are_lines_that_end_as_such(reply: str, expected: list[str]) -> None:
    assert list(questions(reply)) == expected
