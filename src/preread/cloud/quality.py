"""What a context's rungs cost, measured on the context itself: its stored bytes go back into the engine.

Where to look → what exact KV predicts there, which prefill tells on its way → the bytes of one rung, read from the
store and decoded → what that predicts, all windows in one batch → a mean and a 95 % interval for this rung, and for the
others by what the fit knows of them beside it.
It knows rungs and windows; how a context is read and encoded it must not know.
"""

import asyncio
import math
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from preread.codec.base import Codec
from preread.codec.fitted import joined
from preread.codec.profile import FittedRung, Profile
from preread.codec.profile import Quality as Measured
from preread.engine.context import WINDOWS
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.worker import Worker
from preread.errors import CorruptData
from preread.fit.quality import Score, compare, log_softmax
from preread.fit.quality import joined as together
from preread.plan.choose import MAX_DLOSS
from preread.store.objects import Objects
from preread.values import KVBlock, KVShape, ObjectRef, Span
from preread.wire import manifest as manifests
from preread.wire import segment
from preread.wire.manifest import Manifest, Quality, SegmentPlace

Logits = npt.NDArray[np.float32]

_ONE_IN: Final = 20
"""So large a part of a context is predicted: that costs a tenth of reading it, since logits are as dear as all layers
of a small model."""

LONGEST_TOKENS: Final = 12
_SHORTEST_TOKENS: Final = 4
"""Of a window. There are always `WINDOWS` of them: what they say of a document depends on how many they are, and what
they cost on how long they are. In batches of fewer than 32 tokens llama.cpp computes in another way, and what it
predicts could not be compared."""

_FEWEST_TOKENS: Final = 256
"""Shorter contexts are not measured: windows would be a large part of them."""

_FIRST_PART: Final = 4
"""Windows lie behind this part of the context: before it there is too little that could be wrong."""

_LIKELY: Final = 0.75
"""The rung that is measured is the thinnest of which the fit says that it takes so much of the usual budget at most."""

_LEAST_NATS: Final = 1e-6
_LARGEST_NATS: Final = 1000.0
"""What a manifest can state."""

_NORMAL_95: Final = 1.96
_WINDOW_SPREAD: Final = 0.4
_POSITION_SPREAD: Final = 1.8
"""By how much of a document's divergence that of its windows scatters: windows among each other, and the positions of
one (standard deviations)."""

_RATIO_SPREAD: Final = 0.25
_FIT_SPREAD: Final = 0.75
"""Standard deviations of a divergence's logarithm: of another rung's, for each e-fold that it lies apart; and of one
document's among those of all, for what nothing but the fit was measured on."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one rung did to the windows of a context: `scores` are its windows'."""

    rung: str
    scores: tuple[Score, ...]


def windows(tokens: int, window_tokens: int, scored_tokens: int) -> list[Span]:
    """Where a context is measured; nowhere, if it is too short or leaves too little room besides itself.

    Args:
        tokens: of the context.
        window_tokens, scored_tokens: how many the engine holds, and how many it was opened to score.
    """
    room = min(window_tokens - tokens, scored_tokens) // WINDOWS
    length = min(room, LONGEST_TOKENS, max(_SHORTEST_TOKENS, tokens // (_ONE_IN * WINDOWS)))
    if tokens < _FEWEST_TOKENS or length < _SHORTEST_TOKENS:
        return []
    first = tokens // _FIRST_PART
    stops = [first + (tokens - first) * (n + 1) // WINDOWS for n in range(WINDOWS)]
    return [Span(stop - length, stop) for stop in stops]


def measured_rung(profile: Profile, names: Collection[str]) -> str | None:
    """Which of these rungs to measure: near to what an edge will choose, so that little is left to be inferred.

    None: none of them is the profile's.
    """
    known = [rung for rung in profile.rungs if rung.name in names]
    likely = [rung.name for rung in known if rung.quality.kl <= _LIKELY * MAX_DLOSS]
    return likely[-1] if likely else known[0].name if known else None


async def measure(
    store: Objects,
    engine: LlamaCpp,
    worker: Worker,
    pool: ThreadPoolExecutor,
    manifest: Manifest,
    codec: Codec,
    tokens: Tokens,
    spans: Sequence[Span],
    exact: Logits | None,
) -> Found:
    """Have the engine hold a stored rung instead of exact KV, and predict the windows again.

    Args:
        store, engine, worker, pool: where the rung's bytes are; who holds the context; its thread; threads that decode.
        manifest, codec, tokens: the context's; `codec` is the rung's.
        spans: the windows.
        exact: logits there (tokens of `spans`, vocab), before the bytes come back; None: the engine still tells them.

    Raises:
        CorruptData: what was stored is not what comes back.
        EngineError, RemoteError: the engine or the store failed.
        Cancelled: somebody called `cancel` of the engine.
    """
    predict = partial(engine.session.score_windows, tokens, spans)
    before = exact if exact is not None else await worker.run(predict, engine.session.cancel)
    places = manifests.places(manifest, codec.rung)
    await asyncio.gather(*[_put_back(store, engine, pool, manifest, codec, place) for place in places])

    def score() -> tuple[Score, ...]:
        changed, found, at = predict(), [], 0
        for span in spans:
            rows = slice(at, at + len(span))
            found.append(compare(changed[rows], tokens[span.start : span.stop], log_softmax(before[rows])))
            at += len(span)
        engine.session.clear()  # nobody shall take it for what prefill computes
        return tuple(found)

    return Found(codec.rung, await worker.run(score, engine.session.cancel))


async def _put_back(
    store: Objects, engine: LlamaCpp, pool: ThreadPoolExecutor, manifest: Manifest, codec: Codec, place: SegmentPlace
) -> None:
    header, shape = manifests.header(manifest, codec.rung, place), place.shape
    assert isinstance(shape, KVShape)
    payload: bytes | memoryview = segment.unpack(await _read(store, place.ref), header)
    if place.base is not None:
        below = manifests.header(manifest, manifests.rung_named(manifest, codec.rung).base or "", place)
        payload = joined(segment.unpack(await _read(store, place.base), below), payload)

    def decode() -> None:
        block: KVBlock = codec.decode(payload, place.tokens, place.layers, shape)
        engine.session.inject(block)

    await asyncio.get_running_loop().run_in_executor(pool, decode)


async def _read(store: Objects, ref: ObjectRef) -> bytes:
    data = await store.read("segments", ref.id)
    if data is None or len(data) != ref.size_bytes:
        raise CorruptData("length", f"segment {ref.id[:12]} was stored just now, and is not there: look at the store")
    return data


def stated(rung: FittedRung, profile: Profile, found: Found | None, read: Measured | None) -> Quality:
    """What a rung of the profile costs on a context, and how sure that is.

    Args:
        rung, profile: which.
        found: what was measured on the context; None: nothing, and the fit's own figures are stated with caution.
        read: what the way costs in which the context was read; it is added.
    """
    if found is None:
        fitted = rung.quality
        high = fitted.kl * math.exp(_NORMAL_95 * _FIT_SPREAD)
        return _quality("fit", fitted, (0.0, high), (fitted.dloss, fitted.dloss), read)
    whole, reference = together(found.scores), profile.rung(found.rung).quality
    ratio = max(rung.quality.kl, _LEAST_NATS) / max(reference.kl, _LEAST_NATS)
    mean = float(whole.kl.mean()) * ratio
    spread = math.hypot(_spread(found.scores), _RATIO_SPREAD * math.log(ratio))
    factor = math.exp(_NORMAL_95 * spread)
    dloss, doubt = float(whole.dloss.mean()), _NORMAL_95 * float(whole.dloss.std()) / math.sqrt(len(whole.dloss))
    top1 = 1 - min(1.0, (1 - float(whole.same_top1.mean())) * math.sqrt(ratio))
    return _quality(
        "context" if found.rung == rung.name else "inferred",
        Measured(dloss * ratio, mean, top1, len(whole.kl)),
        (mean / factor, mean * factor),
        ((dloss - doubt) * ratio, (dloss + doubt) * ratio),
        read,
    )


def as_stated(read: Measured) -> Quality:
    """What nothing costs but the way in which a context was read."""
    return _quality("fit", Measured(0.0, 0.0, 1.0, read.tokens), None, None, read)


def _quality(
    on: Literal["fit", "context", "inferred"],
    mean: Measured,
    kl: tuple[float, float] | None,
    dloss: tuple[float, float] | None,
    read: Measured | None,
) -> Quality:
    """A statement, with what the way of reading adds."""
    more = read or Measured(0.0, 0.0, 1.0, mean.tokens)
    return Quality(
        _micronats(mean.dloss + more.dloss),
        max(0, _micronats(mean.kl + more.kl)),
        max(0, round((mean.top1 + more.top1 - 1) * 1e6)),
        min(mean.tokens, more.tokens),
        dloss and (_micronats(dloss[0] + more.dloss), _micronats(dloss[1] + more.dloss)),
        kl and (_micronats(kl[0] + more.kl), _micronats(kl[1] + more.kl)),
        on,
    )


def _micronats(nats: float) -> int:
    return round(min(max(nats, -_LARGEST_NATS), _LARGEST_NATS) * 1e6)


def _spread(scores: Sequence[Score]) -> float:
    """Standard deviation of the logarithm of the windows' mean divergence.

    Windows scatter as those of most documents do, or as they are seen to, if that is more: a few may look more alike
    than they are.
    """
    means = np.array([score.kl.mean() for score in scores])
    scatter = _WINDOW_SPREAD**2 + _POSITION_SPREAD**2 / len(scores[0].kl)
    if len(means) > 1 and (whole := float(means.mean())) > _LEAST_NATS:
        scatter = max(scatter, float(means.var(ddof=1)) / whole**2)
    return math.sqrt(math.log1p(scatter / len(means)))
