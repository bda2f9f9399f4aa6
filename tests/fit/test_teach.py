"""A context's KV is taught, in PyTorch, and measured in llama.cpp; a lesson that is interrupted goes on."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from preread.align import taught_bytes
from preread.align.exchanges import Exchange
from preread.align.study_bytes import Study
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import CorruptData, EngineError, UsageError
from preread.fit import teach as teaching
from preread.fit.teach import ANCHOR_TOKENS, anchors, rate, schedule, teach
from preread.values import ContextId, Fingerprint, Span
from preread.wire.digest import context_id

if TYPE_CHECKING:
    from preread.engine.hf import Frozen

pytestmark = pytest.mark.filterwarnings("default")  # what these libraries warn of is theirs


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, scored_tokens=64)) as opened:
        yield opened


@pytest.fixture(scope="module")
def context(engine: LlamaCpp) -> Tokens:
    return engine.tokenize(" ".join(str(n * n % 997) for n in range(60)), special=False, start=True)


@pytest.fixture(scope="module")
def study(engine: LlamaCpp, context: Tokens) -> Study:
    """All questions have one answer: that can be learnt."""
    found = []
    for number in range(12):
        prompt = engine.tokenize(f"What is the square of {number}?", special=False)
        answer = engine.tokenize("It is a number.", special=False)
        rows = np.zeros((len(answer), 1), np.float32)
        found.append(Exchange(prompt, answer, answer[:, None], rows, rows[:, 0]))
    of = engine.spec.fingerprint
    return Study(context_id(of, context), of, Fingerprint("b" * 64), tuple(found))


@pytest.mark.long
def test_what_was_learnt_holds_for_questions_that_were_held_out(
    engine: LlamaCpp, tiny_frozen: "Frozen", context: Tokens, study: Study, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    found = teach(engine, tiny_frozen, context, study, study, lambda *at: told.append(at), 6)
    taught = found.taught
    assert taught.dloss < -0.3 and taught.dloss_ci[1] < 0 and (taught.exchanges, found.llm) == (3, 0)
    assert found.curve[0][1] == pytest.approx(found.exact, abs=0.05)
    steps = len(schedule([*study.taught, *anchors(engine, context)], 6))
    assert found.curve[-1] == (steps, pytest.approx(found.exact + taught.dloss, abs=0.05))
    assert told[-1] == ("measure", 1, 1) and taught.studied == taught.context == study.context
    # The engine holds what is kept, and what is kept is what was learnt.
    path = tmp_path / "a.taught"
    path.write_bytes(taught_bytes.dumps(taught))
    held = engine.session.export(Span(0, len(context)), Span(0, engine.spec.geometry.layers))
    np.testing.assert_array_equal(teaching.load(path).block.k, held.k)
    with pytest.raises(UsageError, match="cannot read"):
        teaching.load(tmp_path / "none.taught")


def test_anchors_are_the_contexts_own_text_as_exact_kv_has_it(
    engine: LlamaCpp, tiny_frozen: "Frozen", context: Tokens
) -> None:
    engine.session.prefill(context)
    found = anchors(engine, context)
    assert [one.behind for one in found] == list(range(ANCHOR_TOKENS, len(context) - ANCHOR_TOKENS + 1, ANCHOR_TOKENS))
    for one in found:
        assert one.behind is not None
        text = context[one.behind : one.behind + ANCHOR_TOKENS]
        assert [*one.prompt, *one.answer] == text.tolist()
    # Both engines say the same of them: each sees the context up to where it begins.
    from preread.engine.learning import Pupil

    pupil = Pupil(tiny_frozen, engine.session.export(Span(0, len(context)), Span(0, engine.spec.geometry.layers)))
    for one, nats in zip(found, pupil.losses(found), strict=True):
        np.testing.assert_allclose(one.losses, nats, atol=0.05)
    assert anchors(engine, context[:100]) == []


@pytest.mark.long
def test_an_interrupted_lesson_ends_as_if_it_had_not_been(
    engine: LlamaCpp,
    tiny_frozen: "Frozen",
    context: Tokens,
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teaching, "_SAVE_STEPS", 2)
    whole = teach(engine, tiny_frozen, context, study, study, lambda *_: None, 5)
    keep = tmp_path / "lesson.part"

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(engine, tiny_frozen, context, study, study, interrupt, 5, keep)
    steps: list[int] = []
    again = teach(engine, tiny_frozen, context, study, study, lambda _, done, __: steps.append(done), 5, keep)
    assert steps[0] > 1 and again.curve == whole.curve
    np.testing.assert_array_equal(again.taught.block.v, whole.taught.block.v)
    # What is kept of another lesson is not gone on with, and what is no lesson is said to be none.
    steps.clear()
    teach(engine, tiny_frozen, context, study, study, lambda _, done, __: steps.append(done), 2, keep)
    assert steps[0] == 1
    keep.write_bytes(b"something else")
    with pytest.raises(CorruptData, match="lesson"):
        teach(engine, tiny_frozen, context, study, study, lambda *_: None, 1, keep)


def test_a_study_of_something_else_is_refused(
    engine: LlamaCpp, tiny_frozen: "Frozen", context: Tokens, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taught(lessons: Study, measured: Study) -> None:
        teach(engine, tiny_frozen, context, lessons, measured, lambda *_: None, 1)

    other = ContextId("d" * 64)
    with pytest.raises(UsageError, match="another document"):
        taught(study, replace(study, context=other))
    with pytest.raises(UsageError, match="another model"):
        taught(replace(study, small=Fingerprint("d" * 64)), study)
    with pytest.raises(UsageError, match="held out"):
        taught(study, replace(study, exchanges=study.exchanges[:2]))
    wrong = replace(study.exchanges[0], prompt=np.array([10**6], np.int32))
    with pytest.raises(UsageError, match="token ids"):
        taught(replace(study, exchanges=(wrong, *study.exchanges)), study)
    monkeypatch.setattr(teaching, "_FARTHEST_APART", -1.0)
    with pytest.raises(EngineError, match="differ by"):
        taught(study, study)
    monkeypatch.undo()
    # Lessons about another document are a control, and the file says so.
    found = teach(engine, tiny_frozen, context, replace(study, context=other), study, lambda *_: None, 0.1)
    assert found.taught.studied == other != found.taught.context


def test_every_exchange_comes_once_before_any_comes_again(study: Study) -> None:
    order = [one for batch in schedule(study.taught, 2.5) for one in batch]
    count = len(study.taught)
    assert len(order) == round(2.5 * count)
    assert (
        {id(one) for one in order[:count]}
        == {id(one) for one in order[count : 2 * count]}
        == set(map(id, study.taught))
    )
    assert schedule(study.taught, 2.5)[0] == schedule(study.taught, 2.5)[0]


def test_the_rate_rises_and_falls() -> None:
    rates = [rate(step, 100) for step in range(100)]
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True) and min(rates) > 0
