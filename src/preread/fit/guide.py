"""The guide's story: a small model's KV learns what to take from a large model's reading, of documents of all kinds.

documents, and what follows them → both models read each → step by step, what is added to the small one's KV learns to
lower its loss on what follows; beside it a control, which reads what the large model made of *another* document → both
are as strong as some lessons like best → and measured in the real engine, on documents that nothing was learnt from.
Both models stay as they are. What the control gains too is the kind of text; only what the guide gains beyond is
reading.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from preread.align import archive
from preread.align.guide import Guide
from preread.align.guide_bytes import KeptGuide, Outcome
from preread.align.mapping import chosen
from preread.engine.learning import Learner, Pupil, others
from preread.fit import files
from preread.fit.align import align
from preread.fit.guided import guided, other
from preread.fit.lessons import Lesson, apart, lessons
from preread.fit.map import read
from preread.fit.quality import Double, Single, interval
from preread.fit.sample import hold
from preread.fit.school import Models, School, begun, best, nats
from preread.fit.teach import answers, check_alike
from preread.fit.text import Text
from preread.values import Span
from preread.wire.digest import object_id

Report = Callable[[str, int, int], None]
"""Told a stage ("align", "guide" or "measure"), how much of it is done, and how much there is."""

LESSONS: Final = 200
LARGE_LAYERS: Final = 4

_SAMPLE: Final = 24
_HELD_OUT: Final = 24
_ALIGN_WINDOWS: Final = 4
_TRIED: Final = 16
"""Lessons by which the strength is chosen, half of them with questions, which bear less of it than text does; nothing
else is learnt from them."""

_STEP_LESSONS: Final = 16
PATH: Final = 0.04
"""How far each weight goes if it always goes the same way, in units of what a channel varies by: Adam's rates add up to
it. So few steps are long ones."""

_WARM: Final = 0.05
_CURVE: Final = (0.25, 0.5)
"""Shares of the steps after which the curve has a point; one more at the end."""

_SAVE_S: Final = 120.0
_NAMES: Final = ("guide", "control")
_CONTROLS: Final = (False, True)


class _Head(msgspec.Struct, frozen=True):
    """Of what is kept of a fit that has not ended."""

    identity: str
    done: int
    reads: tuple[int, ...]
    curve: list[tuple[int, float, float]]


@dataclass(frozen=True, slots=True)
class Fit:
    """A guide and its control.

    Attributes:
        guide, control: with what they were measured to do.
        curve: (lessons, loss with the guide, loss with the control) on the documents held out: means over documents, as
            PyTorch computes them, all that was learnt counting once.
    """

    guide: KeptGuide
    control: KeptGuide
    curve: tuple[tuple[int, float, float], ...]


def fit_guide(
    models: Models,
    text: Text,
    progress: Report,
    count: int = LESSONS,
    first: int = 0,
    keep: Path | None = None,
) -> Fit:
    """Fit a guide, and its control. What the engines held is gone.

    Args:
        models: the two.
        text: two documents at least; what is measured with is of others than what is learnt from.
        count: how many lessons to learn from, if the text has so many.
        first: the first layer that is guided.
        keep: where to keep what was learnt every few minutes, and to go on from; removed by the caller.

    Raises:
        UsageError: the text is too short, or `keep` cannot be written.
        EngineError: what a model computes cannot be read, or an engine failed, or the two compute differently.
        Cancelled: somebody called `cancel` of an engine.
    """
    small, large = models.small, models.large
    learns, measures = apart(text)
    found = lessons(small, learns, count + _TRIED)
    measured = lessons(small, measures, max(2, min(_HELD_OUT, count // 8)))  # a control reads another one
    tried = _of_both_kinds(found, min(_TRIED, len(found) // 4))
    learnt = [one for one in found if not any(one is other for other in tried)][:count]
    small.session.prefill(measured[0].tokens)
    pupil = Pupil(
        models.pupil, small.session.export(Span(0, len(measured[0].tokens)), Span(0, small.spec.geometry.layers))
    )
    check_alike(answers(small, measured[0].exchanges), pupil.losses(measured[0].exchanges))
    identity = _identity(models, [*learnt, *measured], first)
    kept = _kept(keep, identity)
    if kept is None:
        alike = align(small, large, learns, lambda _, *at: progress("align", *at), _ALIGN_WINDOWS)
        reads = chosen(alike.path, small.spec.geometry.layers // 4, LARGE_LAYERS)
        kept = _Head(identity, 0, reads, []), begun(models, first, reads, learnt[:_SAMPLE])
    head, arrays = kept
    school = School(models, first, head.reads, arrays)
    guide, control, curve = _learnt(school, learnt, tried, measured, head, arrays, keep, progress)
    outcomes = _measured(models, guide, control, measured, progress)
    of = small.spec.fingerprint, large.spec.fingerprint, small.spec.geometry, text.label, len(learnt)
    return Fit(KeptGuide(guide, *of, outcomes[0]), KeptGuide(control, *of, outcomes[1], control=True), tuple(curve))


def _learnt(
    school: School,
    learnt: Sequence[Lesson],
    tried: Sequence[Lesson],
    measured: Sequence[Lesson],
    head: _Head,
    arrays: archive.Arrays,
    keep: Path | None,
    progress: Report,
) -> tuple[Guide, Guide, list[tuple[int, float, float]]]:
    """What lessons teach, from where `head` says: guide, control, and the curve."""
    progress("guide", head.done, len(learnt))
    curve = list(head.curve)
    learners = [school.learner() for _ in _NAMES]
    trying, unseen = (list(school.read(some)) for some in (tried, measured))

    def point(done: int) -> None:
        told = [nats(one, unseen, control) for one, control in zip(learners, _CONTROLS, strict=True)]
        curve.append((done, told[0], told[1]))

    if head.done:
        for name, one in zip(_NAMES, learners, strict=True):
            one.resume(_of(arrays, name))
    else:
        point(0)
    course = rates(-(-len(learnt) // _STEP_LESSONS))
    before = next(school.read(learnt[head.done - 1 :][:1])).read[-1]
    saved = time.monotonic()
    for step in range(head.done // _STEP_LESSONS, len(course)):
        some = learnt[step * _STEP_LESSONS : (step + 1) * _STEP_LESSONS]
        for reading in school.read(some):
            for one, its in zip(learners, (reading.read, others(reading.read, before)), strict=True):
                one.ask(reading, its)
            before = reading.read[-1]
        for one in learners:
            one.step(course[step])
        done = step * _STEP_LESSONS + len(some)
        if step + 1 in [round(share * len(course)) for share in _CURVE]:
            point(done)
        if keep is not None and (done == len(learnt) or time.monotonic() - saved >= _SAVE_S):
            files.write(keep, archive.dumps(_Head(head.identity, done, head.reads, curve), arrays | _states(learners)))
            saved = time.monotonic()
        progress("guide", done, len(learnt))
    point(len(learnt))
    strengths = [best(one, trying, control) for one, control in zip(learners, _CONTROLS, strict=True)]
    guide, control = (school.guide(one, strength) for one, strength in zip(learners, strengths, strict=True))
    return guide, control, curve


def rates(steps: int) -> list[float]:
    """Of learning, at each step: they rise for a twentieth of the steps, then fall to nothing, and add up to `PATH`."""
    warm = max(1, round(_WARM * steps))
    found = [min((turn + 1) / warm, (steps - turn) / max(1, steps - warm)) for turn in range(steps)]
    whole = sum(found)
    return [PATH * one / whole for one in found]


def _of_both_kinds(some: Sequence[Lesson], count: int) -> list[Lesson]:
    """So many and one at least, half of them with questions if there are such."""
    asked, plain = ([one for one in some if one.asked == kind] for kind in (True, False))
    found = asked[: count // 2]
    return found + plain[: max(1, count - len(found))]


def _states(learners: Sequence[Learner]) -> archive.Arrays:
    """What guide and control have learnt, to be kept."""
    return {
        f"{name} {part}": rows for name, one in zip(_NAMES, learners, strict=True) for part, rows in one.state().items()
    }


def _of(arrays: archive.Arrays, name: str) -> archive.Arrays:
    """One of those that `_states` keeps."""
    return {part.removeprefix(f"{name} "): rows for part, rows in arrays.items() if part.startswith(f"{name} ")}


def _measured(
    models: Models, guide: Guide, control: Guide, measured: Sequence[Lesson], progress: Report
) -> tuple[Outcome, Outcome]:
    """What guide and control change, in the engine that edges run."""
    small, large = models.small, models.large
    rises: tuple[list[Double], list[Double]] = ([], [])
    gaps: list[Double] = []
    before = read(small, large, measured[-1].tokens, (), guide.reads)
    for number, lesson in enumerate(measured):
        now = read(small, large, lesson.tokens, (), guide.reads)
        exact = np.concatenate(answers(small, lesson.exchanges)).astype(np.float64)
        if small.spec.vocabulary == large.spec.vocabulary:
            gaps.append(exact - np.concatenate(answers(large, lesson.exchanges)))
        for one, source, its in ((guide, now, rises[0]), (control, other(now, before), rises[1])):
            hold(small, now.block)
            small.session.inject(guided(one, source, small.ropes))
            its.append(np.concatenate(answers(small, lesson.exchanges)) - exact)
        before = now
        progress("measure", number + 1, len(measured))
    gains = [its - mine for mine, its in zip(*rises, strict=True)]
    gap = float(np.concatenate(gaps).mean()) if gaps else None
    first, second = (
        Outcome(_mean(its), interval(its), _mean(gains), interval(gains), gap, sum(map(len, its))) for its in rises
    )
    return first, second


def _mean(values: Sequence[Single] | Sequence[Double]) -> float:
    return float(np.concatenate(values).mean())


def _identity(models: Models, found: Sequence[Lesson], first: int) -> str:
    """Of a fit: whose it is, and what it learns from."""
    of = f"{models.small.spec.fingerprint} {models.large.spec.fingerprint} {first}"
    return object_id(of.encode("ascii") + np.concatenate([one.tokens for one in found]).astype("<i4").tobytes())


def _kept(keep: Path | None, identity: str) -> tuple[_Head, archive.Arrays] | None:
    """What was kept of this very fit."""
    if keep is None or not keep.exists():
        return None
    head, arrays = archive.loads(files.read(keep), _Head, "guide that was interrupted")
    return (head, arrays) if head.identity == identity else None
