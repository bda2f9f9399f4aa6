"""Rotary position embedding (Su et al., RoFormer, 2021), undone and redone: K as it was before it was given a position.

Before rotation a channel of K varies far less from token to token, so that is what gets coded.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.values import Half, Span

Single = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rope:
    """How a model rotates K.

    Attributes:
        near: the two halves of a pair lie side by side (llama.cpp's NORM), otherwise `pairs` apart (NEOX).
        frequencies: radians a token of each pair, (pairs,) float32; channels beyond 2 · pairs are not rotated.
    """

    near: bool
    frequencies: Single


def angles(rope: Rope, tokens: Span) -> tuple[Single, Single]:
    """Cosines and sines, each (tokens, pairs)."""
    turned = np.arange(tokens.start, tokens.stop)[:, None] * rope.frequencies.astype(np.float64)[None]
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)


def unrotate(k: Half | Single, tokens: Span, rope: Rope) -> Single:
    """K (…, tokens, head_dim) before rotation."""
    cosines, sines = angles(rope, tokens)
    pairs = len(rope.frequencies)
    out = k.astype(np.float32)
    first, second = _halves(rope.near, pairs)
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first] = a * cosines + b * sines
    out[..., second] = b * cosines - a * sines
    return out


def rotate(k: Single, tokens: Span, rope: Rope) -> Single:
    """K (…, tokens, head_dim) as it was before `unrotate`."""
    cosines, sines = angles(rope, tokens)
    out = k.copy()
    first, second = _halves(rope.near, len(rope.frequencies))
    a, b = k[..., first], k[..., second]
    out[..., first] = a * cosines - b * sines
    out[..., second] = a * sines + b * cosines
    return out


def _halves(near: bool, pairs: int) -> tuple[slice, slice]:
    if near:
        return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    return slice(0, pairs), slice(pairs, 2 * pairs)
