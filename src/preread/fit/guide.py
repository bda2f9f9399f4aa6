"""The guide's story: a small model's KV learns what to take from a large model's reading, of documents of all kinds.

documents, and what follows them → both models read each → the gradient of the small model's loss on what follows, with
respect to its own exact KV, is summed up times what the large one reads there; beside it for a control, times what that
made of *another* document → either sum gives a guide, as strong as some lessons like best → both are measured in the
real engine, on documents that nothing was learnt from. Both models stay as they are. What the control gains too is the
kind of text; only what the guide gains beyond is reading.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from preread.align import archive, guide_bytes, steepest
from preread.align.exchanges import Exchange, told
from preread.align.guide import Guide, Weights
from preread.align.guide_bytes import KeptGuide, Outcome
from preread.align.mapping import Read, chosen
from preread.align.projection import leading
from preread.align.steepest import Sums
from preread.codec.profile import normalised
from preread.codec.rope import Rope, rotate, unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.fit import files
from preread.fit.align import align, matching
from preread.fit.lessons import Lesson, apart, lessons
from preread.fit.map import SINK_TOKENS, read
from preread.fit.quality import Double, Single, interval
from preread.fit.sample import hold, rope
from preread.fit.teach import answers, check_alike
from preread.fit.text import Text
from preread.values import Half, KVBlock, Span
from preread.wire.digest import object_id

if TYPE_CHECKING:
    from preread.engine.hf import Frozen

Report = Callable[[str, int, int], None]
"""Told a stage ("align", "guide" or "measure"), how much of it is done, and how much there is."""

LESSONS: Final = 300
LARGE_LAYERS: Final = 4
READ_CHANNELS: Final = 512

STRENGTHS: Final = (0.02, 0.04, 0.08, 0.16, 0.32)
"""Of what is added before gates, in units of what a channel varies by: the root mean square."""

_SAMPLE: Final = 12
_HELD_OUT: Final = 24
_ALIGN_WINDOWS: Final = 4
_TRIED: Final = 8
"""Lessons by which the strength is chosen, half of them with questions, which bear less of it than text does; nothing
else is learnt from them."""

_CURVE: Final = (0.25, 0.5)
"""Shares of the lessons after which the curve has a point; one more at the end."""

_CURVE_LESSONS: Final = 8
_SAVE_LESSONS: Final = 16
_NAMES: Final = ("guide", "control")


class _Head(msgspec.Struct, frozen=True):
    """Of what is kept of a fit that has not ended."""

    identity: str
    done: int
    reads: tuple[int, ...]
    curve: list[tuple[int, float, float]]
    tokens: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A guide and its control.

    Attributes:
        guide, control: with what they were measured to do.
        curve: (lessons, loss with the guide, loss with the control) on 8 documents held out, half of them with
            questions: means over documents, as PyTorch computes them.
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
    found, measured = (
        lessons(small, learns, count + _TRIED),
        lessons(small, measures, max(1, min(_HELD_OUT, count // 8))),
    )
    tried = _of_both_kinds(found, min(_TRIED, len(found) // 4))
    learnt = [one for one in found if not any(one is other for other in tried)][:count]
    small.prefill(measured[0].tokens)
    theirs = models.pupil.losses(*models.pupil.rows(*models.pupil.read(measured[0].tokens)), measured[0].exchanges)
    check_alike(answers(small, measured[0].exchanges), theirs)
    identity = _identity(models, [*learnt, *measured], first)
    kept = _kept(keep, identity)
    if kept is None:
        alike = align(small, large, text, lambda _, *at: progress("align", *at), _ALIGN_WINDOWS)
        reads = chosen(alike.path, small.spec.geometry.layers // 4, LARGE_LAYERS)
        kept = _Head(identity, 0, reads, [], 0), _units(models, first, reads, learnt[:_SAMPLE])
    head, arrays = kept
    school = _School(models, first, head.reads, arrays)
    guide, control, curve = _learnt(school, learnt, tried, measured, head, arrays, keep, progress)
    outcomes = _measured(models, guide, control, measured, progress)
    of = small.spec.fingerprint, large.spec.fingerprint, small.spec.geometry, text.label, len(learnt)
    return Fit(KeptGuide(guide, *of, outcomes[0]), KeptGuide(control, *of, outcomes[1], control=True), tuple(curve))


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


def _half(rows: Single) -> Half:
    return np.clip(rows, -65504, 65504).astype(np.float16)


def _units(models: Models, first: int, reads: tuple[int, ...], sample: Sequence[Lesson]) -> archive.Arrays:
    """What is read is projected by, and what is added counts in: by some lessons' own readings."""
    read: list[Single] = []
    rows: list[Single] = []
    for one in sample:
        read.append(_read(models, reads, one)[0][SINK_TOKENS:])
        rows.append(_both(models, *models.pupil.read(one.tokens), first)[:, :, SINK_TOKENS:])
    mean, inward = leading(np.concatenate(read), READ_CHANNELS)
    return {"mean": mean, "inward": inward, "units": np.concatenate(rows, axis=2).std(axis=2)}


def _both(models: Models, k: Single, v: Single, first: int) -> Single:
    """K before rotation and V of the guided layers, heads side by side: (layers, 2 · kv_heads, tokens, head_dim)."""
    return np.concatenate([unrotate(k[first:], Span(0, k.shape[2]), rope(models.small)), v[first:]], axis=1)


def _read(models: Models, reads: tuple[int, ...], lesson: Lesson) -> tuple[Single, tuple[Exchange, ...]]:
    """What the large model's layers read of a lesson, side by side, a row for each of the small one's tokens.

    And what is to be predicted: of the document's own text the large model's distributions, which say more than the
    one token that follows (Hinton et al., arXiv 1503.02531), if both have one vocabulary; else as it was given.
    """
    theirs, at = matching(models.small, models.large, lesson.tokens)
    alike = models.small.spec.vocabulary == models.large.spec.vocabulary
    own = lesson.exchanges if alike and not lesson.asked else ()
    rows = [np.arange(len(one.answer)) + (one.behind or 0) for one in own]
    streams, follows = models.teacher.inputs(theirs, reads, np.concatenate([np.zeros(0, np.int64), *rows]))
    said = np.split(follows, np.cumsum([len(its) for its in rows], dtype=np.int64))[:-1]
    exchanges = tuple(told(one.prompt, one.answer, its, one.behind) for one, its in zip(own, said, strict=True))
    return np.concatenate([normalised(stream)[at] for stream in streams], axis=1), exchanges or lesson.exchanges


@dataclass(frozen=True, slots=True)
class _Seen:
    """What both models make of a lesson: `read` (tokens, R) projected, the small one's exact K and V of all layers."""

    read: Single
    k: Single
    v: Single
    exchanges: tuple[Exchange, ...]


class _School:
    """Lessons as both models read them, and how guides do with them."""

    def __init__(self, models: Models, first: int, reads: tuple[int, ...], units: archive.Arrays) -> None:
        """`units`: by `_units`."""
        self._models, self._first, self._reads, self._units = models, first, reads, units

    def seen(self, lesson: Lesson) -> _Seen:
        """What both models make of a lesson."""
        streams, exchanges = _read(self._models, self._reads, lesson)
        read = (streams - self._units["mean"]) @ self._units["inward"]
        return _Seen(np.asarray(read, np.float32), *self._models.pupil.read(lesson.tokens), exchanges)

    def asked(self, seen: _Seen, others: Single) -> tuple[Sums, Sums]:
        """What a lesson asks for, of a guide and of its control, which reads `others` (any number of tokens, R)."""
        found = self._models.pupil.gradients(seen.k, seen.v, seen.exchanges)
        gradients = _both(self._models, *found, self._first)  # a rotation's transpose is its inverse
        gradients *= self._units["units"][:, :, None]
        layers, _, count, _ = gradients.shape
        rows = gradients.transpose(0, 1, 3, 2).reshape(layers, -1, count)[..., SINK_TOKENS:]
        own, control = (steepest.lesson(rows, read[SINK_TOKENS:]) for read in (seen.read, _resized(others, count)))
        return own, control

    def nothing(self) -> Sums:
        """What no lesson asks for."""
        layers, heads, dim = self._units["units"].shape
        return steepest.nothing(layers, heads * dim, self._units["inward"].shape[1])

    def best(self, sums: Sums, tried: Sequence[tuple[_Seen, Single]]) -> Guide:
        """What lessons ask for, in the strengths that `tried` like best: first of what is read, then of the rest."""
        units = self._units["units"]
        added, bias, gates = steepest.solved(sums, units.shape[1])
        scale = units.reshape(len(units), -1)
        made = partial(self._guide, added * scale[:, None], bias * scale, gates)
        strength = self._strength(lambda one: made(one, 0), tried)
        return made(strength, self._strength(lambda one: made(strength, one), tried))

    def _guide(self, added: Single, bias: Single, gates: Single, strength: float, rest: float) -> Guide:
        parts = np.float32(strength) * added, np.float32(rest) * bias, gates
        return Guide(self._first, self._reads, Weights(self._units["mean"], self._units["inward"], *parts))

    def _strength(self, made: Callable[[float], Guide], tried: Sequence[tuple[_Seen, Single]]) -> float:
        """Of all strengths, in turn while the loss still falls, the last."""
        best, least = 0.0, self.nats(made(0), tried)
        for strength in STRENGTHS:
            nats = self.nats(made(strength), tried)
            if nats >= least:
                break
            best, least = strength, nats
        return best

    def nats(self, guide: Guide, some: Sequence[tuple[_Seen, Single]]) -> float:
        """The loss on what follows documents with guided KV, by what the large model makes of each or of another.

        The mean over documents: a few short answers count as much as a page.
        """
        return float(np.mean([_mean(self._losses(guide, seen, read)) for seen, read in some]))

    def exact(self, some: Sequence[_Seen]) -> float:
        """The same with exact KV."""
        pupil = self._models.pupil
        return float(np.mean([_mean(pupil.losses(*pupil.rows(one.k, one.v), one.exchanges)) for one in some]))

    def _losses(self, guide: Guide, seen: _Seen, read: Single) -> list[Single]:
        changes = guide.of(_resized(read, len(seen.read)))
        changes[..., :SINK_TOKENS, :] = 0
        k, v = seen.k.copy(), seen.v.copy()
        k[self._first :] += rotate(changes[:, 0], Span(0, len(seen.read)), rope(self._models.small))
        v[self._first :] += changes[:, 1]
        return self._models.pupil.losses(*self._models.pupil.rows(k, v), seen.exchanges)


def _learnt(
    school: _School,
    learnt: Sequence[Lesson],
    tried: Sequence[Lesson],
    measured: Sequence[Lesson],
    head: _Head,
    arrays: archive.Arrays,
    keep: Path | None,
    progress: Report,
) -> tuple[Guide, Guide, list[tuple[int, float, float]]]:
    """What all lessons ask for, from where `head` says: guide, control, and the curve."""
    curve = list(head.curve)
    sums = [_sums(arrays, name, head.tokens) if head.done else school.nothing() for name in _NAMES]
    trying, unseen = ([school.seen(one) for one in some] for some in (tried, _of_both_kinds(measured, _CURVE_LESSONS)))

    def point(done: int) -> list[Guide]:
        guides = [school.best(its, of(trying)) for its, of in zip(sums, (_own, _others), strict=True)]
        told = [school.nats(one, of(unseen)) for one, of in zip(guides, (_own, _others), strict=True)]
        curve.append((done, told[0], told[1]))
        return guides

    if not curve:
        exact = school.exact(unseen)
        curve.append((0, exact, exact))
    before = school.seen(learnt[head.done - 1])
    for done, one in enumerate(learnt[head.done :], head.done + 1):
        now = school.seen(one)
        sums = [its + more for its, more in zip(sums, school.asked(now, before.read), strict=True)]
        before = now
        if done < len(learnt) and done in [round(share * len(learnt)) for share in _CURVE]:
            point(done)
        if keep is not None and done % _SAVE_LESSONS == 0:
            told = _Head(head.identity, done, head.reads, curve, sums[0].tokens)
            files.write(keep, archive.dumps(told, arrays | _arrays(sums)))
        progress("guide", done, len(learnt))
    guide, control = point(len(learnt))
    return guide, control, curve


def _of_both_kinds(some: Sequence[Lesson], count: int) -> list[Lesson]:
    """So many and one at least, half of them with questions if there are such."""
    asked, plain = ([one for one in some if one.asked == kind] for kind in (True, False))
    found = asked[: count // 2]
    return found + plain[: max(1, count - len(found))]


def _own(seen: Sequence[_Seen]) -> list[tuple[_Seen, Single]]:
    """Documents, and what the large model makes of each."""
    return [(one, one.read) for one in seen]


def _others(seen: Sequence[_Seen]) -> list[tuple[_Seen, Single]]:
    """Documents, and what the large model makes of another one."""
    return [(one, other.read) for one, other in zip(seen, [seen[-1], *seen[:-1]], strict=True)]


def _resized(read: Single, count: int) -> Single:
    """Of another document: so many tokens, from the start again if it is shorter."""
    return np.resize(read, (count, read.shape[1]))


_SUMS: Final = "asked", "squares", "apart"


def _arrays(sums: Sequence[Sums]) -> archive.Arrays:
    """Sums of guide and control, to be kept."""
    return {f"{name} {part}": getattr(its, part) for name, its in zip(_NAMES, sums, strict=True) for part in _SUMS}


def _sums(arrays: archive.Arrays, name: str, tokens: int) -> Sums:
    """One of those that `_arrays` keeps."""
    asked, squares, apart = (arrays[f"{name} {part}"] for part in _SUMS)
    return Sums(asked, squares, apart, tokens)


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
