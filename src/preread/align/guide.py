"""What a large model's reading adds to the KV that a small one computed itself: a gated residual, token by token.

The small model's KV stays; to K before rotation and to V of each layer from the first on comes a linear function of the
residual streams that a few large layers read at the matching token (of which all that the large model keeps as K and V
is a linear function too), by head through a gate. With weights of zero it changes nothing.
"""

from collections.abc import Mapping as Mapped
from dataclasses import dataclass, fields

import numpy as np

from preread.align.ridge import Single
from preread.errors import UsageError


@dataclass(frozen=True, slots=True)
class Weights:
    """Of L guided layers, from X channels that are read through R that all layers share.

    Attributes:
        mean: (X,); inward: (X, R), of what is read.
        added: (L, R, C); bias: (L, C), C = 2 · kv_heads · head_dim: K of all heads, then V.
        gates: (L, 2 · kv_heads), by which what is read for a head is multiplied.
    """

    mean: Single
    inward: Single
    added: Single
    bias: Single
    gates: Single


NAMES = tuple(field.name for field in fields(Weights))


@dataclass(frozen=True, slots=True)
class Guide:
    """How KV of small layers changes with what large layers read of the same tokens.

    Attributes:
        first: the first small layer that is changed; all after it are.
        reads: large layers whose normalised residual stream is read.
        weights: of finite values that fit one another.
    """

    first: int
    reads: tuple[int, ...]
    weights: Weights

    def __post_init__(self) -> None:
        w = self.weights
        if self.first < 0 or not self.reads or any(layer < 0 for layer in self.reads):
            raise UsageError("a guide reads no large layer, or one that cannot be")
        if any(getattr(w, name).ndim != rank for name, rank in zip(NAMES, (1, 2, 3, 2, 2), strict=True)):
            raise UsageError("a guide's weights are not vectors and matrices")
        (x, r), (layers, c), heads = w.inward.shape, w.bias.shape, w.gates.shape[1]
        shapes = ((x,), (x, r), (layers, r, c), (layers, c), (layers, heads))
        found = tuple(getattr(w, name).shape for name in NAMES)
        if found != shapes or not all(map(all, shapes)) or heads % 2 or c % heads or x % len(self.reads):
            raise UsageError("a guide's weights do not fit one another")

    @property
    def layers(self) -> int:
        """How many layers are changed."""
        return len(self.weights.bias)

    def read(self, large: Mapped[int, Single]) -> Single:
        """What all layers share of what is read, (tokens, R).

        `large`: by large layer the normalised residual stream, a row for each small token.
        """
        w = self.weights
        return np.asarray((np.concatenate([large[layer] for layer in self.reads], axis=1) - w.mean) @ w.inward)

    def changes(self, read: Single) -> Single:
        """What is added to K before rotation and to V, (layers, 2, kv_heads, tokens, head_dim), by what `read` gave."""
        w = self.weights
        layers, heads = w.gates.shape
        gated = (read @ w.added).reshape(layers, len(read), heads, -1) * w.gates[:, None, :, None]
        rows = gated + w.bias.reshape(layers, 1, heads, -1)
        found = rows.transpose(0, 2, 1, 3).reshape(layers, 2, heads // 2, len(read), -1)
        return np.asarray(found, np.float32)
