"""How a context is read: by its own model alone, or with a large model's help where that keeps the budget.

the large model reads the tokens → the small one does, exactly → each mapping, those that take most from the large model
first, and each guide: its KV goes into the engine, and what follows in windows of the context itself is predicted → the
first that keeps the budget stays. KV that was taught this very context goes through the same gate, and needs nobody to
read.
It decides what is published; it must not know segments, stores or names.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from preread.align.guide_bytes import KeptGuide
from preread.align.mapping import Read
from preread.align.mapping_bytes import Kept
from preread.align.taught_bytes import Taught
from preread.cloud.events import Mode
from preread.codec.profile import Quality
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.guided import guided
from preread.fit.map import mapped, read
from preread.fit.quality import Score, compare, log_softmax, summary
from preread.fit.sample import TAIL_TOKENS
from preread.plan.choose import MAX_DLOSS, MAX_MODE_DLOSS
from preread.values import Geometry, KVBlock, Span
from preread.wire.digest import context_id

Tokens = npt.NDArray[np.int32]
Report = Callable[[str, int, int], None]

_MOST_WINDOWS: Final = 8
_LEAST_BEFORE_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Help:
    """What a large model can do for a small one.

    Attributes:
        large: it, used in the small one's thread; None: there is none, and no mapping.
        mappings: from what it makes of a text to the small model's KV.
        guides: what of that is added to the small model's KV.
        taught: contexts that it taught, each once.
        max_dloss: nats a token that reading other KV than the exact one may cost: on the context itself, and, mapped,
            in the fit's own measurement.
    """

    large: LlamaCpp | None = None
    mappings: tuple[Kept, ...] = ()
    taught: tuple[Taught, ...] = ()
    max_dloss: float = MAX_MODE_DLOSS
    guides: tuple[KeptGuide, ...] = ()


NO_HELP: Final = Help()


@dataclass(frozen=True, slots=True)
class Reading:
    """How a context was read.

    Attributes:
        mode: what the engine now holds.
        quality: what that costs on windows of the context itself, against exact KV; None: it is exact.
        notes: for each mode that was tried or refused, a line with its numbers.
        logits: those that were asked for (tokens of the spans, vocab); None: what the engine holds tells them.
    """

    mode: Literal["exact", "mapped", "guided", "taught"] = "exact"
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    logits: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Other KV for a context: `block` makes it; `refused`: by what was measured before, or None."""

    mode: Literal["mapped", "guided", "taught"]
    what: str
    block: Callable[[], KVBlock]
    refused: str | None


def check_models(small: LlamaCpp, help: Help) -> None:
    """Refuse mappings, guides and taught contexts of other models.

    Raises:
        UsageError: one is.
    """
    for kept in help.mappings:
        _check_pair(small, help.large, kept, f"the mapping with split {kept.mapping.split}", "map")
    for guide in help.guides:
        _check_pair(small, help.large, guide, "a guide", "guide")
    shape = small.spec.geometry
    for one in help.taught:
        layers, kv_heads, _, head_dim = one.block.k.shape
        if one.small != small.spec.fingerprint or shape != Geometry(layers, kv_heads, head_dim):
            raise UsageError(f"a taught context is of another model than {small.spec.name}: teach it with `fit teach`")


def _check_pair(small: LlamaCpp, large: LlamaCpp | None, one: Kept | KeptGuide, what: str, command: str) -> None:
    if large is None or (one.small, one.large) != (small.spec.fingerprint, large.spec.fingerprint):
        raise UsageError(
            f"{what} is of other models than {large.spec.name if large else 'this cloud runs'} and {small.spec.name}: "
            f"fit one for them with `preread fit {command}`"
        )
    if one.geometry != small.spec.geometry:
        raise UsageError(f"{what} is of KV of another shape than {small.spec.name} has: do not use this file")


def read_context(
    small: LlamaCpp, help: Help, tokens: Tokens, mode: Mode, progress: Report, spans: Sequence[Span] = ()
) -> Reading:
    """Read a context, which `small` then holds as it is to be published.

    Args:
        small: opened to score `sample.TAIL_TOKENS` tokens, if there is any help.
        help: what the large one held is gone.
        tokens: the context's.
        mode: "taught"; "guided"; "mapped": the mapping that takes most from the large model, of those that keep the
            budget; "auto": taught, or else the mapping or guide that lowers the loss most, of those whose interval
            lies below zero.
        progress: is told of the stages "prefill", "read" and "measure".
        spans: where to take logits on the way, if nothing but the small model reads.

    Raises:
        EngineError: an engine failed; what `small` holds is of no use then.
        Cancelled: somebody called `cancel` of an engine.
    """
    cuts = windows(len(tokens))
    taught = _taught(small, help, tokens) if mode in ("taught", "auto") else []
    mappings = help.mappings if mode in ("mapped", "auto") else ()
    guides = help.guides if mode in ("guided", "auto") else ()
    notes = []
    if mode == "taught" and not taught:
        notes.append("exact: nobody taught this context: use `preread fit teach`, and start the cloud with --taught")
    elif (taught or mappings or guides) and not cuts:
        notes.append(f"exact: {len(tokens)} tokens are too few to measure a mode on")
        taught, mappings, guides = [], (), ()
    both: Read | None = None
    if (mappings or guides) and help.large is not None:
        try:
            both = _read(small, help.large, mappings, guides, tokens, progress)
        except UsageError as error:  # it does not fit the large model's window
            notes.append(f"exact: {error}")
    logits = None
    if both is None:
        logits = small.session.prefill(tokens, lambda done: progress("prefill", done, len(tokens)), spans)
    candidates = taught
    if both is not None:
        candidates += _mapped(small, mappings, both, help.max_dloss) + _guided(small, guides, both)
    if not candidates:
        return Reading(notes=tuple(notes), logits=logits)
    exact = small.session.export(Span(0, len(tokens)), Span(0, small.spec.geometry.layers))
    references = [log_softmax(small.session.score(tokens[at : at + TAIL_TOKENS], reuse=at)) for at in cuts]
    judged: list[tuple[tuple[bool, float], _Candidate, KVBlock, Quality]] = []
    for number, one in enumerate(candidates):
        block = one.block()
        small.session.inject(block)
        told = summary(_scores(small, tokens, cuts, references))
        small.session.inject(exact)
        progress("measure", number + 1, len(candidates))
        why = one.refused or _refused(one, told.quality, told.dloss_ci[1], help.max_dloss, mode)
        notes.append(f"{_told(one, told.quality)}: {why or 'it keeps the budget'}")
        if why is None:
            rank = told.quality.dloss if mode == "auto" else float(number)
            judged.append(((one.mode != "taught", rank), one, block, told.quality))
    if not judged:
        return Reading(notes=tuple(notes))
    _, best, block, quality = min(judged, key=lambda one: one[0])
    small.session.inject(block)
    if best.mode != "mapped":  # that other tokens become likelier is what was learnt
        quality = replace(quality, kl=0.0)
    if (costs := max(quality.dloss, quality.kl)) > MAX_DLOSS:
        least = math.ceil(costs * 100 + 1) / 100  # a hundredth more than that, for the codec
        notes.append(f"edges stream it with --max-dloss {least:g} or more, and compute it themselves with less")
    return Reading(best.mode, quality, tuple(notes))


def _taught(small: LlamaCpp, help: Help, tokens: Tokens) -> list[_Candidate]:
    context = context_id(small.spec.fingerprint, tokens)
    return [
        _Candidate("taught", "taught", partial(attrgetter("block"), one), _refused_lesson(one))
        for one in help.taught
        if one.context == context and len(one.block.tokens) == len(tokens)
    ]


def _refused_lesson(taught: Taught) -> str | None:
    """Why KV must not be published that was taught so."""
    if taught.studied != taught.context:
        return "refused, it was taught with questions about another document: it is a control"
    if taught.dloss_ci[1] >= 0:
        high = taught.dloss_ci[1]
        return f"refused, answers held out do not become likelier beyond doubt (95 % interval up to {high:+.4f})"
    return None


def _read(
    small: LlamaCpp,
    large: LlamaCpp,
    mappings: Sequence[Kept],
    guides: Sequence[KeptGuide],
    tokens: Tokens,
    progress: Report,
) -> Read:
    layers = {layer for kept in mappings for layer in kept.mapping.reads}
    layers |= {layer for kept in guides for layer in kept.guide.reads}
    splits = sorted({kept.mapping.split for kept in mappings})
    return read(small, large, tokens, splits, sorted(layers), lambda done: progress("read", done, 2 * len(tokens)))


def _mapped(small: LlamaCpp, mappings: Sequence[Kept], both: Read, max_dloss: float) -> list[_Candidate]:
    """Those that take most from the large model first."""
    found = []
    for kept in sorted(mappings, key=lambda kept: kept.mapping.split):
        why = None
        if kept.dloss > max_dloss:
            why = f"refused, the budget is {max_dloss:g} and the fit's own windows rose by {kept.dloss:.4f}"
        make = partial(mapped, kept.mapping, both, small.ropes)
        found.append(_Candidate("mapped", f"mapped from layer {kept.mapping.split} on", make, why))
    return found


def _guided(small: LlamaCpp, guides: Sequence[KeptGuide], both: Read) -> list[_Candidate]:
    return [
        _Candidate("guided", "guided", partial(guided, one.guide, both, small.ropes), _refused_guide(one))
        for one in guides
    ]


def _refused_guide(kept: KeptGuide) -> str | None:
    """Why KV must not be published that is guided so."""
    if kept.control:
        return "refused, it is a control: it learnt from what was read of other documents"
    told = kept.outcome
    if told.dloss_ci[1] >= 0 or told.gain_ci[0] <= 0:
        return (
            "refused, text held out of its fit does not become likelier beyond doubt, or as likely with its control: "
            f"loss {told.dloss:+.4f} [{told.dloss_ci[0]:+.4f}, {told.dloss_ci[1]:+.4f}], "
            f"gain over the control {told.gain:+.4f} [{told.gain_ci[0]:+.4f}, {told.gain_ci[1]:+.4f}]"
        )
    return None


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
        found.append(compare(engine.session.score(tail, reuse=at), tail, exact))
    return found


def _refused(one: _Candidate, quality: Quality, dloss_high: float, max_dloss: float, mode: Mode) -> str | None:
    """Why a mode is not published, by what it does to the context itself; None: it may be."""
    if quality.dloss > max_dloss:
        return f"refused, the budget is {max_dloss:g}"
    if mode == "auto" and one.mode != "taught" and dloss_high >= 0:
        return f"not taken, it lowers nothing beyond doubt (95 % interval up to {dloss_high:+.4f})"
    return None


def _told(one: _Candidate, quality: Quality) -> str:
    return (
        f"{one.what}: the loss rises by {quality.dloss:+.4f} nats a token, KL {quality.kl:.4f}, on {quality.tokens} "
        "tokens of the context"
    )
