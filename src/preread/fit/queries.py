"""Which channels of K queries look at: an error elsewhere costs nothing. Arithmetic only."""

import numpy as np
import numpy.typing as npt

from preread.codec.rope import Ropes, Single, alike, unrotate
from preread.values import Span

Double = npt.NDArray[np.float64]

_SLOW = 0.5
"""Radians over a window: a pair that turns less keeps its channels apart, any other shows both to every query."""

_SHARED = 0.1
"""Added to each channel, as a share of the mean: other texts ask for what this one did not."""


def channel_shares(queries: Single, kv_heads: int, ropes: Ropes) -> Double:
    """How much an error in each channel of K, before rotation, counts, 1 in the mean: (layers, kv_heads, head_dim).

    The error of an attention score is the product of query and error of K, so its square grows with the mean square of
    the query's channel. Where the two are at different positions RoPE turns each pair of channels against the other
    side's, so that what counts is the mean over the pair.

    Args:
        queries: (layers, heads, tokens, head_dim), after RoPE, of tokens 0 …; heads that share a KV head lie together.
    """
    layers, heads, tokens, dim = queries.shape
    upright = unrotate(queries, Span(0, tokens), ropes).astype(np.float64)
    energy = np.square(upright[:, :, 1:]).mean(axis=2)  # the first token's queries are like no other's
    energy = energy.reshape(layers, kv_heads, heads // kv_heads, dim).mean(axis=2)
    for rope, those in alike(ropes):
        part = energy[those.start : those.stop]
        pairs = len(rope.frequencies)
        turning = rope.frequencies * tokens >= _SLOW
        first = 2 * np.arange(pairs) if rope.near else np.arange(pairs)
        second = first + 1 if rope.near else first + pairs
        both = (part[..., first] + part[..., second]) / 2
        for side in (first, second):
            part[..., side] = np.where(turning, both, part[..., side])
    energy += _SHARED * energy.mean(axis=-1, keepdims=True) + 1e-30
    shares: Double = energy / energy.mean(axis=-1, keepdims=True)
    return shares
