"""What a large model's reading adds to the KV that a small one computed itself: a gated residual, token by token.

The small model's KV stays; to K before rotation and to V of each layer from the first on comes what a small network
makes of the residual streams that a few large layers read at the matching token (of which all that the large model
keeps as K and V is a linear function). With weights of zero it changes nothing.
"""

from collections.abc import Mapping as Mapped
from dataclasses import dataclass, fields

import numpy as np

from preread.align.ridge import Single
from preread.errors import UsageError

_GELU = 0.7978845608028654, 0.044715
"""Of the approximation by tanh (Hendrycks and Gimpel, 2016)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of L guided layers, from X channels that are read through R that all layers share and Q of each layer's own.

    Attributes:
        mean: (X,); inward: (X, R), of what is read.
        down: (L, R, Q); up: (L, Q, C); bias: (L, C), C = 2 · kv_heads · head_dim: K of all heads, then V.
        gates: (L, R, 2 · kv_heads); gate_bias: (L, 2 · kv_heads).
    """

    mean: Single
    inward: Single
    down: Single
    up: Single
    bias: Single
    gates: Single
    gate_bias: Single


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
        if any(getattr(w, name).ndim != rank for name, rank in zip(NAMES, (1, 2, 3, 3, 2, 3, 2), strict=True)):
            raise UsageError("a guide's weights are not vectors and matrices")
        (x, r), (layers, _, q), (c, heads) = w.inward.shape, w.down.shape, (w.bias.shape[1], w.gate_bias.shape[1])
        shapes = ((x,), (x, r), (layers, r, q), (layers, q, c), (layers, c), (layers, r, heads), (layers, heads))
        found = tuple(getattr(w, name).shape for name in NAMES)
        if found != shapes or not all(map(all, shapes)) or heads % 2 or c % heads or x % len(self.reads):
            raise UsageError("a guide's weights do not fit one another")

    @property
    def layers(self) -> int:
        """How many layers are changed."""
        return len(self.weights.bias)

    def changes(self, large: Mapped[int, Single]) -> Single:
        """What is added to K before rotation and to V, (layers, 2, kv_heads, tokens, head_dim).

        `large`: by large layer the normalised residual stream, a row for each small token.
        """
        w = self.weights
        read = (np.concatenate([large[layer] for layer in self.reads], axis=1) - w.mean) @ w.inward
        heads = w.gate_bias.shape[1]
        found = []
        for down, up, bias, gates, gate_bias in zip(w.down, w.up, w.bias, w.gates, w.gate_bias, strict=True):
            added = (gelu(read @ down) @ up + bias).reshape(len(read), heads, -1)
            added *= sigmoid(read @ gates + gate_bias)[..., None]
            found.append(added.transpose(1, 0, 2).reshape(2, heads // 2, len(read), -1))
        return np.asarray(np.stack(found), np.float32)


def gelu(x: Single) -> Single:
    """Gaussian error linear unit, by tanh."""
    scale, cubic = _GELU
    return np.asarray(0.5 * x * (1 + np.tanh(scale * (x + cubic * x * x * x))), np.float32)


def sigmoid(x: Single) -> Single:
    """1 / (1 + exp(-x)), of any x."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)
