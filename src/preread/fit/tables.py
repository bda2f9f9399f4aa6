"""From quantised coefficients to the coder's tables: usual sizes, which level fits where, how symbols spread."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from preread.codec import symbols as coding
from preread.codec.symbols import ALPHABET, CLASSES, LARGEST, LEVELS, RATIOS, TOTAL, Classes, Coder, Symbols

Coded = Sequence[tuple[Symbols, Classes]]
"""Symbols (tokens, components) and their components' classes, of some windows, groups and steps."""

_LEAST, _MOST = 2.0**-7, 2.0**3
"""Mean sizes that levels lie between, at equal ratios."""

_TRUST = 30
"""So many symbols must be seen with a class and ratios before what is seen there counts more than their class."""


def start() -> Coder:
    """Tables without any sample: levels by class alone, and geometric distributions."""
    deviations = np.exp2((np.arange(CLASSES) - 6) / 2) / np.exp2(np.maximum(0, (np.arange(CLASSES) - 11) // 2))
    means = np.minimum(0.75 * deviations, LARGEST)
    levels = np.repeat(_level(means)[:, None], RATIOS, axis=1)
    middle = _LEAST * (_MOST / _LEAST) ** (np.arange(LEVELS) / (LEVELS - 1))
    sizes = np.abs(np.arange(-LARGEST, LARGEST + 1))
    odds = np.concatenate(
        [(middle / (1 + middle))[:, None] ** sizes * np.where(sizes == 0, 1.0, 0.5), np.full((LEVELS, 1), 1e-3)], axis=1
    )
    return Coder(np.rint(256 * means).astype(np.uint16), levels, _frequencies(odds))


def tables(coded: Iterable[tuple[Symbols, Classes]]) -> Coder:
    """Tables that suit these symbols."""
    sample = [(coding.coarse(symbols, classes), symbols, classes) for symbols, classes in coded]
    first, known = start(), np.zeros(CLASSES)
    totals = np.zeros(CLASSES)
    for coarse, _, classes in sample:
        sizes = np.minimum(np.abs(coarse), LARGEST)
        totals += np.bincount(classes, sizes.sum(axis=0), CLASSES)
        known += np.bincount(classes, minlength=CLASSES) * len(coarse)
    usual = np.where(known > 0, totals / np.maximum(known, 1), first.means / 256)
    means = np.rint(256 * usual).astype(np.uint16)
    places = [
        (classes.astype(np.int64) * RATIOS + coding.ratios(symbols, classes, means), coarse)
        for coarse, symbols, classes in sample
    ]
    count, total = np.zeros(CLASSES * RATIOS), np.zeros(CLASSES * RATIOS)
    for place, coarse in places:
        count += np.bincount(place.ravel(), minlength=len(count))
        total += np.bincount(place.ravel(), np.minimum(np.abs(coarse), LARGEST).ravel(), len(total))
    # Where nothing was seen: sizes go with the root of the ratio of those around, as they do where much was seen.
    guess = usual[:, None] * np.sqrt(np.exp2((np.arange(RATIOS) // 8 - 4) / 2))
    seen = (total + _TRUST * guess.ravel()) / (count + _TRUST)
    levels = _level(seen).reshape(CLASSES, RATIOS)
    spread = first.frequencies / TOTAL  # of levels that nothing was seen of
    for place, coarse in places:
        symbol = np.where(np.abs(coarse) <= LARGEST, coarse + LARGEST, ALPHABET - 1)
        index = levels.ravel()[place].astype(np.int64) * ALPHABET + symbol
        spread = spread + np.bincount(index.ravel(), minlength=LEVELS * ALPHABET).reshape(LEVELS, ALPHABET)
    signless = (spread + np.concatenate([spread[:, -2::-1], spread[:, -1:]], axis=1)) / 2
    return Coder(means, levels, _frequencies(signless))


def _level(means: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    place = np.log(np.maximum(means, 1e-9) / _LEAST) / np.log(_MOST / _LEAST)
    levels: npt.NDArray[np.uint8] = np.clip(np.rint(place * (LEVELS - 1)), 0, LEVELS - 1).astype(np.uint8)
    return levels


def _frequencies(spread: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Integer frequencies (LEVELS, ALPHABET) of sum TOTAL. What is rarer than half of 1/TOTAL goes with the others."""
    shares = spread / spread.sum(axis=1, keepdims=True) * TOTAL
    rare = shares < 0.5
    rare[:, LARGEST] = rare[:, -1] = False
    shares[:, -1] += np.where(rare, shares, 0).sum(axis=1)
    out = np.maximum(np.where(rare, 0, np.rint(shares)), np.where(rare, 0, 1)).astype(np.int64)
    # What rounding leaves goes to, or comes from, the likeliest symbol, which feels it least.
    out[np.arange(LEVELS), out.argmax(axis=1)] += TOTAL - out.sum(axis=1)
    return out.astype(np.uint16)
