"""Rotary position embedding (Su et al., RoFormer, 2021), undone and redone: K as it was before it was given a position.

Before rotation a channel of K varies far less from token to token, so that is what gets coded. Layers of one model may
rotate by different angles, or not at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.values import Half, Span

Single = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rope:
    """How a layer rotates K.

    Attributes:
        near: the two halves of a pair lie side by side (llama.cpp's NORM), otherwise `pairs` apart (NEOX).
        frequencies: radians a token of each pair, (pairs,) float32; channels beyond 2 · pairs are not rotated.
    """

    near: bool
    frequencies: Single


Ropes = tuple[Rope, ...]
"""How each layer of a model, or of a part of it, rotates K; layers that do alike have the same object."""


def angles(rope: Rope, tokens: Span) -> tuple[Single, Single]:
    """Cosines and sines, each (tokens, pairs)."""
    turned = np.arange(tokens.start, tokens.stop)[:, None] * rope.frequencies.astype(np.float64)[None]
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)


def unrotate(k: Half | Single, tokens: Span, ropes: Ropes) -> Single:
    """K (layers, …, tokens, head_dim) before rotation."""
    out = k.astype(np.float32)
    for rope, layers in alike(ropes):
        cosines, sines = angles(rope, tokens)
        first, second = _halves(rope)
        part = out[layers.start : layers.stop]
        a, b = part[..., first].copy(), part[..., second].copy()
        part[..., first] = a * cosines + b * sines
        part[..., second] = b * cosines - a * sines
    return out


def rotate(k: Single, tokens: Span, ropes: Ropes) -> Single:
    """K (layers, …, tokens, head_dim) as it was before `unrotate`."""
    out = k.copy()
    for rope, layers in alike(ropes):
        cosines, sines = angles(rope, tokens)
        first, second = _halves(rope)
        those, part = k[layers.start : layers.stop], out[layers.start : layers.stop]
        a, b = those[..., first], those[..., second]
        part[..., first] = a * cosines - b * sines
        part[..., second] = a * sines + b * cosines
    return out


def alike(ropes: Sequence[Rope]) -> Iterator[tuple[Rope, Span]]:
    """Runs of layers that rotate alike, in order."""
    start = 0
    for stop in range(1, len(ropes) + 1):
        if stop == len(ropes) or ropes[stop] is not ropes[start]:
            yield ropes[start], Span(start, stop)
            start = stop


def _halves(rope: Rope) -> tuple[slice, slice]:
    pairs = len(rope.frequencies)
    if rope.near:
        return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    return slice(0, pairs), slice(pairs, 2 * pairs)
