"""What a context is made of: model, tokens, chunks, layer groups, and the segments of every rung. Canonical JSON.

A manifest that `loads` returns is sound: every id is an id, chunks and groups cover the context without gaps, every
segment has a place and a size within its bound. It must not know codecs, stores or engines.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec

from preread.errors import CorruptData, UsageError
from preread.values import Form, Geometry, ObjectRef, Span
from preread.wire import canonical, segment, tokens
from preread.wire.fields import (
    MAX_MANIFEST_BYTES,
    MAX_PROFILE_BYTES,
    ContextIdField,
    FingerprintField,
    Line,
    ObjectIdField,
    Record,
    SizedId,
    TokenCount,
)

FORMAT: Final = "preread-manifest"
VERSION: Final = 1
LOSSLESS: Final = "lossless"

Pair = tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=1)]]
"""A span on the wire: [start, stop], half-open."""

RungName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9.-]{1,16}\Z")]


class Model(Record, frozen=True):
    """The model whose KV this is. `fingerprint` covers all that changes what KV rows mean; `name` is for people."""

    name: Line
    fingerprint: FingerprintField
    geometry: Geometry
    dtype: Literal["f16"] = "f16"


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


class Rung(Record, frozen=True, omit_defaults=True):
    """One step of the quality ladder.

    Attributes:
        name: 1 to 16 characters of a-z, 0-9, `.` and `-`.
        codec: codec chain and its version, for example "q4/1".
        segments: one object for each `[chunk][group]`.
        profile: object that the codec needs for decoding, if any.
        quality: what the rung changes, where that was measured; absent from the JSON where it was not.
        base: the rung that this one refines: segments are decoded together with that one's; absent: it stands alone.
    """

    name: RungName
    codec: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9./+-]{1,64}\Z")]
    segments: tuple[tuple[SizedId, ...], ...]
    # a factory's value is written even where defaults are omitted: manifests have always had the null
    profile: SizedId | None = msgspec.field(default_factory=lambda: None)
    quality: Quality | None = None
    base: RungName | None = None


class Origin(Record, frozen=True):
    """How the KV was made; for people and for reproduction, nothing is decided by it.

    `mode`: "exact" is what prefill computes; "mapped" follows from what a large model read, "guided" takes something
    from that, "taught" learned from its answers, and the rungs say what that costs.
    """

    engine: Line
    software: Line
    batch_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**24)]
    mode: Literal["exact", "mapped", "guided", "taught"] = "exact"


class Manifest(Record, frozen=True):
    """What a context is made of. `rungs` come best quality first; `chunks` cover tokens and `groups` cover layers."""

    context: ContextIdField
    form: Form
    model: Model
    tokens: Tokens
    chunks: tuple[Pair, ...]
    groups: tuple[Pair, ...]
    rungs: tuple[Rung, ...]
    origin: Origin
    format: Literal["preread-manifest"] = FORMAT
    version: Literal[1] = VERSION


@dataclass(frozen=True, slots=True)
class SegmentPlace:
    """One segment of a rung, and where it belongs: `chunk` and `group` are indices into the manifest's lists.

    `base` is the segment of the rung that this one refines, if it does.
    """

    ref: ObjectRef
    tokens: Span
    layers: Span
    chunk: int
    group: int
    base: ObjectRef | None = None

    @property
    def refs(self) -> tuple[ObjectRef, ...]:
        """All that decoding takes, the base first."""
        return (self.ref,) if self.base is None else (self.base, self.ref)

    @property
    def size_bytes(self) -> int:
        """On the wire."""
        return sum(ref.size_bytes for ref in self.refs)


def dumps(manifest: Manifest) -> bytes:
    """Write a manifest that `loads` accepts.

    Raises:
        UsageError: it would not.
    """
    data = canonical.dumps(manifest)
    try:
        loads(data)
    except CorruptData as error:
        raise UsageError(f"manifest cannot be published: {error}") from error
    return data


def loads(data: bytes) -> Manifest:
    """Read a manifest and check everything that can be checked without its objects.

    Raises:
        CorruptData: "format", "version", "json", "schema", "length" (an object's size is out of bounds), "shape"
            (geometry, chunks, groups, or a rung that does not fit them), "rung" (two of one name, or none, or one that
            refines a rung which is missing or does not stand alone), "range" (an interval whose ends are swapped).
    """
    canonical.check_stamp(data, FORMAT, VERSION, MAX_MANIFEST_BYTES)
    manifest = canonical.loads(data, Manifest, MAX_MANIFEST_BYTES)
    _check_geometry(manifest.model.geometry)
    _check_cover("chunks", manifest.chunks, manifest.tokens.count)
    _check_cover("groups", manifest.groups, manifest.model.geometry.layers)
    if manifest.tokens.size_bytes > tokens.bound_bytes(manifest.tokens.count):
        raise CorruptData("length", f"manifest states {manifest.tokens.size_bytes} bytes for its token object")
    names = [rung.name for rung in manifest.rungs]
    if not names or len(set(names)) != len(names):
        raise CorruptData("rung", "manifest has no rung, or two of one name")
    alone = {rung.name for rung in manifest.rungs if rung.base is None}
    for rung in manifest.rungs:
        if rung.base is not None and rung.base not in alone:
            raise CorruptData("rung", f"rung {rung.name} refines {rung.base}, which does not stand alone here")
        _check_rung(manifest, rung)
    return manifest


def segment_bound_bytes(geometry: Geometry, chunk: Span, group: Span) -> int:
    """Largest size of a segment that anybody has reason to write: header, 9/8 of the raw fp16 K and V, and 4096."""
    raw_bytes = 2 * 2 * len(chunk) * len(group) * geometry.kv_heads * geometry.head_dim
    return segment.HEADER.size + raw_bytes + raw_bytes // 8 + 4096


def rung_named(manifest: Manifest, name: str) -> Rung:
    """The rung of this name.

    Raises:
        UsageError: the manifest lacks it.
    """
    for rung in manifest.rungs:
        if rung.name == name:
            return rung
    known = ", ".join(rung.name for rung in manifest.rungs)
    raise UsageError(f"context {manifest.context[:12]} has no rung {name!r}; it has: {known}")


def stated_dloss(rung: Rung) -> float | None:
    """Change of the loss that a rung is taken to cost, nats a token; None: nothing is stated.

    The larger of what was measured and the KL divergence. The measured mean of a few hundred tokens scatters by more
    than any sensible budget; the divergence hardly does, and is what the loss would rise by on text that the model
    itself finds as likely as it says. Where intervals are stated, it is the upper end of the divergence's, and of the
    change itself by what it rises beyond doubt.
    """
    if (quality := rung.quality) is not None:
        (dloss, _), (_, kl) = (
            interval or (mean, mean)
            for mean, interval in (
                (quality.dloss_micronats, quality.dloss_interval_micronats),
                (quality.kl_micronats, quality.kl_interval_micronats),
            )
        )
        return max(dloss, kl) * 1e-6
    return 0.0 if rung.name == LOSSLESS else None


def places(manifest: Manifest, rung_name: str) -> list[SegmentPlace]:
    """Segments of a rung in layer order: all chunks of group 0, then all chunks of group 1, and so on.

    Raises:
        UsageError: the manifest lacks the rung.
    """
    rung = rung_named(manifest, rung_name)
    base = rung_named(manifest, rung.base).segments if rung.base else None
    chunks, groups = ([Span(*pair) for pair in pairs] for pairs in (manifest.chunks, manifest.groups))
    return [
        SegmentPlace(
            _segment_ref(rung.segments[c][g]),
            chunk,
            group,
            c,
            g,
            None if base is None else _segment_ref(base[c][g]),
        )
        for g, group in enumerate(groups)
        for c, chunk in enumerate(chunks)
    ]


def header(manifest: Manifest, rung_name: str, place: SegmentPlace) -> segment.SegmentHeader:
    """The header that the segment at `place` must have."""
    shape = manifest.model.geometry
    return segment.SegmentHeader(
        manifest.context, rung_name, place.tokens, place.layers, shape.kv_heads, shape.head_dim
    )


def _segment_ref(cell: SizedId) -> ObjectRef:
    return ObjectRef("segments", cell.id, cell.size_bytes)


def tokens_ref(manifest: Manifest) -> ObjectRef:
    """The token object to ask for."""
    return ObjectRef("tokens", manifest.tokens.id, manifest.tokens.size_bytes)


def profile_ref(rung: Rung) -> ObjectRef | None:
    """The profile to ask for; None: the rung needs none."""
    return None if rung.profile is None else ObjectRef("profiles", rung.profile.id, rung.profile.size_bytes)


def pairs(spans: Iterable[Span]) -> tuple[Pair, ...]:
    """Spans as a manifest writes them."""
    return tuple((span.start, span.stop) for span in spans)


def _check_geometry(shape: Geometry) -> None:
    if not (1 <= shape.layers <= 1024 and 1 <= shape.kv_heads <= 1024 and 1 <= shape.head_dim <= 4096):
        raise CorruptData("shape", f"manifest has an impossible geometry: {shape}")


def _check_cover(what: str, spans: tuple[Pair, ...], count: int) -> None:
    joined = all(left[1] == right[0] for left, right in pairwise(spans))
    full = all(start < stop for start, stop in spans)
    if not (spans and joined and full and spans[0][0] == 0 and spans[-1][1] == count):
        raise CorruptData("shape", f"manifest's {what} do not cover 0 to {count} one after the other")


def _check_rung(manifest: Manifest, rung: Rung) -> None:
    if rung.profile is not None and rung.profile.size_bytes > MAX_PROFILE_BYTES:
        raise CorruptData("length", f"rung {rung.name} has a profile of {rung.profile.size_bytes} bytes")
    stated = rung.quality
    for interval in (stated.dloss_interval_micronats, stated.kl_interval_micronats) if stated else ():
        if interval is not None and interval[0] > interval[1]:
            raise CorruptData("range", f"rung {rung.name} states an interval of {interval}, whose ends are swapped")
    if len(rung.segments) != len(manifest.chunks) or any(len(row) != len(manifest.groups) for row in rung.segments):
        raise CorruptData("shape", f"rung {rung.name} does not have one segment for each chunk and group")
    for chunk, row in zip(manifest.chunks, rung.segments, strict=True):
        for group, cell in zip(manifest.groups, row, strict=True):
            bound = segment_bound_bytes(manifest.model.geometry, Span(*chunk), Span(*group))
            if not segment.HEADER.size < cell.size_bytes <= bound:
                raise CorruptData("length", f"rung {rung.name} has a segment of {cell.size_bytes} bytes, bound {bound}")
