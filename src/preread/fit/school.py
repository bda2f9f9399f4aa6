"""Lessons as both models read them: what they ask of a guide, and how it does with them.

PyTorch says what the small model predicts and what would have it predict better; how llama.cpp has its KV is kept to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from preread.align import archive
from preread.align.guide import Guide, Weights
from preread.align.projection import leading
from preread.codec.rope import unrotate
from preread.engine.hf import Frozen
from preread.engine.learning import Document, Learner, Readers, Reading, others, told
from preread.engine.llamacpp import LlamaCpp
from preread.fit.align import matching
from preread.fit.lessons import Lesson
from preread.fit.map import SINK_TOKENS
from preread.fit.quality import Single
from preread.values import Span

READ_CHANNELS: Final = 1024

STRONGER: Final = (1.25, 1.6)
WEAKER: Final = (0.75, 0.5, 0.25, 0.0)
"""By which all that is added is multiplied in the end: what few lessons agree on goes too far."""


@dataclass(frozen=True, slots=True)
class Models:
    """The same two models in two engines: `small` and `large` read and measure, `pupil` and `teacher` are learnt with.

    `small` is opened to score `sample.TAIL_TOKENS` tokens; the large one may have another tokenizer.
    """

    small: LlamaCpp
    large: LlamaCpp
    pupil: Frozen
    teacher: Frozen


def begun(models: Models, first: int, reads: tuple[int, ...], sample: Sequence[Lesson]) -> archive.Arrays:
    """What is read is projected by, and what is added counts in: by some lessons' own readings."""
    read: list[Single] = []
    rows: list[Single] = []
    for one in sample:
        (streams,), _, _ = told(models.teacher, reads, [document(models, one)])
        read.append(streams[SINK_TOKENS:].cpu().numpy())
        k, v = (
            np.stack([layer[0].cpu().numpy() for layer in part[first:]]) for part in models.pupil.read([one.tokens])
        )
        k = unrotate(models.pupil.there(k), Span(0, k.shape[2]), models.small.ropes[first:])
        rows.append(np.concatenate([k, v], axis=1)[:, :, SINK_TOKENS:])
    mean, inward = leading(np.concatenate(read), READ_CHANNELS)
    return {"mean": mean, "inward": inward, "units": np.concatenate(rows, axis=2).std(axis=2)}


def document(models: Models, lesson: Lesson) -> Document:
    """A lesson as both models read it."""
    theirs, at = matching(models.small, models.large, lesson.tokens)
    alike = models.small.spec.vocabulary == models.large.spec.vocabulary
    return Document(lesson.tokens, theirs, at, lesson.exchanges, alike and not lesson.asked)


class School:
    """Two models that read lessons, and what learns from them."""

    def __init__(self, models: Models, first: int, reads: tuple[int, ...], arrays: archive.Arrays) -> None:
        """`arrays`: by `begun`."""
        self._models, self._first, self._reads = models, first, reads
        self._mean, self._inward, self._units = (arrays[name] for name in ("mean", "inward", "units"))
        self._readers = Readers(models.pupil, models.teacher, reads, self._mean, self._inward)

    def learner(self) -> Learner:
        """A guide that changes nothing yet."""
        width = self._inward.shape[1]
        return Learner(self._models.pupil, self._models.small.ropes, self._first, self._units, width)

    def read(self, lessons: Sequence[Lesson]) -> Iterator[Reading]:
        """What both models make of lessons, as many together as this machine likes."""
        size = self._models.pupil.at_once
        for at in range(0, len(lessons), size):
            yield self._readers.read([document(self._models, one) for one in lessons[at : at + size]])

    def guide(self, learner: Learner, strength: float) -> Guide:
        """What was learnt."""
        added, bias = learner.weights()
        gates = np.full(self._units.shape[:2], strength, np.float32)
        parts = self._mean, self._inward, added, np.float32(strength) * bias, gates
        return Guide(self._first, self._reads, Weights(*parts))


def nats(learner: Learner, some: Sequence[Reading], control: bool, strength: float = 1) -> float:
    """The loss on what follows documents with guided KV, of a control by what the large model makes of others.

    The mean over documents: a few short answers count as much as a page.
    """
    found: list[Single] = []
    before = some[-1].read[-1]
    for one in some:
        found += learner.losses(one, others(one.read, before) if control else one.read, strength)
        before = one.read[-1]
    return float(np.mean([its.mean() for its in found]))


def best(learner: Learner, tried: Sequence[Reading], control: bool) -> float:
    """Of all strengths from 1 on, first up and else down, the last one in turn that lowers the loss."""
    found, least = 1.0, nats(learner, tried, control)
    for strengths in (STRONGER, WEAKER):
        for strength in strengths:
            its = nats(learner, tried, control, strength)
            if its >= least:
                break
            found, least = strength, its
        if found != 1:
            break
    return found
