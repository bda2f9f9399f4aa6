"""The values that every layer speaks: frozen, without behaviour beyond arithmetic on themselves.

Spans are half-open, `start` inclusive and `stop` exclusive. Arrays of KV are always in the canonical layout
`(layers, kv_heads, tokens, head_dim)`, float16, K as llama.cpp caches it (that is: after RoPE). States are float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NewType

import numpy as np
import numpy.typing as npt

ObjectId = NewType("ObjectId", str)
"""64 lower-case hex digits: the BLAKE3 digest of an immutable object's bytes, which is also its name."""

ContextId = NewType("ContextId", str)
"""64 lower-case hex digits: the digest of a model fingerprint and token ids, and of nothing else."""

Fingerprint = NewType("Fingerprint", str)
"""64 lower-case hex digits: the digest of everything that changes what KV rows mean."""

Family = NewType("Family", str)
"""64 lower-case hex digits: the digest of what is the same in all quantisations of a model."""

Form = Literal["chat", "text"]
"""How a context continues: `chat` is a rendered system prompt that chat messages follow, `text` a bare prefix."""

Kind = Literal["segments", "tokens", "manifests", "profiles", "fits"]
"""The kinds of immutable objects that a store keeps, each under a folder and a route of this name."""

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of tokens or layers: `start <= i < stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of a model's KV cache where all layers are alike, and K and V too."""

    layers: int
    kv_heads: int
    head_dim: int

    @property
    def values_per_token(self) -> int:
        """K and V values that one token adds to the cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class RowShape:
    """One token's K and V in one layer: so many heads of so many values. No V (0) where K stands for both (MLA)."""

    kv_heads: int
    k_dim: int
    v_dim: int


@dataclass(frozen=True, slots=True)
class StateShape:
    """What one recurrent layer of a model keeps; all of a model's keep the same.

    Attributes:
        r_values: the last inputs of its convolution (llama.cpp's R); 0: none.
        s_rows, s_row_values: its state (llama.cpp's S), so many rows of so many values that lie side by side in memory;
            both 0: none.
    """

    r_values: int
    s_rows: int
    s_row_values: int

    @property
    def s_values(self) -> int:
        """Of the whole state."""
        return self.s_rows * self.s_row_values


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer of a model keeps of a context; nothing, where it reads another layer's rows or none.

    Attributes:
        rows: of each token, if it attends to them.
        window_tokens: only so many are looked at, the one that looks included; None: all.
        state: behind all tokens, if it is recurrent. Some layers have both.
    """

    rows: RowShape | None = None
    window_tokens: int | None = None
    state: StateShape | None = None


def alike(geometry: Geometry) -> tuple[Layer, ...]:
    """The layers of a model that has such a cache."""
    return (Layer(RowShape(geometry.kv_heads, geometry.head_dim, geometry.head_dim)),) * geometry.layers


def geometry_of(layers: Sequence[Layer]) -> Geometry | None:
    """The geometry of a model whose layers are alike but for their windows; None: they are not, or K and V differ."""
    first = layers[0].rows if layers else None
    if first is None or first.k_dim != first.v_dim:
        return None
    same = all(layer.rows == first and layer.state is None for layer in layers)
    return Geometry(len(layers), first.kv_heads, first.k_dim) if same else None


def runs_of(layers: Sequence[Layer]) -> tuple[Span, ...]:
    """All layers in as few runs as there can be of layers whose rows are alike, or that have none."""
    runs, shape = [0], None
    for number, layer in enumerate(layers):
        if layer.rows is not None:
            if shape is not None and layer.rows != shape:
                runs.append(number)
            shape = layer.rows
    return tuple(Span(start, stop) for start, stop in pairwise([*runs, len(layers)]))


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of K and V of a block but for its tokens: so many layers, which are alike."""

    layers: int
    kv_heads: int
    k_dim: int
    v_dim: int

    @property
    def values_per_token(self) -> int:
        """K and V values of one token."""
        return self.layers * self.kv_heads * (self.k_dim + self.v_dim)


@dataclass(frozen=True, slots=True)
class KVBlock:
    """K and V of some tokens in some layers.

    Attributes:
        tokens: positions in the context.
        layers: layers of the model; those of them that have no rows have none here.
        k: float16 array of shape (layers, kv_heads, tokens, head_dim).
        v: the same shape, but for head_dim in some models.
    """

    tokens: Span
    layers: Span
    k: Half
    v: Half

    @property
    def shape(self) -> KVShape:
        """Of both halves."""
        layers, kv_heads, _, k_dim = self.k.shape
        return KVShape(layers, kv_heads, k_dim, self.v.shape[3])


@dataclass(frozen=True, slots=True)
class StateBlock:
    """The states of some recurrent layers behind some tokens of a context.

    Attributes:
        layers: the model's numbers of the layers, ascending.
        position: how many tokens had been read.
        r: float32 array of shape (layers, r_values).
        s: float32 array of shape (layers, s_rows, s_row_values).
    """

    layers: tuple[int, ...]
    position: int
    r: Single
    s: Single

    @property
    def shape(self) -> StateShape:
        """Of each layer."""
        return StateShape(self.r.shape[1], self.s.shape[1], self.s.shape[2])


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """An immutable object that can be asked for: what it is, its name, and its exact size."""

    kind: Kind
    id: ObjectId
    size_bytes: int
