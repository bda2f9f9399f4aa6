"""A guide in closed form: along the gradient of the loss, as far as lessons agree on it.

Of each lesson only sums are kept: what lowering the loss asks of every channel of K and V, times what the large model
reads there. That is the gradient of the loss over all linear guides at once, with the small model's exact KV to start
from, so that one pass over the lessons is enough, and its order does not matter.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from preread.align.ridge import Single
from preread.errors import UsageError

POWER: Final = 0.75
"""Of a channel's mean squared gradient, by which a step along it is divided: 0 would be steepest descent, 1 a natural
gradient (Amari, 1998) that keeps only the diagonal. Of 32 lessons 0 lowered a loss held out by 0.007 at best, 0.5 by
0.025, 0.75 by 0.029 and 1 by 0.017."""

_LEAST: Final = 0.05
"""Of the mean over a layer's channels, added to each one's squared gradient: of some hardly anything is ever asked."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Of all lessons so far, L layers of C channels, K of all heads and then V, and R channels that are read.

    Attributes:
        asked: (L, C, R + 1) gradients times what is read there, and last times 1.
        squares: (L, C) of the gradients.
        apart: (L, C) squared norms of single lessons' `asked`, without the last.
        tokens: how many.
    """

    asked: Single
    squares: Single
    apart: Single
    tokens: int

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.asked + other.asked, self.squares + other.squares, self.apart + other.apart, self.tokens + other.tokens
        )


def nothing(layers: int, channels: int, read: int) -> Sums:
    """Of no lesson."""
    rows = np.zeros((layers, channels), np.float32)
    return Sums(np.zeros((layers, channels, read + 1), np.float32), rows, rows, 0)


def lesson(gradients: Single, read: Single) -> Sums:
    """Of one lesson: its loss's gradients (L, C, T) in units of K before rotation and of V, and what is read (T, R)."""
    rows = np.concatenate([read, np.ones((len(read), 1))], axis=1).astype(np.float32)
    asked = np.asarray(gradients @ rows, np.float32)
    return Sums(asked, (gradients**2).sum(axis=2), (asked[..., :-1] ** 2).sum(axis=2), len(read))


def solved(sums: Sums, heads: int) -> tuple[Single, Single, Single]:
    """What is added per channel read (L, R, C), what is added anyway (L, C), and gates of `heads` heads (L, heads).

    Gates are James and Stein's (1961), of the first: the share of a head's squared sum that single lessons do not
    explain by themselves, at least 0, at which nothing is read for it. Each of the two has a root mean square of 1,
    before gates and if what is read has. Nothing is added where nothing was asked.

    Raises:
        UsageError: the channels are not those of so many heads.
    """
    layers, channels, columns = sums.asked.shape
    if channels % heads:
        raise UsageError(f"{channels} channels are not those of {heads} heads")
    squares = sums.squares / max(sums.tokens, 1)
    squares = squares + _LEAST * squares.mean(axis=1, keepdims=True)
    scale = np.where(squares > 0, squares, np.inf) ** -POWER
    weighed = (
        (scale * rows).reshape(layers, heads, -1) for rows in ((sums.asked[..., :-1] ** 2).sum(axis=2), sums.apart)
    )
    whole, single = (rows.sum(axis=2) for rows in weighed)
    gates = np.maximum(0, 1 - np.divide(single, whole, out=np.ones_like(whole), where=whole > 0))
    step = np.asarray(-sums.asked * scale[..., None], np.float32)
    added = _of_one_unit(np.ascontiguousarray(step[..., :-1].transpose(0, 2, 1))) / np.sqrt(np.float32(columns - 1))
    return added, _of_one_unit(step[..., -1]), np.asarray(gates, np.float32)


def _of_one_unit(rows: Single) -> Single:
    norm = np.sqrt((rows**2).mean())
    return np.asarray(rows / norm if norm > 0 else rows, np.float32)
