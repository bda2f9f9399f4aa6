"""Rate against quality: the rows of `preread bench codec`, and what schemes cost at equal quality. Arithmetic only."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from preread.fit.quality import Score, joined, summary

OURS = "preread"
_SCHEMES = {"llama-": "llama.cpp", "kivi-": "KIVI-like", "cachegen-": "CacheGen-like"}
_UNFITTED = ("q8", "q4")


@dataclass(frozen=True, slots=True)
class Sample:
    """One rung on one context of one window; seconds are None where there is nothing to encode or decode."""

    window: int
    context_tokens: int
    bits_per_value: float
    bytes_per_token: float
    score: Score
    encode_s: float | None = None
    decode_s: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Means with 95 % confidence intervals, medians of rates. `context_tokens` is None for all lengths together."""

    rung: str
    context_tokens: int | None
    bits_per_value: float
    bytes_per_token: float
    dloss: float
    dloss_ci: tuple[float, float]
    kl: float
    kl_ci: tuple[float, float]
    top1: float
    encode_tokens_s: int | None
    decode_tokens_s: int | None


@dataclass(frozen=True, slots=True)
class AtEqualKL:
    """What `ours` and the best of the others cost in bits a value at one KL; None: this KL is not reached."""

    kl: float
    ours_bits: float | None
    best: str | None
    best_bits: float | None
    ratio: float | None


def scheme(rung: str) -> str:
    """Whose rung it is; rungs of one scheme make one curve."""
    if rung in _UNFITTED:
        return "unfitted"
    return next((name for prefix, name in _SCHEMES.items() if rung.startswith(prefix)), OURS)


def row(rung: str, samples: Sequence[Sample], context_tokens: int | None = None) -> Row:
    """One line of the table, of samples of one context length or of all."""
    chosen = [sample for sample in samples if context_tokens in (None, sample.context_tokens)]
    windows: dict[int, list[Score]] = {}
    for sample in chosen:
        windows.setdefault(sample.window, []).append(sample.score)
    found = summary([joined(scores) for scores in windows.values()])
    return Row(
        rung=rung,
        context_tokens=context_tokens,
        bits_per_value=round(statistics.fmean(sample.bits_per_value for sample in chosen), 4),
        bytes_per_token=round(statistics.fmean(sample.bytes_per_token for sample in chosen), 1),
        dloss=round(found.quality.dloss, 6),
        dloss_ci=_rounded(found.dloss_ci),
        kl=round(found.quality.kl, 6),
        kl_ci=_rounded(found.kl_ci),
        top1=round(found.quality.top1, 4),
        encode_tokens_s=_rate([(sample.context_tokens, sample.encode_s) for sample in chosen]),
        decode_tokens_s=_rate([(sample.context_tokens, sample.decode_s) for sample in chosen]),
    )


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by scheme, fewest bits first; without those that change nothing, which no logarithm can show."""
    found: dict[str, list[Row]] = {}
    for of in sorted(rows, key=lambda row: row.bits_per_value):
        if of.kl > 0:
            found.setdefault(scheme(of.rung), []).append(of)
    return found


def bits_at(curve: Sequence[Row], kl: float) -> float | None:
    """Fewest bits a value that give at most this KL, log KL being interpolated over bits; None: no rung is as good.

    Nothing is extrapolated: beyond its worst rung, a scheme costs what that rung costs.
    """
    costs = [of.bits_per_value for of in curve if of.kl <= kl]
    for fewer, more in pairwise(sorted(curve, key=lambda of: of.bits_per_value)):
        if more.kl <= kl < fewer.kl:
            part = np.log(kl / more.kl) / np.log(fewer.kl / more.kl)
            costs.append(float(more.bits_per_value + part * (fewer.bits_per_value - more.bits_per_value)))
    return min(costs, default=None)


def at_equal_kl(rows: Sequence[Row], kl: float) -> AtEqualKL:
    """What ours costs, and what the best of the others does."""
    found = {name: bits for name, curve in curves(rows).items() if (bits := bits_at(curve, kl)) is not None}
    ours = found.pop(OURS, None)
    found.pop("unfitted", None)
    if not found:
        return AtEqualKL(kl, ours, None, None, None)
    best = min(found, key=lambda name: found[name])
    ratio = None if ours is None else found[best] / ours
    return AtEqualKL(kl, ours, best, found[best], ratio)


def _rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], 6), round(interval[1], 6)


def _rate(times: Sequence[tuple[int, float | None]]) -> int | None:
    rates = [tokens / seconds for tokens, seconds in times if seconds]
    return round(statistics.median(rates)) if rates else None


def with_interval(mean: float, interval: tuple[float, float], digits: int = 4) -> str:
    """A mean, and half of what its interval spans, as tables show it."""
    return f"{mean:.{digits}f} ± {(interval[1] - interval[0]) / 2:.{digits}f}"
