"""From what a large model keeps of a text to what a small one would keep of it: linear, layer by layer.

Deep layers of the small model are mapped; those below the split stay exact, since they are cheap to compute and bear
the least error. A mapped layer is read from a window of aligned large layers, from the exact layers right below the
split, and from the small model's token embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preread.align.ridge import Linear, Single
from preread.errors import UsageError
from preread.values import Span


@dataclass(frozen=True, slots=True)
class Mapping:
    """How each small layer from the split on follows from other rows of the same tokens.

    A row holds one token's K before rotation and V in one layer, all heads: (2 · kv_heads · head_dim,).

    Attributes:
        split: the first small layer that is mapped.
        known: exact small layers that are read, those right below the split.
        windows: large layers that each mapped layer is read from.
        linears: of each mapped layer, from `features` to its rows.
    """

    split: int
    known: Span
    windows: tuple[Span, ...]
    linears: tuple[Linear, ...]

    def __post_init__(self) -> None:
        if not self.linears or len(self.windows) != len(self.linears):
            raise UsageError("a mapping has one window and one linear map for each mapped layer, and at least one")
        if not 0 <= self.known.start <= self.known.stop <= self.split:
            raise UsageError(f"layers {self.known} are not known below layer {self.split}")

    @property
    def layers(self) -> Span:
        """The small layers that are mapped."""
        return Span(self.split, self.split + len(self.linears))

    def rows(self, layer: int, large: Sequence[Single], small: Sequence[Single], embeddings: Single) -> Single:
        """A mapped layer's rows (tokens, 2 · kv_heads · head_dim).

        Args:
            layer: one of `layers`.
            large: rows of every large layer, (tokens, …) each.
            small: rows of every small layer below the split.
            embeddings: of the small model, normalised, (tokens, width).
        """
        number = layer - self.split
        return self.linears[number](features(large, self.windows[number], small, self.known, embeddings))


def features(large: Sequence[Single], window: Span, small: Sequence[Single], known: Span, embeddings: Single) -> Single:
    """What a mapped layer is read from, (tokens, X); arguments as in `Mapping`."""
    return np.concatenate([*large[window.start : window.stop], *small[known.start : known.stop], embeddings], axis=1)
