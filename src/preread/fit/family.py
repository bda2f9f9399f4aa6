"""Whether a model may read KV that another quantisation of it computed: measured once, and kept as a fit.

both read the same windows → what follows is predicted from the model's own KV, from the other's, from half of each, and
from what a codec leaves of the other's → by how much the loss changes, with intervals.

What is kept is a *gate*: a small JSON file for each pair of models, which an edge reads when it opens. Nothing is
learnt. That both are of one family (see `engine/family.py`) says that the question makes sense, not what the answer is:
a fine-tune may have the family of its base.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import platformdirs
from msgspec import Meta

from preread.codec.fitted import Fitted
from preread.codec.profile import Profile, prepare
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import CorruptData, UsageError
from preread.fit.quality import Score, measure, reference, summary
from preread.fit.sample import windows
from preread.fit.text import Text, calibration, evaluation
from preread.values import Family, Fingerprint, KVBlock, Span

Report = Callable[[str, int, int], None]
"""Told the stage "measure", how many windows are done, and how many there are."""

WINDOWS: Final = 32
LOSSLESS, HALF = "lossless", "half"
"""What is always measured: all KV is the other model's; and the beginning is the model's own, as where an edge computes
what its link does not bring in time."""

MOST_BYTES: Final = 65_536
MOST_MEASURED: Final = 64
MOST_GATES: Final = 64
"""Of one model."""

_log = logging.getLogger(__name__)
_FORMAT: Final = "preread family 1"
_Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Nats = Annotated[float, Meta(ge=-1000, le=1000)]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By how much the loss rose against the model's own prefill: nats a token, and a 95 % interval, both ends included.

    `what`: `LOSSLESS`, `HALF`, or the rung of a codec through which the other's KV went, read with this model's
    embeddings. `tokens`: on so many positions.
    """

    what: Annotated[str, Meta(pattern=r"\A[a-z0-9.-]{1,16}\Z")]
    dloss: _Nats
    low: _Nats
    high: _Nats
    tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What reading the KV of `source` costs `model`, both of one family.

    `loss` and `source_loss` are of each with its own KV, nats a token, on the same text: for people. `text` says which.
    """

    format: Literal["preread family 1"]
    model: _Id
    source: _Id
    family: _Id
    text: Annotated[str, Meta(min_length=1, max_length=4096)]
    loss: _Nats
    source_loss: _Nats
    measured: Annotated[tuple[Change, ...], Meta(min_length=1, max_length=MOST_MEASURED)]

    def high(self, what: str) -> float | None:
        """The upper end of what was measured, nats a token; None: that was not."""
        return next((change.high for change in self.measured if change.what == what), None)


@dataclass(frozen=True, slots=True)
class Through:
    """A codec that KV goes through: its profile, and the embeddings with which it is written."""

    profile: Profile
    embed: Callable[[Tokens], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class _Way:
    """One thing to measure: KV for a window, made of the other model's block and the model's own."""

    what: str
    blocks: Callable[[KVBlock, KVBlock, Tokens], Iterable[KVBlock]]


class Source(Protocol):
    """Whose KV is to be read: a model that llama.cpp runs, or one that something else does."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> tuple[Fingerprint, Family | None]:
        """Fingerprint and family."""

    def read(self, tokens: Tokens, tail: Tokens) -> tuple[KVBlock, float]:
        """KV of a context as llama.cpp caches it, and the loss on what follows, but for its first token."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """A model that llama.cpp runs, opened to score `sample.TAIL_TOKENS` tokens."""

    engine: LlamaCpp

    @property
    def name(self) -> str:
        return self.engine.spec.name

    @property
    def model(self) -> tuple[Fingerprint, Family | None]:
        return self.engine.spec.fingerprint, self.engine.spec.family

    def read(self, tokens: Tokens, tail: Tokens) -> tuple[KVBlock, float]:
        block, _, loss = _read(self.engine, tokens, tail)
        return block, loss


def default_text() -> Text:
    """What is measured on unless somebody says otherwise: prose, code, and pages in eight languages."""
    prose, other = evaluation(), calibration()
    return Text(f"{prose.label}, {other.label}", (*prose.parts, *other.parts))


def measured(
    own: LlamaCpp, source: Source, text: Text, progress: Report, count: int = WINDOWS, through: Through | None = None
) -> Gate:
    """Measure. What the engines held is gone.

    Args:
        own: the model that is to read; opened to score `sample.TAIL_TOKENS` tokens.
        source: the one whose KV it is.
        text: at least 4 windows of 640 tokens.
        count: windows to read, if there are so many.
        through: in which rungs contexts of `source` are published: each of its profile's is measured as well.

    Raises:
        UsageError: the two are not of one family, or are the same model, or the text is too short, or the profile is
            another model's.
        EngineError: an engine failed.
        Cancelled: somebody called `cancel` of an engine.
    """
    family = _shared_family(own, source)
    if through is not None and through.profile.fingerprint != source.model[0]:
        raise UsageError(f"this profile is not of {source.name}, whose KV is to be read")
    ways = [_Way(LOSSLESS, lambda theirs, mine, _: [theirs]), _Way(HALF, lambda theirs, mine, _: _halves(theirs, mine))]
    if through is not None:
        ways += [_Way(rung.name, partial(_coded, own, through, rung.name)) for rung in through.profile.rungs]
    chosen = windows(own, text, count)
    scores: dict[str, list[Score]] = {way.what: [] for way in ways}
    losses: tuple[list[float], list[float]] = ([], [])
    for number, (tokens, tail) in enumerate(chosen):
        mine, before, loss = _read(own, tokens, tail)
        theirs, their_loss = source.read(tokens, tail)
        losses[0].append(loss)
        losses[1].append(their_loss)
        for way in ways:
            made = way.blocks(theirs, mine, tokens)
            scores[way.what].append(measure(own, len(tokens), tail, before, made))
        progress("measure", number + 1, len(chosen))
    return Gate(
        _FORMAT,
        own.spec.fingerprint,
        source.model[0],
        family,
        text.label[:4096],
        float(np.mean(losses[0])),
        float(np.mean(losses[1])),
        tuple(_change(what, found) for what, found in scores.items()),
    )


def _read(engine: LlamaCpp, tokens: Tokens, tail: Tokens) -> tuple[KVBlock, npt.NDArray[np.float32], float]:
    """A model's own KV of a context, its log-probabilities behind it, and its loss on what follows."""
    engine.session.prefill(tokens)
    block = engine.session.export(Span(0, len(tokens)), Span(0, engine.spec.geometry.layers))
    said = reference(engine, tail)
    return block, said, -float(said[np.arange(len(tail) - 1), tail[1:]].mean())


def _shared_family(own: LlamaCpp, source: Source) -> Family:
    one, (fingerprint, family) = own.spec, source.model
    if one.fingerprint == fingerprint:
        raise UsageError(f"{one.name} and {source.name} are the same model, whose KV needs no gate")
    if one.family is None or one.family != family:
        raise UsageError(
            f"{one.name} and {source.name} are not quantisations of one model: their norms, tokenizer, shape or RoPE "
            "differ, so neither can read the other's KV"
        )
    return one.family


def _halves(theirs: KVBlock, mine: KVBlock) -> list[KVBlock]:
    middle = len(theirs.tokens) // 2
    return [_part(mine, Span(0, middle)), _part(theirs, Span(middle, len(theirs.tokens)))]


def _part(block: KVBlock, tokens: Span) -> KVBlock:
    rows = slice(tokens.start, tokens.stop)
    return KVBlock(tokens, block.layers, block.k[:, :, rows], block.v[:, :, rows])


def _coded(
    own: LlamaCpp, through: Through, rung: str, theirs: KVBlock, mine: KVBlock, tokens: Tokens
) -> Iterable[KVBlock]:
    """What an edge makes of a rung: its embeddings are not quite those with which it was encoded."""
    profile = through.profile
    index = [one.name for one in profile.rungs].index(rung)
    writes, reads = (Fitted(prepare(profile, embed(tokens)), index) for embed in (through.embed, own.embeddings))
    for layers in profile.groups:
        rows = slice(layers.start, layers.stop)
        block = KVBlock(theirs.tokens, layers, theirs.k[rows], theirs.v[rows])
        yield reads.decode(writes.encode(block), theirs.tokens, layers, profile.geometry)


def _change(what: str, scores: Sequence[Score]) -> Change:
    found = summary(scores)
    low, high = found.dloss_ci
    return Change(what, found.quality.dloss, low, high, sum(len(score.dloss) for score in scores))


# Files


def dumps(gate: Gate) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(gate), indent=2)


def is_gate(data: bytes) -> bool:
    """Whether a JSON file says that it is a gate."""
    return _FORMAT.encode() in data[:MOST_BYTES]


def loads(data: bytes) -> Gate:
    """What a file says.

    Raises:
        CorruptData: "family", it is no such file, or numbers in it make no sense.
    """
    if len(data) > MOST_BYTES:
        raise CorruptData("family", f"a gate has at most {MOST_BYTES} bytes, not {len(data)}")
    try:
        gate = msgspec.json.decode(data, type=Gate)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptData("family", str(error)) from error
    numbers = [gate.loss, gate.source_loss, *(x for one in gate.measured for x in (one.dloss, one.low, one.high))]
    names = [one.what for one in gate.measured]
    if not all(map(math.isfinite, numbers)) or any(one.low > one.high for one in gate.measured):
        raise CorruptData("family", "an interval whose ends are swapped, or a number that is none")
    if gate.model == gate.source or len(set(names)) != len(names) or not {LOSSLESS, HALF} <= set(names):
        raise CorruptData("family", f"it does not say what {LOSSLESS!r} and {HALF!r} cost, each once, of another model")
    return gate


def usual_path(gate: Gate) -> Path:
    """Where `preread fit family` writes what an edge with this model finds by itself."""
    return _folder(Fingerprint(gate.model)) / f"{gate.source}.json"


def _folder(model: Fingerprint) -> Path:
    return platformdirs.user_cache_path("preread") / "families" / model


def load(path: Path) -> Gate:
    """Read a file.

    Raises:
        UsageError: it cannot be read, or is none; and what to do.
    """
    try:
        with path.open("rb") as file:
            return loads(file.read(MOST_BYTES + 1))
    except (OSError, CorruptData) as error:
        raise UsageError(f"{path} is no gate ({error}): make it with `preread fit family`") from error


def found(told: Sequence[Path], model: Fingerprint) -> tuple[Gate, ...]:
    """The gates of a model: those that an edge was told of, and the usual ones that can be used, one for each source.

    Raises:
        UsageError: one that it was told of cannot be used.
    """
    gates: dict[str, Gate] = {}
    for path in sorted(_folder(model).glob("*.json"))[:MOST_GATES]:
        try:
            gate = load(path)
        except UsageError as error:
            _log.warning("KV of another quantisation is not read: %s", error)
            continue
        if gate.model == model:
            gates[gate.source] = gate
    for path in told:
        gate = load(path)
        if gate.model != model:
            raise UsageError(
                f"{path} is of another model, {gate.model[:12]}…: measure this one with `preread fit family`"
            )
        gates[gate.source] = gate
    return tuple(gates.values())
