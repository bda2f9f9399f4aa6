"""A guide is learnt in PyTorch and guides in llama.cpp; a model with random weights is its own large one here."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align import guide_bytes
from preread.codec.profile import normalised
from preread.engine.llamacpp import LlamaCpp
from preread.engine.probes import inputs
from preread.errors import EngineError, UsageError
from preread.fit.guided import guided, load
from preread.fit.lessons import lessons
from preread.fit.map import SINK_TOKENS, read
from preread.fit.quality import log_softmax
from preread.fit.sample import TAIL_TOKENS, hold
from preread.fit.teach import answers
from preread.fit.text import Text

pytest.importorskip("torch", reason="fitting a guide needs PyTorch: pip install 'preread[cloud]'")
pytest.importorskip("transformers", reason="fitting a guide needs transformers: pip install 'preread[cloud]'")

from preread.engine.hf import Frozen
from preread.engine.learning import Pupil, told
from preread.fit import guide as fitting
from preread.fit import school as schooling
from preread.fit.guide import fit_guide
from preread.fit.school import Models

Told = list[tuple[str, int, int]]

pytestmark = [
    pytest.mark.filterwarnings("default"),  # what these libraries warn of is theirs
]

TEXT = Text("squares", tuple(" ".join(str(n * n % modulus) for n in range(3600)) for modulus in (997, 9973, 991)))


@pytest.fixture(scope="module")
def models(tiny_model: Path, tiny_frozen: Frozen) -> Iterator[Models]:
    """The model is its own large one."""
    with closing(_opened(tiny_model)) as small, closing(_opened(tiny_model)) as large:
        yield Models(small, large, tiny_frozen, tiny_frozen)


@pytest.fixture
def _text_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    text_is_right(monkeypatch)


def text_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is what is to be predicted: a model with random weights has nothing to say of it. Few are tried."""
    as_both_read = schooling.document
    monkeypatch.setattr(schooling, "document", lambda *of: replace(as_both_read(*of), said=False))
    monkeypatch.setattr(fitting, "PATH", 0.3)
    monkeypatch.setattr(schooling, "STRONGER", ())
    monkeypatch.setattr(schooling, "WEAKER", ())
    for name, few in (("_TRIED", 1), ("_CURVE", (0.5,)), ("_STEP_LESSONS", 1), ("_SAVE_S", 0)):
        monkeypatch.setattr(fitting, name, few)


def _opened(path: Path) -> LlamaCpp:
    return LlamaCpp.open(path, window_tokens=1024, scored_tokens=TAIL_TOKENS)


@pytest.fixture(scope="module")
def whole(models: Models) -> tuple[fitting.Fit, Told]:
    """A fit that nothing interrupted, and what it told of itself."""
    told: Told = []
    with pytest.MonkeyPatch.context() as patched:
        text_is_right(patched)
        return fit_guide(models, TEXT, lambda *at: told.append(at), count=5, first=2), told


@pytest.mark.long
def test_what_was_learnt_holds_in_the_engine_and_in_its_file(
    models: Models, whole: tuple[fitting.Fit, Told], tmp_path: Path
) -> None:
    found, told = whole
    guide, control = found.guide, found.control
    # A model of random weights learns at once what numbers look like; that is not the reading, and the control knows.
    assert guide.outcome.dloss < -0.2 and guide.outcome.dloss_ci[1] < 0 and control.outcome.dloss < -0.2
    assert guide.outcome.gain == pytest.approx(control.outcome.dloss - guide.outcome.dloss) and control.control
    assert guide.outcome.gap == pytest.approx(0, abs=1e-3) and guide.outcome.tokens > 0
    (start, before, its), (stop, after, _) = found.curve[0], found.curve[-1]
    assert (start, stop) == (0, 5) and before == pytest.approx(its) and after < before
    # What PyTorch computes for the guide is what llama.cpp finds with its KV.
    assert after - before == pytest.approx(guide.outcome.dloss, abs=0.05)
    assert told[-1][0] == "measure" and {stage for stage, *_ in told} == {"align", "guide", "measure"}
    path = tmp_path / "a.guide"
    path.write_bytes(guide_bytes.dumps(guide))
    np.testing.assert_array_equal(load(path).guide.weights.added, guide.guide.weights.added)
    lesson = lessons(models.small, TEXT, 8)[0]
    one = read(models.small, models.large, lesson.tokens, (), guide.guide.reads)
    block = guided(guide.guide, one, models.small.ropes)
    np.testing.assert_array_equal(block.k[:, :, :SINK_TOKENS], one.block.k[2:, :, :SINK_TOKENS])
    assert (block.k[:, :, SINK_TOKENS:] != one.block.k[2:, :, SINK_TOKENS:]).any() and block.layers.start == 2
    hold(models.small, one.block)
    exact = np.concatenate(answers(models.small, lesson.exchanges)).mean()
    models.small.session.inject(block)
    assert np.concatenate(answers(models.small, lesson.exchanges)).mean() < exact - 0.2


@pytest.mark.usefixtures("_text_is_right")
@pytest.mark.long
def test_a_fit_that_was_interrupted_goes_on_as_if_nothing_had_been(
    models: Models, whole: tuple[fitting.Fit, Told], tmp_path: Path
) -> None:
    keep = tmp_path / "kept"

    def fit(stop: int | None) -> fitting.Fit:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == "guide" and done == stop:
                raise KeyboardInterrupt

        return fit_guide(models, TEXT, progress, count=5, first=2, keep=keep)

    with pytest.raises(KeyboardInterrupt):
        fit(3)
    assert keep.exists()
    again, uncut = fit(None), whole[0]
    np.testing.assert_array_equal(again.guide.guide.weights.added, uncut.guide.guide.weights.added)
    np.testing.assert_array_equal(again.control.guide.weights.added, uncut.control.guide.weights.added)
    assert [step for step, *_ in again.curve] == [0, 2, 5] == [step for step, *_ in uncut.curve]


def test_the_large_model_says_what_is_to_be_predicted_where_both_read_the_same_tokens(models: Models) -> None:
    some = [lesson for lesson in lessons(models.small, TEXT, 10) if not lesson.asked][:2]
    some = [some[0], replace(some[1], tokens=some[1].tokens[:400], exchanges=some[1].exchanges[:4])]
    read, ids, shares = told(models.teacher, (1, 5), [schooling.document(models, lesson) for lesson in some])
    width = models.small.embeddings(some[0].tokens[:1]).shape[1]
    assert [rows.shape for rows in read] == [(len(lesson.tokens), 2 * width) for lesson in some]
    np.testing.assert_allclose(shares.sum(dim=1), 1, rtol=1e-5)
    at = 0
    for lesson, rows in zip(some, read, strict=True):
        models.large.session.prefill(lesson.tokens)
        alone = np.concatenate(inputs(models.large, lesson.tokens, (1, 5)), axis=1)
        np.testing.assert_allclose(rows.numpy()[:, :width], normalised(alone[:, :width]), atol=0.05)
        models.large.session.prefill(lesson.tokens)
        for one in lesson.exchanges:
            said = log_softmax(models.large.session.score(one.answer[:-1], reuse=(one.behind or 0) + 1))
            likely = np.exp(np.take_along_axis(said, ids[at + 1 : at + len(one.answer)].numpy(), axis=1))
            its = shares[at + 1 : at + len(one.answer)].numpy()
            np.testing.assert_allclose(likely / likely.sum(axis=1, keepdims=True), its, atol=0.02)
            at += len(one.answer)
    assert at == len(ids)


def test_engines_that_compute_differently_are_refused_before_anything_is_learnt(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Pupil.losses
    monkeypatch.setattr(Pupil, "losses", lambda *of: [nats + 0.5 for nats in exact(*of)])
    with pytest.raises(EngineError, match="PyTorch and"):
        fit_guide(models, TEXT, lambda *_: None, count=8)


@given(st.integers(1, 2000))
def test_rates_rise_and_fall_and_go_one_way_in_all(steps: int) -> None:
    course = fitting.rates(steps)
    top = course.index(max(course))
    assert len(course) == steps and min(course) > 0 and sum(course) == pytest.approx(fitting.PATH)
    assert course[: top + 1] == sorted(course[: top + 1]) and course[top:] == sorted(course[top:], reverse=True)
    assert top <= max(1, 0.06 * steps)


def test_text_that_is_too_short_is_said(models: Models) -> None:
    with pytest.raises(UsageError, match="too short"):
        fit_guide(models, Text("short", ("1 2 3", "4")), lambda *_: None, count=8)
