"""How a context is read: by its own model alone, or with a large model's help where that keeps the budget.

the large model reads the tokens → the small one does, exactly → each mapping, those that take most from the large model
first: its KV goes into the engine, and what follows in windows of the context itself is predicted → the first that
keeps the budget stays. It decides what is published; it must not know segments, stores or names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from preread.align.mapping_bytes import Kept
from preread.cloud.events import Mode
from preread.codec.profile import Quality
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.map import mapped, read
from preread.fit.quality import Score, compare, log_softmax, summary
from preread.fit.sample import TAIL_TOKENS, rope
from preread.plan.choose import MAX_MODE_DLOSS
from preread.values import KVBlock

Tokens = npt.NDArray[np.int32]
Report = Callable[[str, int, int], None]

_MOST_WINDOWS: Final = 8
_LEAST_BEFORE_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Large:
    """A large model that reads for a small one.

    Attributes:
        engine: used in the small one's thread.
        mappings: from what it makes of a text to the small model's KV.
        max_dloss: nats a token that reading mapped KV may cost, in the fit's own measurement and on the context.
    """

    engine: LlamaCpp
    mappings: tuple[Kept, ...]
    max_dloss: float = MAX_MODE_DLOSS


@dataclass(frozen=True, slots=True)
class Reading:
    """How a context was read.

    Attributes:
        mode: what the engine now holds.
        quality: what that changes, against exact KV, on windows of the context itself; None: it is exact.
        notes: for each mode that was tried or refused, a line with its numbers.
    """

    mode: Literal["exact", "mapped"] = "exact"
    quality: Quality | None = None
    notes: tuple[str, ...] = ()


def check_models(small: LlamaCpp, large: Large) -> None:
    """Refuse mappings of other models.

    Raises:
        UsageError: one is.
    """
    for kept in large.mappings:
        if (kept.small, kept.large) != (small.spec.fingerprint, large.engine.spec.fingerprint):
            raise UsageError(
                f"the mapping with split {kept.mapping.split} is of other models than {large.engine.spec.name} and "
                f"{small.spec.name}: fit one for them with `preread fit map`"
            )


def read_context(small: LlamaCpp, large: Large | None, tokens: Tokens, mode: Mode, progress: Report) -> Reading:
    """Read a context, which `small` then holds as it is to be published.

    Args:
        small: opened to score `sample.TAIL_TOKENS` tokens, if there is a large model.
        large: what it holds is gone; None: nobody helps.
        tokens: the context's.
        mode: "mapped": the mapping that takes most from the large model, of those that keep the budget; "auto": the
            one that lowers the loss most, of those whose interval lies below zero.
        progress: is told of the stages "prefill", "read" and "measure".

    Raises:
        EngineError: an engine failed; what `small` holds is of no use then.
        Cancelled: somebody called `cancel` of an engine.
    """
    cuts = windows(len(tokens))
    if large is None or mode == "exact" or not cuts:
        small.prefill(tokens, lambda done: progress("prefill", done, len(tokens)))
        few = f"exact: {len(tokens)} tokens are too few to measure a mode on"
        return Reading(notes=(few,) if large is not None and mode != "exact" else ())
    ordered = sorted(large.mappings, key=lambda kept: kept.mapping.split)
    layers = sorted({layer for kept in ordered for layer in kept.mapping.reads})
    splits = sorted({kept.mapping.split for kept in ordered})
    try:
        both = read(small, large.engine, tokens, splits, layers, lambda done: progress("read", done, 2 * len(tokens)))
    except UsageError as error:  # it does not fit the large model's window
        small.prefill(tokens, lambda done: progress("prefill", done, len(tokens)))
        return Reading(notes=(f"exact: {error}",))
    references = [log_softmax(small.score(tokens[at : at + TAIL_TOKENS], reuse=at)) for at in cuts]
    judged: list[tuple[float, KVBlock, Quality]] = []
    notes = []
    for number, kept in enumerate(ordered):
        block = mapped(kept.mapping, both, rope(small))
        small.inject(block)
        told = summary(_scores(small, tokens, cuts, references))
        small.inject(both.block)
        progress("measure", number + 1, len(ordered))
        why = _refused(kept, told.quality, told.dloss_ci[1], large.max_dloss, mode)
        notes.append(f"{_told(kept, told.quality)}: {why or 'it keeps the budget'}")
        if why is None:
            judged.append((told.quality.dloss if mode == "auto" else number, block, told.quality))
    if not judged:
        return Reading(notes=tuple(notes))
    _, block, quality = min(judged, key=lambda one: one[0])
    small.inject(block)
    return Reading("mapped", quality, tuple(notes))


def windows(tokens: int) -> list[int]:
    """Where the windows begin whose tokens are predicted from all before them; none if the context is too short.

    They do not overlap, lie evenly over the context, and the last one ends it.
    """
    room = (tokens - _LEAST_BEFORE_TOKENS) // TAIL_TOKENS
    count = min(_MOST_WINDOWS, room)
    return [tokens - TAIL_TOKENS * (1 + (count - 1 - n) * room // max(count, 1)) for n in range(count)]


def _scores(
    engine: LlamaCpp, tokens: Tokens, cuts: Sequence[int], references: Sequence[npt.NDArray[np.float32]]
) -> list[Score]:
    found = []
    for at, exact in zip(cuts, references, strict=True):
        tail = tokens[at : at + TAIL_TOKENS]
        found.append(compare(engine.score(tail, reuse=at), tail, exact))
    return found


def _refused(kept: Kept, quality: Quality, dloss_high: float, max_dloss: float, mode: Mode) -> str | None:
    """Why a mode is not published; None: it may be."""
    if kept.dloss > max_dloss:
        return f"refused, the budget is {max_dloss:g} and the fit's own windows rose by {kept.dloss:.4f}"
    if quality.dloss > max_dloss:
        return f"refused, the budget is {max_dloss:g}"
    if mode == "auto" and dloss_high >= 0:
        return f"not taken, it lowers nothing beyond doubt (95 % interval up to {dloss_high:+.4f})"
    return None


def _told(kept: Kept, quality: Quality) -> str:
    return (
        f"mapped from layer {kept.mapping.split} on: the loss rises by {quality.dloss:+.4f} nats a token, KL "
        f"{quality.kl:.4f}, on {quality.tokens} tokens of the context"
    )
