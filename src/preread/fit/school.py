"""Lessons as both models read them: what they ask of a guide, and how it does with them.

The small model's KV is as llama.cpp has it throughout; PyTorch only says what it predicts, and its gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from preread.align import archive, steepest
from preread.align.exchanges import Exchange, told
from preread.align.guide import Guide, Weights
from preread.align.projection import leading
from preread.align.steepest import Sums
from preread.codec.profile import normalised
from preread.codec.rope import Rope, rotate, unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.fit.align import matching
from preread.fit.lessons import Lesson
from preread.fit.map import SINK_TOKENS
from preread.fit.quality import Single
from preread.fit.sample import rope
from preread.values import Span

if TYPE_CHECKING:
    from preread.engine.hf import Frozen

READ_CHANNELS: Final = 512

STRENGTHS: Final = (0.02, 0.04, 0.08, 0.16, 0.32)
"""Of what is added before gates, in units of what a channel varies by: the root mean square."""


@dataclass(frozen=True, slots=True)
class Models:
    """The same two models in two engines: `small` and `large` read and measure, `pupil` and `teacher` are learnt with.

    `small` is opened to score `sample.TAIL_TOKENS` tokens; the large one may have another tokenizer.
    """

    small: LlamaCpp
    large: LlamaCpp
    pupil: "Frozen"
    teacher: "Frozen"


def changed(guide: Guide, read: Single, k: Single, v: Single, rotation: Rope) -> tuple[Single, Single]:
    """K and V of the guided layers from a context's start, by what is read there; its first `SINK_TOKENS` are exact."""
    changes = guide.changes(read)
    changes[..., :SINK_TOKENS, :] = 0
    return k + rotate(changes[:, 0], Span(0, k.shape[2]), rotation), v + changes[:, 1]


def begun(models: Models, first: int, reads: tuple[int, ...], sample: Sequence[Lesson]) -> archive.Arrays:
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
class Seen:
    """What both models make of a lesson: `read` (tokens, R) projected, the small one's exact K and V of all layers."""

    read: Single
    k: Single
    v: Single
    exchanges: tuple[Exchange, ...]


class School:
    """Lessons as both models read them, and how guides do with them."""

    def __init__(self, models: Models, first: int, reads: tuple[int, ...], units: archive.Arrays) -> None:
        """`units`: by `begun`."""
        self._models, self._first, self._reads, self._units = models, first, reads, units

    def seen(self, lesson: Lesson) -> Seen:
        """What both models make of a lesson."""
        streams, exchanges = _read(self._models, self._reads, lesson)
        read = (streams - self._units["mean"]) @ self._units["inward"]
        return Seen(np.asarray(read, np.float32), *self._models.pupil.read(lesson.tokens), exchanges)

    def asked(self, seen: Seen, others: Single) -> tuple[Sums, Sums]:
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

    def best(self, sums: Sums, tried: Sequence[tuple[Seen, Single]]) -> Guide:
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

    def _strength(self, made: Callable[[float], Guide], tried: Sequence[tuple[Seen, Single]]) -> float:
        """Of all strengths, in turn while the loss still falls, the last."""
        best, least = 0.0, self.nats(made(0), tried)
        for strength in STRENGTHS:
            nats = self.nats(made(strength), tried)
            if nats >= least:
                break
            best, least = strength, nats
        return best

    def nats(self, guide: Guide, some: Sequence[tuple[Seen, Single]]) -> float:
        """The loss on what follows documents with guided KV, by what the large model makes of each or of another.

        The mean over documents: a few short answers count as much as a page.
        """
        return float(np.mean([np.concatenate(self._losses(guide, seen, read)).mean() for seen, read in some]))

    def exact(self, some: Sequence[Seen]) -> float:
        """The same with exact KV."""
        pupil = self._models.pupil
        nats = [np.concatenate(pupil.losses(*pupil.rows(one.k, one.v), one.exchanges)).mean() for one in some]
        return float(np.mean(nats))

    def _losses(self, guide: Guide, seen: Seen, read: Single) -> list[Single]:
        first = self._first
        k, v = changed(guide, _resized(read, len(seen.read)), seen.k[first:], seen.v[first:], rope(self._models.small))
        rows = self._models.pupil.rows(np.concatenate([seen.k[:first], k]), np.concatenate([seen.v[:first], v]))
        return self._models.pupil.losses(*rows, seen.exchanges)


def own(seen: Sequence[Seen]) -> list[tuple[Seen, Single]]:
    """Documents, and what the large model makes of each."""
    return [(one, one.read) for one in seen]


def others(seen: Sequence[Seen]) -> list[tuple[Seen, Single]]:
    """Documents, and what the large model makes of another one."""
    return [(one, other.read) for one, other in zip(seen, [seen[-1], *seen[:-1]], strict=True)]


def _resized(read: Single, count: int) -> Single:
    """Of another document: so many tokens, from the start again if it is shorter."""
    return np.resize(read, (count, read.shape[1]))
