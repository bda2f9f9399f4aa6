"""How manifests are written: the JSON of version 1 and of version 2, field by field.

Version 1 says all of a model whose layers are alike: rows in every layer, K as wide as V, and all chunks of all of
them there. It knows fields and their types; what makes a manifest sound it must not know.
"""

from typing import Annotated, Final, Literal, Self

import msgspec

from preread.values import Form, Geometry, Layer, RowShape, StateShape
from preread.wire.fields import ContextIdField, FingerprintField, Line, ObjectIdField, Record, SizedId, TokenCount
from preread.wire.parts import Group, Pair, Part

FORMAT: Final = "preread-manifest"

RungName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9.-]{1,16}\Z")]
CodecName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9./+-]{1,64}\Z")]


class Tokens(Record, frozen=True, rename={"size_bytes": "bytes"}):
    """The token object: number of tokens, and the object's name and exact size."""

    count: TokenCount
    id: ObjectIdField
    size_bytes: Annotated[int, msgspec.Meta(ge=1)]


Micronats = Annotated[int, msgspec.Meta(ge=-(10**9), le=10**9)]


class Quality(Record, frozen=True, omit_defaults=True):
    """What a rung changes, measured on text that its codec was not fitted on. Integers, since JSON here has no floats.

    Attributes:
        dloss_micronats: mean change of the loss, in 10⁻⁶ nats a token; below zero where it fell.
        kl_micronats: mean KL divergence from the next-token distribution of the exact KV, in 10⁻⁶ nats.
        top1_ppm: at how many positions in a million the likeliest token stayed the same.
        tokens: how many positions were measured.
        dloss_interval_micronats, kl_interval_micronats: (low, high), in which these two lie on this context with a
            probability of 95 %; None: nobody said.
        measured_on: the fit's own text, this context through the rung's own bytes, or through those of another rung,
            from which this one's figures are inferred.
    """

    dloss_micronats: Micronats
    kl_micronats: Annotated[int, msgspec.Meta(ge=0, le=10**9)]
    top1_ppm: Annotated[int, msgspec.Meta(ge=0, le=10**6)]
    tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    dloss_interval_micronats: tuple[Micronats, Micronats] | None = None
    kl_interval_micronats: tuple[Micronats, Micronats] | None = None
    measured_on: Literal["fit", "context", "inferred"] = "fit"


class Origin(Record, frozen=True):
    """How the KV was made; for people and for reproduction, nothing is decided by it.

    `mode`: "exact" is what prefill computes; "mapped" follows from what a large model read, "guided" takes something
    from that, "taught" learned from its answers, and the rungs say what that costs.
    """

    engine: Line
    software: Line
    batch_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**24)]
    mode: Literal["exact", "mapped", "guided", "taught"] = "exact"


class Model1(Record, frozen=True):
    """A model whose layers are alike."""

    name: Line
    fingerprint: FingerprintField
    geometry: Geometry
    dtype: Literal["f16"] = "f16"


class Rung1(Record, frozen=True, omit_defaults=True):
    """A rung with a segment for each `[chunk][group]`."""

    name: RungName
    codec: CodecName
    segments: tuple[tuple[SizedId, ...], ...]
    # a factory's value is written even where defaults are omitted: manifests have always had the null
    profile: SizedId | None = msgspec.field(default_factory=lambda: None)
    quality: Quality | None = None
    base: RungName | None = None


class Manifest1(Record, frozen=True):
    """Version 1."""

    context: ContextIdField
    form: Form
    model: Model1
    tokens: Tokens
    chunks: tuple[Pair, ...]
    groups: tuple[Pair, ...]
    rungs: tuple[Rung1, ...]
    origin: Origin
    format: Literal["preread-manifest"] = FORMAT
    version: Literal[1] = 1


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**26)]


class Rows2(Record, frozen=True, omit_defaults=True):
    """A layer's rows."""

    kv_heads: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    k_dim: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    v_dim: Annotated[int, msgspec.Meta(ge=0, le=4096)]
    window: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class State2(Record, frozen=True):
    """A layer's state."""

    r: _Size
    rows: _Size
    row: _Size


class Layer2(Record, frozen=True, omit_defaults=True):
    """What a layer keeps."""

    rows: Rows2 | None = None
    state: State2 | None = None

    @classmethod
    def of(cls, layer: Layer) -> Self:
        """As it is written."""
        rows, state = layer.rows, layer.state
        return cls(
            None if rows is None else Rows2(rows.kv_heads, rows.k_dim, rows.v_dim, layer.window_tokens),
            None if state is None else State2(state.r_values, state.s_rows, state.s_row_values),
        )

    @property
    def value(self) -> Layer:
        """As it is read."""
        rows, state = self.rows, self.state
        return Layer(
            None if rows is None else RowShape(rows.kv_heads, rows.k_dim, rows.v_dim),
            None if rows is None else rows.window,
            None if state is None else StateShape(state.r, state.rows, state.row),
        )


class Model2(Record, frozen=True):
    """A model, layer by layer."""

    name: Line
    fingerprint: FingerprintField
    layers: Annotated[tuple[Layer2, ...], msgspec.Meta(min_length=1, max_length=1024)]
    dtype: Literal["f16"] = "f16"


class Rung2(Record, frozen=True, omit_defaults=True):
    """A rung with a segment for each part."""

    name: RungName
    codec: CodecName
    segments: tuple[SizedId, ...]
    profile: SizedId | None = msgspec.field(default_factory=lambda: None)
    quality: Quality | None = None
    base: RungName | None = None
    states: CodecName | None = None


class Manifest2(Record, frozen=True):
    """Version 2."""

    context: ContextIdField
    form: Form
    model: Model2
    tokens: Tokens
    chunks: tuple[Pair, ...]
    groups: tuple[Group, ...]
    parts: tuple[Part, ...]
    rungs: tuple[Rung2, ...]
    origin: Origin
    format: Literal["preread-manifest"] = FORMAT
    version: Literal[2] = 2
