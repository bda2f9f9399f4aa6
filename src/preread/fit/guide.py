"""The guide's story: a small model's KV learns what to take from a large model's reading, of documents of all kinds.

documents, and what follows them → both models read each → step by step, a small network learns to add to the small
model's exact KV what lowers its loss on what follows; beside it a control learns, which is given what the large model
made of *another* document → both are measured in the real engine, on documents that nothing was learnt from. Both
models stay as they are. What the control gains too is the kind of text; only what the guide gains beyond is reading.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from preread.align import archive, guide_bytes
from preread.align.guide import Guide, Weights
from preread.align.guide_bytes import KeptGuide, Outcome
from preread.align.mapping import Read, chosen
from preread.align.projection import leading
from preread.codec.profile import normalised
from preread.codec.rope import Rope, rotate, unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.fit import files
from preread.fit.align import align, matching
from preread.fit.lessons import Lesson, lessons, split
from preread.fit.map import SINK_TOKENS, read
from preread.fit.quality import Double, Single, interval
from preread.fit.sample import hold, rope
from preread.fit.teach import answers, check_alike
from preread.fit.text import Text
from preread.values import Half, KVBlock, Span
from preread.wire.digest import object_id

if TYPE_CHECKING:
    from preread.engine.hf import Frozen, Learner, Seen

Report = Callable[[str, int, int], None]
"""Told a stage ("align", "guide" or "measure"), how much of it is done, and how much there is."""

LESSONS: Final = 600
STEPS: Final = 900
RATE: Final = 2e-3
"""Of Adam; what is added is in units of what a channel varies by."""

LARGE_LAYERS: Final = 4
READ_CHANNELS: Final = 512
RANK: Final = 64

_SAMPLE: Final = 24
_HELD_OUT: Final = 24
_ALIGN_WINDOWS: Final = 4
_WARM_STEPS: Final = 20
_CURVE_STEPS: Final = 100
_CURVE_LESSONS: Final = 8
_SAVE_STEPS: Final = 50
_SEED: Final = 0
_NAMES: Final = ("guide", "control")


class _Head(msgspec.Struct, frozen=True):
    """Of what is kept of a fit that has not ended."""

    identity: str
    step: int
    reads: tuple[int, ...]
    curve: list[tuple[int, float, float]]


@dataclass(frozen=True, slots=True)
class Fit:
    """A guide and its control.

    Attributes:
        guide, control: with what they were measured to do.
        curve: (steps, loss with the guide, loss with the control) on documents held out, as PyTorch computes them.
    """

    guide: KeptGuide
    control: KeptGuide
    curve: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True)
class Models:
    """The same two models in two engines: `small` and `large` read and measure, `pupil` and `teacher` are learnt with.

    `small` is opened to score `sample.TAIL_TOKENS` tokens; the large one may have another tokenizer.
    """

    small: LlamaCpp
    large: LlamaCpp
    pupil: "Frozen"
    teacher: "Frozen"


def fit_guide(
    models: Models,
    text: Text,
    progress: Report,
    steps: int = STEPS,
    count: int = LESSONS,
    first: int | None = None,
    keep: Path | None = None,
) -> Fit:
    """Fit a guide, and its control. What the engines held is gone.

    Args:
        models: the two.
        text: at least 4 windows of 640 tokens.
        steps: of one lesson each, for either.
        count: how many lessons, if the text has so many.
        first: the first layer that is guided; a quarter of them are not by default.
        keep: where to keep what was learnt every few minutes, and to go on from; removed by the caller.

    Raises:
        UsageError: the text is too short, or `keep` cannot be written.
        EngineError: what a model computes cannot be read, or an engine failed, or the two compute differently.
        Cancelled: somebody called `cancel` of an engine.
    """
    small, large = models.small, models.large
    first = small.spec.geometry.layers // 4 if first is None else first
    learnt, measured = split(lessons(small, text, count), min(_HELD_OUT, count // 8))
    small.prefill(measured[0].tokens)
    theirs = models.pupil.losses(*models.pupil.read(measured[0].tokens), measured[0].exchanges)
    check_alike(answers(small, measured[0].exchanges), theirs)
    identity = _identity(models, [*learnt, *measured], steps, first)
    kept = _kept(keep, identity)
    if kept is None:
        alike = align(small, large, text, lambda _, *at: progress("align", *at), _ALIGN_WINDOWS)
        reads = chosen(alike.path, first, LARGE_LAYERS)
        kept = _Head(identity, 0, reads, []), _units(models, first, reads, learnt[:_SAMPLE])
    head, arrays = kept
    school = _School(models, first, head.reads, arrays)
    guide, control = (school.learner(name) for name in _NAMES)
    curve = _learnt(school, guide, control, learnt, measured, head, steps, keep, progress)
    found = [Guide(first, head.reads, school.weights(learner)) for learner in (guide, control)]
    outcomes = _measured(models, found[0], found[1], measured, progress)
    of = small.spec.fingerprint, large.spec.fingerprint, small.spec.geometry, text.label, steps
    kept_guide, kept_control = (
        KeptGuide(one, *of, outcome, name == "control")
        for name, one, outcome in zip(_NAMES, found, outcomes, strict=True)
    )
    return Fit(kept_guide, kept_control, tuple(curve))


def load(path: Path) -> KeptGuide:
    """A guide's file.

    Raises:
        UsageError: it cannot be read.
        CorruptData: it is none.
    """
    return guide_bytes.loads(files.read(path))


def guided(guide: Guide, read: Read, rotation: Rope) -> KVBlock:
    """The guided layers as the small model would cache them; the first `SINK_TOKENS` are exact."""
    exact = read.block
    k, v = (rows[guide.first :].astype(np.float32) for rows in (exact.k, exact.v))
    changes = guide.changes(read.large)
    changes[..., :SINK_TOKENS, :] = 0
    half = [_half(rows) for rows in (k + rotate(changes[:, 0], exact.tokens, rotation), v + changes[:, 1])]
    return KVBlock(exact.tokens, Span(guide.first, guide.first + len(k)), *half)


def rate(step: int, steps: int) -> float:
    """Of learning: it rises for a few steps, and then falls along a cosine to a thirtieth."""
    return RATE * min(1.0, (step + 1) / _WARM_STEPS) * max(0.03, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _half(rows: Single) -> Half:
    return np.clip(rows, -65504, 65504).astype(np.float16)


def _units(models: Models, first: int, reads: tuple[int, ...], sample: Sequence[Lesson]) -> archive.Arrays:
    """What is read is projected by, and what is added counts in: by some lessons' own readings."""
    read: list[Single] = []
    rows: tuple[list[Single], list[Single]] = ([], [])
    for one in sample:
        read.append(_read(models, reads, one)[SINK_TOKENS:])
        k, v = (its.float().cpu().numpy()[first:] for its in models.pupil.read(one.tokens))
        k = unrotate(models.pupil.there(k), Span(0, len(one.tokens)), rope(models.small))
        for its, some in zip(rows, (k, v), strict=True):
            its.append(some[:, :, SINK_TOKENS:])
    mean, inward = leading(np.concatenate(read), READ_CHANNELS)
    k_scale, v_scale = (np.concatenate(its, axis=2).std(axis=2) for its in rows)
    return {"mean": mean, "inward": inward, "k_scale": k_scale, "v_scale": v_scale}


def _read(models: Models, reads: tuple[int, ...], lesson: Lesson) -> Single:
    """What the large model's layers read of a lesson, side by side, a row for each of the small one's tokens."""
    theirs, at = matching(models.small, models.large, lesson.tokens)
    return np.concatenate([normalised(stream)[at] for stream in models.teacher.inputs(theirs, reads)], axis=1)


class _School:
    """Lessons as both models read them, and what learns from them."""

    def __init__(self, models: Models, first: int, reads: tuple[int, ...], kept: archive.Arrays) -> None:
        """`kept`: by `_units`, or what `state` gave."""
        self._models, self._first, self._reads, self._kept = models, first, reads, kept

    def learner(self, name: str) -> "Learner":
        """One that knows what is kept under its name, or else nothing."""
        from preread.engine.hf import Learner

        kept, small = self._kept, self._models.small
        scales, read = (kept["k_scale"], kept["v_scale"]), kept["inward"].shape[1]
        learner = Learner(self._models.pupil, self._first, scales, read, RANK, rope(small))
        if known := {key.removeprefix(f"{name} "): rows for key, rows in kept.items() if key.startswith(f"{name} ")}:
            learner.resume(known)
        return learner

    def seen(self, lesson: Lesson) -> "Seen":
        """What both models make of a lesson."""
        from preread.engine.hf import Seen

        rows = (_read(self._models, self._reads, lesson) - self._kept["mean"]) @ self._kept["inward"]
        return Seen(rows.astype(np.float16), *self._models.pupil.read(lesson.tokens), lesson.exchanges)

    def weights(self, learner: "Learner") -> Weights:
        """What a learner has learnt, as a guide has it."""
        return Weights(self._kept["mean"], self._kept["inward"], **learner.weights())

    def state(self, learners: dict[str, "Learner"]) -> archive.Arrays:
        """All that another school needs to go on."""
        states = {f"{name} {key}": rows for name, one in learners.items() for key, rows in one.state().items()}
        return {key: self._kept[key] for key in ("mean", "inward", "k_scale", "v_scale")} | states


def _learnt(
    school: _School,
    guide: "Learner",
    control: "Learner",
    learnt: Sequence[Lesson],
    measured: Sequence[Lesson],
    head: _Head,
    steps: int,
    keep: Path | None,
    progress: Report,
) -> list[tuple[int, float, float]]:
    """Both learn, from where `head` says; the curve. What was read stays in memory, some 8 MB a lesson."""
    curve, seen = list(head.curve), dict[int, "Seen"]()

    def lesson(number: int) -> "Seen":
        if number not in seen:
            seen[number] = school.seen(learnt[number])
        return seen[number]

    unseen = [school.seen(one) for one in measured[:: max(1, len(measured) // _CURVE_LESSONS)]]
    course = _course(len(learnt), steps)
    before = lesson(course[head.step - 1])
    for step in range(head.step, steps):
        if step % _CURVE_STEPS == 0 and (not curve or curve[-1][0] < step):
            curve.append((step, *_losses(guide, control, unseen)))
        if keep is not None and step % _SAVE_STEPS == 0 and step > head.step:
            now = _Head(head.identity, step, head.reads, curve)
            files.write(keep, archive.dumps(now, school.state(dict(zip(_NAMES, (guide, control), strict=True)))))
        one = lesson(course[step])
        guide.step(one, one.read, rate(step, steps))
        control.step(one, before.read, rate(step, steps))
        before = one
        progress("guide", step + 1, steps)
    return [*curve, (steps, *_losses(guide, control, unseen))]


def _course(count: int, steps: int) -> list[int]:
    """Which lesson each step learns from: each once before any comes again, in another order each time."""
    source, order = random.Random(_SEED), list[int]()
    while len(order) < steps:
        order += source.sample(range(count), count)
    return order[:steps]


def _losses(guide: "Learner", control: "Learner", unseen: Sequence["Seen"]) -> tuple[float, float]:
    """Of the guide and the control, on documents held out."""
    others = [unseen[-1], *unseen[:-1]]
    mine = [nats for one in unseen for nats in guide.losses(one, one.read)]
    its = [nats for one, other in zip(unseen, others, strict=True) for nats in control.losses(one, other.read)]
    return float(np.concatenate(mine).mean()), float(np.concatenate(its).mean())


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
            small.inject(guided(one, source, rope(small)))
            its.append(np.concatenate(answers(small, lesson.exchanges)) - exact)
        before = now
        progress("measure", number + 1, len(measured))
    gains = [its - mine for mine, its in zip(*rises, strict=True)]
    gap = float(np.concatenate(gaps).mean()) if gaps else None
    first, second = (
        Outcome(_mean(its), interval(its), _mean(gains), interval(gains), gap, sum(map(len, its))) for its in rises
    )
    return first, second


def other(now: Read, before: Read) -> Read:
    """A document's exact KV, with what the large model made of another one."""
    count = len(now.embeddings)
    return replace(now, large={layer: np.resize(rows, (count, rows.shape[1])) for layer, rows in before.large.items()})


def _mean(values: Sequence[Double]) -> float:
    return float(np.concatenate(values).mean())


def _identity(models: Models, found: Sequence[Lesson], steps: int, first: int) -> str:
    """Of a fit: whose it is, and what it learns from."""
    of = f"{models.small.spec.fingerprint} {models.large.spec.fingerprint} {steps} {first}"
    return object_id(of.encode("ascii") + np.concatenate([one.tokens for one in found]).astype("<i4").tobytes())


def _kept(keep: Path | None, identity: str) -> tuple[_Head, archive.Arrays] | None:
    """What was kept of this very fit."""
    if keep is None or not keep.exists():
        return None
    head, arrays = archive.loads(files.read(keep), _Head, "guide that was interrupted")
    return (head, arrays) if head.identity == identity else None
