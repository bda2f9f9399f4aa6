"""A profile that nobody had to fit: its basis is the identity, so a rung with a small step is close to lossless."""

import math
from collections.abc import Mapping

import numpy as np

from preread.codec.groups import layer_groups
from preread.codec.profile import Basis, FittedRung, Profile, Quality, Steps
from preread.codec.rope import Rope, Ropes
from preread.codec.symbols import CLASSES
from preread.fit import tables
from preread.values import Fingerprint, Geometry, Span

GROUP_LAYERS = 1


def plain_profile(
    fingerprint: Fingerprint,
    geometry: Geometry,
    embedding_width: int,
    rungs: Mapping[str, tuple[float, float]],
    groups: tuple[Span, ...] = (),
    ropes: Ropes = (),
) -> Profile:
    """A profile for a model. Its quality is stated, not measured.

    Args:
        fingerprint, geometry: of the model.
        embedding_width: of the model's embeddings.
        rungs: name to step (in units of K and V) and stated change of loss, best first.
        groups: of layers; by default each is one.
        ropes: how each layer rotates; by default none does.
    """
    groups = groups or layer_groups(geometry.layers, GROUP_LAYERS)
    widths = [2 * len(layers) * geometry.kv_heads * geometry.head_dim for layers in groups]
    return Profile(
        fingerprint,
        geometry,
        groups,
        4,
        8,
        "nothing",
        ropes or (Rope(True, np.zeros(0, np.float32)),) * geometry.layers,
        np.zeros(embedding_width, np.float32),
        np.zeros((embedding_width, 1), np.float16),
        tuple(_identity(width) for width in widths),
        tables.start(),
        tuple(
            FittedRung(name, 4.0, Quality(dloss, abs(dloss), 0.9, 1000), steps, steps, (0.0, 0.0))
            for name, (step, dloss) in rungs.items()
            for steps in [Steps(step, tuple(np.full(width, _class(step), np.uint8) for width in widths))]
        ),
    )


def _class(step: float) -> int:
    """The class of values with a deviation of 1.5, as K and V of small models have it."""
    return min(max(round(2 * math.log2(1.5 / step)) + 6, 0), CLASSES - 1)


def _identity(width: int) -> Basis:
    return Basis(
        np.zeros(width, np.float32),
        np.ones(width, np.float32),
        np.eye(width, dtype=np.int8) * np.int8(127),
        np.full(width, 1 / 127, np.float32),
        np.zeros((1, width), np.int8),
        np.ones(1, np.float32),
    )
