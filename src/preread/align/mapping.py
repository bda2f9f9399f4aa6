"""From what a large model makes of a text to what a small one would keep of it: linear, token by token.

Deep layers of the small model are mapped; those below the split stay exact, since they are cheap to compute and bear
the least error. K and V of a layer are linear in what that layer reads, the residual stream, once that is normalised
(and up to a bias and RoPE). So a mapping reads residual streams: those that a few aligned large layers read, the one
that the small model's own layer at the split reads, and the small model's token embeddings.
"""

from collections.abc import Mapping as Mapped
from dataclasses import dataclass

import numpy as np

from preread.align.ridge import Linear, Single
from preread.errors import UsageError
from preread.values import KVBlock


@dataclass(frozen=True, slots=True)
class Read:
    """What two models make of one text, a row for each token of the small one.

    Attributes:
        block: the small model's exact KV.
        known: by small layer, the residual stream that it reads, normalised, (tokens, width).
        large: by large layer the same, at the matching tokens.
        embeddings: of the small model, normalised, (tokens, width).
    """

    block: KVBlock
    known: Mapped[int, Single]
    large: Mapped[int, Single]
    embeddings: Single


@dataclass(frozen=True, slots=True)
class Mapping:
    """How small layers from the split on follow from other rows of the same tokens.

    Attributes:
        split: the first small layer that is mapped; all after it are.
        reads: large layers whose residual stream is read.
        widths: of the residual streams of the small and the large model.
        linear: from `features` to the mapped layers' rows side by side: of each K before rotation, all heads, and V.
    """

    split: int
    reads: tuple[int, ...]
    widths: tuple[int, int]
    linear: Linear

    def __post_init__(self) -> None:
        small, large = self.widths
        if len(self.linear.mean_x) != small * (2 if self.split else 1) + large * len(self.reads):
            raise UsageError("a mapping's linear map does not read what it says")
        if self.split < 0 or not self.reads or any(layer < 0 for layer in self.reads):
            raise UsageError("a mapping reads no large layer, or one that cannot be")

    def rows(self, read: Read) -> Single:
        """Rows (tokens, mapped layers · 2 · kv_heads · head_dim)."""
        return self.linear(features(read, self.split, self.reads))


def features(read: Read, split: int, reads: tuple[int, ...]) -> Single:
    """What layers from the split on are mapped from, (tokens, X)."""
    own = [read.known[split]] if split else []
    return np.concatenate([*[read.large[layer] for layer in reads], *own, read.embeddings], axis=1)


def of_large(read: Read, reads: tuple[int, ...]) -> int:
    """How many of the `features`, the first of them, are the large model's."""
    return sum(read.large[layer].shape[1] for layer in reads)


def chosen(path: tuple[int, ...], split: int, most: int) -> tuple[int, ...]:
    """At most so many large layers, spread evenly over the partners of the small layers from the split on."""
    partners = sorted(set(path[split:]))
    picks = np.linspace(0, len(partners) - 1, min(most, len(partners)))
    return tuple(dict.fromkeys(partners[round(at)] for at in picks))
