"""What an error in K or V of each head does to the output: measured, by adding noise there and nowhere else."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.fit.quality import Single, compare, reference
from preread.fit.sample import Window, hold
from preread.values import KVBlock, Span

Double = npt.NDArray[np.float64]

NOISE = 0.3
"""Variance of the noise, as a share of the head's own: about what the thin rungs do."""

SCORED_TOKENS = 32
SHARED = 0.2
"""Added to every head, as a share of the median: one measurement of a small effect is mostly chance, and errors in many
heads that seem to cost nothing do cost something together."""


def sensitivity(
    engine: LlamaCpp, windows: list[Window], variances: Double, sinks: int, progress: Callable[[int, int], None]
) -> Double:
    """KL divergence for each unit of squared error in a value of K and of V of each head, (2, layers, kv_heads).

    Args:
        windows: to measure on: K on all of them, V, which matters far less, on the first.
        variances: of the values of each head, (2, layers, kv_heads).
        sinks: tokens at the start that stay as they are.
    """
    source, places = np.random.default_rng(0), list(np.ndindex(*variances.shape))
    measured, done = np.zeros(variances.shape), 0
    for number, window in enumerate(windows):
        hold(engine, window.block)
        tail = window.tail[:SCORED_TOKENS]
        exact = reference(engine, tail)

        def divergence(
            place: tuple[int, ...], share: float, window: Window = window, tail: Tokens = tail, exact: Single = exact
        ) -> float:
            layer = _layer(window.block, place[1])
            engine.inject(_noisy(layer, place, share * variances[place], sinks, source))
            try:
                return float(compare(engine.score(tail), tail, exact).kl.mean())
            finally:
                engine.inject(layer)

        # llama.cpp rounds activations to 8 bits, so that the smallest change of anything costs about as much as this.
        floor = divergence(places[len(places) // 2], 1e-4)
        for place in places[: len(places) if number == 0 else len(places) // 2]:
            measured[place] += (divergence(place, NOISE) - floor) / (len(windows) if place[0] == 0 else 1)
            done += 1
            progress(done, len(places) * (len(windows) + 1) // 2)
    shared = SHARED * max(float(np.median(measured)), 1e-9)
    cost: Double = (np.maximum(measured, 0) + shared) / (NOISE * variances)
    return cost


def _layer(block: KVBlock, layer: int) -> KVBlock:
    return KVBlock(block.tokens, Span(layer, layer + 1), block.k[layer : layer + 1], block.v[layer : layer + 1])


def _noisy(layer: KVBlock, place: tuple[int, ...], variance: float, sinks: int, source: np.random.Generator) -> KVBlock:
    half, _, head = place
    name = "kv"[half]
    values = getattr(layer, name).copy()
    rows = values[0, head, sinks:]
    # Noise of the same size in all channels is the same before and after rotation.
    rows += source.normal(0, np.sqrt(variance), rows.shape).astype(np.float16)
    return replace(layer, **{name: values})
