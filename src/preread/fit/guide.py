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
from preread.fit.teach import answers
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
        EngineError: what a model computes cannot be read, or an engine failed.
        Cancelled: somebody called `cancel` of an engine.
    """
    small, large = models.small, models.large
    first = small.spec.geometry.layers // 4 if first is None else first
    learnt, measured = split(lessons(small, text, count), min(_HELD_OUT, count // 8))
    identity = _identity(models, [*learnt, *measured], steps, first)
    kept = _kept(keep, identity)
    if kept is None:
        alike = align(small, large, text, lambda _, *at: progress("align", *at), _ALIGN_WINDOWS)
        reads = chosen(alike.path, first, LARGE_LAYERS)
    else:
        reads = kept[0].reads
    school = _School(models, first, reads, learnt)
    guide, control = school.learner(), school.learner()
    curve: list[tuple[int, float, float]] = []
    start = 0
    if kept is not None:
        start, curve = kept[0].step, list(kept[0].curve)
        for learner, name in ((guide, "guide"), (control, "control")):
            prefix = f"{name} "
            learner.resume({key.removeprefix(prefix): rows for key, rows in kept[1].items() if key.startswith(prefix)})
    unseen = [school.seen(one) for one in measured[:: max(1, len(measured) // _CURVE_LESSONS)]]
    course = _course(len(learnt), steps)
    before = school.lesson(course[start - 1])
    for step in range(start, steps):
        if step % _CURVE_STEPS == 0 and (not curve or curve[-1][0] < step):
            curve.append((step, *_losses(guide, control, unseen)))
        if keep is not None and step % _SAVE_STEPS == 0 and step > start:
            head = _Head(identity, step, reads, curve)
            rows = {f"guide {key}": value for key, value in guide.state().items()}
            files.write(keep, archive.dumps(head, rows | {f"control {k}": v for k, v in control.state().items()}))
        now = school.lesson(course[step])
        guide.step(now, now.read, rate(step, steps))
        control.step(now, before.read, rate(step, steps))
        before = now
        progress("guide", step + 1, steps)
    curve.append((steps, *_losses(guide, control, unseen)))
    found = [Guide(first, reads, school.weights(learner)) for learner in (guide, control)]
    outcomes = _measured(models, found[0], found[1], measured, progress)
    of = small.spec.fingerprint, large.spec.fingerprint, small.spec.geometry, text.label, steps
    kept_guide, kept_control = (
        KeptGuide(one, *of, outcome, number == 1)
        for number, (one, outcome) in enumerate(zip(found, outcomes, strict=True))
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


class _School:
    """Lessons as both models read them. What was read stays in memory, some 8 MB each."""

    def __init__(self, models: Models, first: int, reads: tuple[int, ...], learnt: Sequence[Lesson]) -> None:
        self._models, self._first, self._reads, self._learnt = models, first, reads, learnt
        self._rope = rope(models.small)
        sample = [self._read(one) for one in learnt[:_SAMPLE]]
        self._mean, self._inward = leading(np.concatenate([rows[SINK_TOKENS:] for rows in sample]), READ_CHANNELS)
        kept: list[tuple[Single, Single]] = []
        for one in learnt[:_SAMPLE]:
            k, v = (rows.float().cpu().numpy() for rows in models.pupil.read(one.tokens))
            k = unrotate(models.pupil.there(k), Span(0, len(one.tokens)), self._rope)
            kept.append((k[first:, :, SINK_TOKENS:], v[first:, :, SINK_TOKENS:]))
        k_scale, v_scale = (np.concatenate([one[n] for one in kept], axis=2).std(axis=2) for n in (0, 1))
        self._scales = k_scale, v_scale
        self._seen: dict[int, Seen] = {}

    def learner(self) -> "Learner":
        """One that has learnt nothing."""
        from preread.engine.hf import Learner

        return Learner(self._models.pupil, self._first, self._scales, self._inward.shape[1], RANK, self._rope)

    def lesson(self, number: int) -> "Seen":
        """One of those that are learnt from."""
        if number not in self._seen:
            self._seen[number] = self.seen(self._learnt[number])
        return self._seen[number]

    def seen(self, lesson: Lesson) -> "Seen":
        """What both models make of a lesson."""
        from preread.engine.hf import Seen

        rows = (self._read(lesson) - self._mean) @ self._inward
        return Seen(rows.astype(np.float16), *self._models.pupil.read(lesson.tokens), lesson.exchanges)

    def weights(self, learner: "Learner") -> Weights:
        """What a learner has learnt, as a guide has it."""
        return Weights(self._mean, self._inward, **learner.weights())

    def _read(self, lesson: Lesson) -> Single:
        theirs, at = matching(self._models.small, self._models.large, lesson.tokens)
        streams = self._models.teacher.inputs(theirs, self._reads)
        return np.concatenate([normalised(stream)[at] for stream in streams], axis=1)


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
