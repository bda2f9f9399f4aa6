"""How much worse a model predicts a text when it reads another KV cache than the exact one, in the real engine.

It knows logits and positions; it must not know where KV blocks come from. Natural logarithms throughout.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.codec.profile import Quality
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import EngineError
from preread.values import KVBlock

Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

_RESAMPLES = 10_000
_COVERAGE_PERCENT = 95.0


@dataclass(frozen=True, slots=True)
class Score:
    """One window: what changed at each of `tail` positions after the context.

    Attributes:
        dloss: (tail − 1,) nats by which the true next token became less likely; the last position's is not known.
        kl: (tail,) nats, KL divergence of the next-token distribution from that of the exact KV.
        same_top1: (tail,) whether the likeliest token is the same.
    """

    dloss: Double
    kl: Double
    same_top1: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over all positions, and 95 % confidence intervals (low, high) of two of them."""

    quality: Quality
    dloss_ci: tuple[float, float]
    kl_ci: tuple[float, float]


def log_softmax(logits: Single) -> Single:
    """Log-probabilities of each row of `logits` (rows, vocab), in place; the array itself is returned."""
    for row in logits:  # row by row, a pass stays in the processor's cache and needs no second array of this size
        row -= row.max()
        row -= np.log(np.exp(row).sum())
    return logits


def reference(engine: LlamaCpp, tail: Tokens) -> Single:
    """Log-probabilities (tail, vocab) after each of `tail`, which follow the context that the engine holds.

    Raises:
        PrereadError: as `LlamaCpp.score` does.
    """
    return log_softmax(engine.session.score(tail))


def compare(logits: Single, tail: Tokens, exact: Single) -> Score:
    """What changed from the `exact` log-probabilities (tail, vocab) to `logits`, which are overwritten."""
    changed = log_softmax(logits)
    kl = np.array([np.dot(np.exp(p), p - q) for p, q in zip(exact, changed, strict=True)], np.float64)
    positions, following = np.arange(len(tail) - 1), tail[1:]
    dloss = exact[positions, following].astype(np.float64) - changed[positions, following]
    # Rounding can leave a divergence of next to nothing below nothing.
    return Score(dloss, np.maximum(kl, 0), exact.argmax(axis=1) == changed.argmax(axis=1))


def measure(engine: LlamaCpp, context_tokens: int, tail: Tokens, exact: Single, blocks: Iterable[KVBlock]) -> Score:
    """What changes when the context's KV is made of `blocks`. The engine then holds that context.

    Args:
        engine: opened for scoring at least `len(tail)` tokens.
        context_tokens: how many tokens the context has.
        tail: the tokens that follow it, at least two.
        exact: the `reference` of the same tail after the exact context.
        blocks: all of the context's KV, each value once.

    Raises:
        EngineError: the blocks do not make up the whole context, or the engine failed.
        UsageError: context and tail do not fit the engine's window.
    """
    missing = context_tokens * engine.spec.geometry.layers
    engine.session.reserve(context_tokens)
    try:
        for block in blocks:
            engine.session.inject(block)
            missing -= len(block.tokens) * len(block.layers)
        if missing:
            raise EngineError(f"the KV blocks are not the context's: off by {missing} rows of a token in a layer")
        engine.session.open_layers(engine.spec.geometry.layers)
        return compare(engine.session.score(tail), tail, exact)
    except BaseException:
        engine.session.clear()
        raise


def joined(scores: Sequence[Score]) -> Score:
    """The positions of all `scores` as those of one window, for text that they share."""
    return Score(
        np.concatenate([score.dloss for score in scores]),
        np.concatenate([score.kl for score in scores]),
        np.concatenate([score.same_top1 for score in scores]),
    )


def summary(windows: Sequence[Score]) -> Summary:
    """Means over all positions of at least one window.

    The intervals are bootstrapped over windows, of which positions are no independent samples.
    """
    every = joined(windows)
    dloss, kl, top1 = float(every.dloss.mean()), float(every.kl.mean()), float(every.same_top1.mean())
    return Summary(
        Quality(dloss=dloss, kl=kl, top1=top1, tokens=len(every.kl)),
        interval([score.dloss for score in windows]),
        interval([score.kl for score in windows]),
    )


def interval(windows: Sequence[Double]) -> tuple[float, float]:
    """95 % confidence interval of the mean over all positions, by a percentile bootstrap over windows.

    The resampling is seeded, so that the same values give the same interval.
    """
    sums = np.array([window.sum() for window in windows])
    counts = np.array([len(window) for window in windows])
    picks = np.random.default_rng(0).integers(len(windows), size=(_RESAMPLES, len(windows)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    tail = (100 - _COVERAGE_PERCENT) / 2
    low, high = np.percentile(means, (tail, 100 - tail))
    return float(low), float(high)
