"""The story of a taught context: the small model's KV of one document learns to answer as the large model does.

exact KV → step by step towards the large model's distributions over the answers of a study, while the document's own
text stays as likely as it was → measured in the real engine, on answers that nothing was learnt from. The models stay
as they are; what is published is KV like any other.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from preread.align import archive, taught_bytes
from preread.align.exchanges import Exchange, Single, batches, told
from preread.align.study_bytes import Study
from preread.align.taught_bytes import Taught
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import EngineError, UsageError
from preread.fit import files
from preread.fit.quality import interval, log_softmax
from preread.fit.sample import hold
from preread.values import ContextId, Span
from preread.wire.digest import context_id, object_id

if TYPE_CHECKING:
    from preread.engine.hf import Frozen
    from preread.engine.learning import Pupil

Report = Callable[[str, int, int], None]
"""Told a stage ("teach" or "measure"), how much of it is done, and how much there is."""

EPOCHS: Final = 3.0
RATE: Final = 0.02
"""Of Adam, in units of what a channel varies by over the context."""

ANCHOR_TOKENS: Final = 64
MOST_ANCHORS: Final = 16
"""Stretches of the document that what precedes them goes on predicting as before. Without them a document's own text
became less likely by 0.01 (module of Python) and 0.06 nats a token (chapter of a manual)."""

_WARM_STEPS: Final = 5
_BATCH_ROWS: Final = 160
_SAVE_STEPS: Final = 20
_SEED: Final = 0

_FARTHEST_APART: Final = 0.15
"""Nats a token by which the two engines may differ on one text: they round differently, no more."""


class _Head(msgspec.Struct, frozen=True):
    """Of what is kept of a lesson that has not ended."""

    identity: str
    step: int
    curve: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What came of teaching a context.

    Attributes:
        taught: its KV, and what that changes.
        exact, llm: nats a token of the answers held out, with exact KV, and of the large model itself.
        curve: (steps, nats a token of the answers held out) while it learned, as PyTorch computes them.
    """

    taught: Taught
    exact: float
    llm: float
    curve: tuple[tuple[int, float], ...]


def teach(
    small: LlamaCpp,
    frozen: "Frozen",
    tokens: Tokens,
    lessons: Study,
    measured: Study,
    progress: Report,
    epochs: float = EPOCHS,
    keep: Path | None = None,
) -> Lesson:
    """Teach a context. `small` then holds it as it was taught.

    Args:
        small: opened to score `sample.TAIL_TOKENS` tokens; `frozen`: the same model, to be differentiated.
        tokens: the context's.
        lessons: what to learn from; of another context for a control, which learns how answers are worded.
        measured: of this context; what it holds out is measured.
        epochs: how often each exchange is learnt from.
        keep: where to keep what was learnt every few minutes, and to go on from; removed by the caller.

    Raises:
        UsageError: a study is of another model or context, or `keep` cannot be written.
        EngineError: an engine failed, or the two compute differently.
    """
    from preread.engine.learning import Pupil

    context = context_id(small.spec.fingerprint, tokens)
    _check(small, context, lessons, measured)
    small.session.prefill(tokens)
    exact = small.session.export(Span(0, len(tokens)), Span(0, small.spec.geometry.layers))
    before = answers(small, measured.held_out)
    pupil = Pupil(frozen, exact)
    check_alike(before, pupil.losses(measured.held_out))
    course = schedule([*lessons.taught, *anchors(small, tokens)], epochs)
    identity = _identity(context, course)
    curve: list[tuple[int, float]] = []
    for step in range(_resumed(pupil, keep, identity, curve), len(course)):
        if step % _SAVE_STEPS == 0:
            curve.append((step, float(np.concatenate(pupil.losses(measured.held_out)).mean())))
            _save(pupil, keep, identity, step, curve)
        pupil.step(course[step], rate(step, len(course)))
        progress("teach", step + 1, len(course))
    block = pupil.block()
    hold(small, block)
    after = answers(small, measured.held_out)
    progress("measure", 1, 1)
    rises = [new.astype(np.float64) - old for new, old in zip(after, before, strict=True)]
    count = sum(map(len, rises))
    curve.append((len(course), _mean(after)))
    taught = Taught(
        block, context, lessons.context, small.spec.fingerprint, lessons.large, _mean(rises), interval(rises),
        len(rises), count,
    )  # fmt: skip
    return Lesson(taught, _mean(before), _mean([one.losses for one in measured.held_out]), tuple(curve))


def load(path: Path) -> Taught:
    """A taught context's file.

    Raises:
        UsageError: it cannot be read.
        CorruptData: it is none.
    """
    return taught_bytes.loads(files.read(path))


def schedule(exchanges: Sequence[Exchange], epochs: float, seed: int = _SEED) -> list[list[Exchange]]:
    """What each step learns from: every exchange once before any comes again, in another order each time."""
    source = random.Random(seed)
    order: list[Exchange] = []
    count = max(1, round(epochs * len(exchanges)))
    while len(order) < count:
        turn = list(exchanges)
        source.shuffle(turn)
        order += turn
    return batches(order[:count], _BATCH_ROWS)


def anchors(small: LlamaCpp, tokens: Tokens) -> list[Exchange]:
    """Stretches of the context that `small` holds exactly, evenly spread, with what it says of them itself.

    There are none where the context is too short.
    """
    room = len(tokens) // ANCHOR_TOKENS - 1
    found = []
    for turn in np.unique(np.linspace(1, room, min(room, MOST_ANCHORS)).round().astype(int)) if room > 0 else ():
        at = int(turn) * ANCHOR_TOKENS
        text = tokens[at : at + ANCHOR_TOKENS]
        found.append(told(text[:1], text[1:], log_softmax(small.session.score(text, reuse=at))[:-1], at))
    return found


def rate(step: int, steps: int) -> float:
    """Of learning: it rises for a few steps and then falls to a twentieth."""
    return RATE * min(1.0, (step + 1) / _WARM_STEPS) * max(0.05, 1 - step / steps)


def answers(engine: LlamaCpp, exchanges: Sequence[Exchange]) -> list[Single]:
    """Nats of each answer's tokens, (A,) for each exchange, after the context that the engine holds."""
    found = []
    for one in exchanges:
        said = engine.session.score(np.concatenate([one.prompt, one.answer[:-1]]), reuse=one.behind)
        said = log_softmax(said[len(one.prompt) - 1 :])
        found.append(-said[np.arange(len(one.answer)), one.answer])
    return found


def _mean(values: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(values).mean())


def _check(small: LlamaCpp, context: ContextId, lessons: Study, measured: Study) -> None:
    for one in (lessons, measured):
        if one.small != small.spec.fingerprint:
            raise UsageError(f"the study was made for another model than {small.spec.name}: make one with `fit study`")
        for exchange in one.exchanges:
            small.check_tokens(np.concatenate([exchange.prompt, exchange.answer, exchange.candidates.ravel()]))
    if measured.context != context:
        raise UsageError("the study is of another document than the one that is taught, or of another form of it")
    if not measured.held_out:
        raise UsageError("the study is too short: nothing is held out to measure with")


def check_alike(ours: Sequence[Single], theirs: Sequence[Single]) -> None:
    """What is learnt in one engine has to hold in the other."""
    apart = abs(_mean(ours) - _mean(theirs))
    if apart > _FARTHEST_APART:
        raise EngineError(
            f"PyTorch and llama.cpp differ by {apart:.2f} nats a token on the same answers: transformers does not read "
            "this model as llama.cpp does, and nothing can be taught"
        )


def _identity(context: ContextId, course: Sequence[Sequence[Exchange]]) -> str:
    """Of a lesson: whose it is, and what each of its steps learns from."""
    read = [np.concatenate([one.prompt, one.answer]) for batch in course for one in batch]
    return object_id(context.encode("ascii") + np.concatenate(read).astype("<i4").tobytes())


def _save(pupil: "Pupil", keep: Path | None, identity: str, step: int, curve: list[tuple[int, float]]) -> None:
    if keep is None or not step:
        return
    files.write(keep, archive.dumps(_Head(identity, step, curve), pupil.state()))


def _resumed(pupil: "Pupil", keep: Path | None, identity: str, curve: list[tuple[int, float]]) -> int:
    """The step to go on with: 0, unless something was kept of this very lesson."""
    if keep is None or not keep.exists():
        return 0
    head, arrays = archive.loads(files.read(keep), _Head, "lesson that was interrupted")
    if head.identity != identity:
        return 0
    pupil.resume(arrays)
    curve += head.curve[:-1]  # the last point is taken again
    return head.step
