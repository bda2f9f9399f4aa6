"""How much errors in K cost beside errors in V: measured with those that coding makes.

Attention takes the mean of many tokens' V, in which noise cancels out. What coding leaves out is alike in many tokens,
and does not. So weights that are measured with noise (`sensitivity.py`) are too small for V: of gemma-3-270m eleven
times.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from preread.codec.profile import Profile, prepare
from preread.codec.rope import Ropes, unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.fit.coded import coded, whole
from preread.fit.quality import compare, reference
from preread.fit.sample import Window, hold
from preread.values import KVBlock, Span

Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

SCORED_TOKENS = 64
_MOST = 8.0
"""A factor beyond this, from two windows, is chance."""
_LEAST_SHARE = 0.1
"""Of a divergence, what is taken to be more than rounding: nothing costs nothing."""


def of_halves(engine: LlamaCpp, profile: Profile, weights: Double, sample: list[Window]) -> Double:
    """By what to multiply the weights of K and of V, (2,), so that both say alike what coding's errors cost.

    Args:
        engine: of the profile's model.
        profile: its first rung makes the errors.
        weights: of the squared error in each channel, (2, layers, kv_heads, head_dim).
        sample: windows, at least one.
    """
    measured, expected = np.zeros(2), np.zeros(2)
    for window in sample:
        block = whole(coded(prepare(profile, engine.embeddings(window.tokens)), 0, window.block), window.block)
        measured += _divergences(engine, window, block)
        for half, errors in enumerate(_errors(window.block, block, engine.ropes, profile.sink_tokens)):
            expected[half] += np.einsum("lhtd,lhd->", np.square(errors), weights[half], dtype=np.float64)
    return balance(measured, expected)


def balance(measured: Double, expected: Double) -> Double:
    """Factors (2,) of product 1, by which the expected costs have the measured ones' proportion, within bounds."""
    unequal = np.sqrt(measured[1] * expected[0] / max(measured[0] * expected[1], 1e-300))
    bounded = float(np.clip(unequal, 1 / _MOST, _MOST))
    return np.array([1 / bounded, bounded])


def _divergences(engine: LlamaCpp, window: Window, block: KVBlock) -> Double:
    """KL divergence that K of this block does alone, and V, (2,), without that of rounding."""
    exact, tail = window.block, window.tail[:SCORED_TOKENS]
    hold(engine, exact)
    right = reference(engine, tail)

    def divergence(changed: KVBlock) -> float:
        engine.session.inject(changed)
        return float(compare(engine.session.score(tail), tail, right).kl.mean())

    # llama.cpp rounds activations to 8 bits, so that the smallest change of anything costs about as much as this.
    rounding = divergence(replace(exact, k=np.nextafter(exact.k, np.float16(np.inf))))
    costs = np.array([divergence(replace(exact, k=block.k)), divergence(replace(exact, v=block.v))])
    found: Double = np.maximum(costs - rounding, _LEAST_SHARE * costs)
    return found


def _errors(exact: KVBlock, block: KVBlock, ropes: Ropes, sinks: int) -> tuple[Single, Single]:
    """Of K before rotation and of V, but for sinks, (layers, kv_heads, tokens, head_dim)."""
    counted, rows = Span(exact.tokens.start + sinks, exact.tokens.stop), slice(sinks, None)
    k, right = (unrotate(one.k[:, :, rows], counted, ropes) for one in (block, exact))
    return k - right, block.v[:, :, rows].astype(np.float32) - exact.v[:, :, rows]
