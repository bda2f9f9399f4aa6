"""How much errors in K and in V of each layer cost: measured with those that coding makes.

Attention takes the mean of many tokens' V, in which noise cancels out. What coding leaves out is alike in many tokens,
and does not. So weights that are measured with noise (`sensitivity.py`) are too small where it matters most: V of the
second layer of gemma-3-270m alone made up half of a rung's divergence.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from preread.codec.profile import Profile, prepare
from preread.codec.rope import Ropes, unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.fit.coded import coded, whole
from preread.fit.probe import Probe, layer_of
from preread.fit.sample import Window
from preread.values import Half, KVBlock, Span

Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

SCORED_TOKENS = 32
AMPLIFIED = 3.0
"""Times the errors. What they do grows with the square; what llama.cpp's rounding of activations does, which is as much
as one layer's errors, does not."""
SHARED = 0.2
"""Added to what each layer costs, as a share of the median: one measurement of a small effect is mostly chance."""
MOST = 8.0
"""A factor beyond this, from a few windows, is chance."""


def layer_factors(
    engine: LlamaCpp, profile: Profile, weights: Double, sample: list[Window], progress: Callable[[int, int], None]
) -> Double:
    """By what to multiply the weights of each layer's K and V, (2, layers), so that they say what coding's errors cost.

    Args:
        engine: of the profile's model.
        profile: its first rung makes the errors.
        weights: of the squared error in each channel, (2, layers, kv_heads, head_dim).
        sample: windows, at least one.
        progress: told how many windows are measured, and how many there are.
    """
    measured, expected = np.zeros(weights.shape[:2]), np.zeros(weights.shape[:2])
    for number, window in enumerate(sample):
        prepared = prepare(profile, engine.embeddings(window.tokens))
        block = whole(coded(prepared, 0, window.block), window.block)
        for half, errors in enumerate(_errors(window.block, block, engine.ropes, profile.sink_tokens)):
            expected[half] += np.einsum("lhtd,lhd->l", np.square(errors), weights[half], dtype=np.float64)
        measured += _costs(engine, window, block)
        progress(number + 1, len(sample))
    return factors(measured, expected)


def factors(measured: Double, expected: Double) -> Double:
    """Factors by which the expected costs have the measured ones' proportions, as far as these can be told.

    Args:
        measured: of each half and layer; below zero by chance where it is small.
        expected: the same, not negative.

    Returns:
        As many, of geometric mean 1 before each is brought within bounds.
    """
    costs = np.maximum(measured, 0)
    costs = costs + max(SHARED * float(np.median(costs)), 1e-3 * float(costs.mean()), 1e-12)
    unequal = np.log(costs) - np.log(np.maximum(expected, max(1e-3 * float(expected.mean()), 1e-12)))
    found: Double = np.exp(np.clip(unequal - unequal.mean(), -np.log(MOST), np.log(MOST)))
    return found


def _costs(engine: LlamaCpp, window: Window, block: KVBlock) -> Double:
    """KL divergence that errors in K and in V of each layer do, each alone, without that of rounding: (2, layers)."""
    probe, count = Probe.behind(engine, window, SCORED_TOKENS), len(window.block.layers)
    exact, left = ([layer_of(one, layer) for layer in range(count)] for one in (window.block, block))
    # llama.cpp rounds activations to 8 bits, so that the smallest change of anything costs something: the less, the
    # fewer layers come after it.
    seen = sorted({0, count // 2, count - 1})
    least = [probe.divergence(replace(kept, k=_nudged(kept.k)), kept) for kept in (exact[layer] for layer in seen)]
    rounding = np.interp(np.arange(count), seen, least)
    divergences = [
        [probe.divergence(changed, kept) for changed in _amplified(kept, coded_layer)]
        for kept, coded_layer in zip(exact, left, strict=True)
    ]
    found: Double = np.array(divergences).T - rounding
    return found


def _nudged(values: Half) -> Half:
    """The smallest change."""
    return np.nextafter(values, np.float16(np.inf))


def _amplified(exact: KVBlock, left: KVBlock) -> tuple[KVBlock, KVBlock]:
    """The exact rows but for K, and but for V, whose errors are so many times as large as what coding left."""

    def amplified(half: Half, other: Half) -> Half:
        return (half + np.float32(AMPLIFIED) * (other.astype(np.float32) - half)).astype(np.float16)

    return replace(exact, k=amplified(exact.k, left.k)), replace(exact, v=amplified(exact.v, left.v))


def _errors(exact: KVBlock, block: KVBlock, ropes: Ropes, sinks: int) -> tuple[Single, Single]:
    """Of K before rotation and of V, but for sinks, (layers, kv_heads, tokens, head_dim)."""
    counted, rows = Span(exact.tokens.start + sinks, exact.tokens.stop), slice(sinks, None)
    k, right = (unrotate(one.k[:, :, rows], counted, ropes) for one in (block, exact))
    return k - right, block.v[:, :, rows].astype(np.float32) - exact.v[:, :, rows]
