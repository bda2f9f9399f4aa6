"""What an error in K or V of each head does to the output: measured, by adding noise there and nowhere else."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from preread.codec.lossless_rows import Places, find_late
from preread.engine.llamacpp import LlamaCpp
from preread.fit.probe import Probe, layer_of
from preread.fit.sample import Window
from preread.values import KVBlock

Double = npt.NDArray[np.float64]

NOISE = 0.3
"""Variance of the noise, as a share of the head's own: about what the thin rungs do."""

SCORED_TOKENS = (64, 32)
"""For K and for V, which matters far less. With 32 for K the rungs have a tenth more KL (Qwen-0.5B, 5 windows)."""
SHARED = 0.2
"""Added to every head, as a share of the median: one measurement of a small effect is mostly chance, and errors in many
heads that seem to cost nothing do cost something together."""


def sensitivity(
    engine: LlamaCpp,
    windows: list[Window],
    variances: Double,
    sinks: int,
    late_sinks: int,
    progress: Callable[[int, int], None],
) -> Double:
    """KL divergence for each unit of squared error in a value of K and of V of each head, (2, layers, kv_heads).

    K is measured head by head on the first window, V on the last, all heads of a layer together.

    Args:
        windows: at least one.
        variances: of the values of each head, (2, layers, kv_heads).
        sinks: tokens at the start that stay as they are.
        late_sinks: so many others at most stay so.
    """
    source, (_, layers, heads) = np.random.default_rng(0), variances.shape
    measured, done, total = np.zeros(variances.shape), 0, layers * (heads + 1)
    for half, window in enumerate((windows[0], windows[-1])):
        probe = Probe.behind(engine, window, SCORED_TOKENS[half])
        late = find_late(window.block.v, sinks, late_sinks)

        def divergence(
            half: int,
            layer: int,
            some: slice,
            share: float,
            window: Window = window,
            probe: Probe = probe,
            late: Places = late,
        ) -> float:
            kept, noise = layer_of(window.block, layer), share * variances[half, layer, some]
            return probe.divergence(_noisy(kept, half, some, noise, sinks, late, source), kept)

        # llama.cpp rounds activations to 8 bits, so that the smallest change of anything costs about as much as this.
        floor = divergence(half, layers // 2, slice(None), 1e-4)
        parts = [slice(head, head + 1) for head in range(heads)] if half == 0 else [slice(None)]
        for layer, some in ((layer, some) for layer in range(layers) for some in parts):
            costs = divergence(half, layer, some, NOISE) - floor
            measured[half, layer, some] = costs * len(parts) / heads
            done += 1
            progress(done, total)
    shared = SHARED * max(float(np.median(measured)), 1e-9)
    cost: Double = (np.maximum(measured, 0) + shared) / (NOISE * variances)
    return cost


def _noisy(
    layer: KVBlock, half: int, some: slice, variances: Double, sinks: int, late: Places, source: np.random.Generator
) -> KVBlock:
    """A layer with noise in `some` heads of K or V, of these `variances`, but for sinks and `late` ones."""
    name = "kv"[half]
    values = getattr(layer, name).copy()
    rows = values[0, some, sinks:]
    # Noise of the same size in all channels is the same before and after rotation.
    rows += (source.standard_normal(rows.shape) * np.sqrt(variances)[:, None, None]).astype(np.float16)
    values[:, :, late] = getattr(layer, name)[:, :, late]
    return replace(layer, **{name: values})
