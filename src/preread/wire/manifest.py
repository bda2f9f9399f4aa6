"""What a context is made of: model, tokens, chunks, groups, parts, and the segments of every rung. Canonical JSON.

A manifest that `loads` returns is sound: every id is an id, chunks cover the tokens and groups what layers keep, all
parts that an answer needs are there, every segment has a place and a size within its bound. It is one value, in
whichever version it was written (`forms.py`). It must not know codecs, stores or engines.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from preread.errors import CorruptData, UsageError
from preread.values import Form, Geometry, KVShape, Layer, ObjectRef, Span, StateShape, alike, geometry_of
from preread.wire import canonical, forms, parts, segment, tokens
from preread.wire.fields import MAX_MANIFEST_BYTES, MAX_PROFILE_BYTES, ContextIdField, FingerprintField, Line, SizedId
from preread.wire.forms import Origin as Origin
from preread.wire.forms import Quality as Quality
from preread.wire.forms import RungName as RungName
from preread.wire.forms import Tokens as Tokens
from preread.wire.parts import Group as Group
from preread.wire.parts import Pair as Pair
from preread.wire.parts import Part as Part
from preread.wire.parts import pairs as pairs
from preread.wire.parts import rows_of as rows_of

VERSION: Final = 2
LOSSLESS: Final = "lossless"


class Model(msgspec.Struct, frozen=True):
    """The model whose memory this is. `fingerprint` covers all that changes what it means; `name` is for people."""

    name: Line
    fingerprint: FingerprintField
    layers: tuple[Layer, ...]
    dtype: Literal["f16"] = "f16"

    @property
    def geometry(self) -> Geometry | None:
        """Of its KV cache, if its layers are alike."""
        return geometry_of(self.layers)


class Rung(msgspec.Struct, frozen=True):
    """One step of the quality ladder.

    Attributes:
        name: 1 to 16 characters of a-z, 0-9, `.` and `-`.
        codec: codec chain of its rows and its version, for example "q4/1".
        segments: one object for each part of the manifest.
        profile: object that the codec needs for decoding, if any.
        quality: what the rung changes, where that was measured.
        base: the rung that this one refines: segments of rows are decoded together with that one's.
        states: codec of its states and its version; None where the model has none.
    """

    name: RungName
    codec: forms.CodecName
    segments: tuple[SizedId, ...]
    profile: SizedId | None = None
    quality: Quality | None = None
    base: RungName | None = None
    states: forms.CodecName | None = None

    @property
    def size_bytes(self) -> int:
        """Of all its segments."""
        return sum(one.size_bytes for one in self.segments)


class Manifest(msgspec.Struct, frozen=True):
    """What a context is made of. `rungs` come best quality first; `chunks` cover tokens, `groups` what layers keep."""

    context: ContextIdField
    form: Form
    model: Model
    tokens: Tokens
    chunks: tuple[Pair, ...]
    groups: tuple[Group, ...]
    parts: tuple[Part, ...]
    rungs: tuple[Rung, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class SegmentPlace:
    """One segment of a rung, and where it belongs: `chunk` and `group` are indices into the manifest's lists.

    Attributes:
        ref: the segment.
        tokens: of the chunk; states are those behind its last.
        layers: of the group; `numbers`: of these the ones that it has something of.
        shape: of the rows, or of each layer's state.
        base: the segment of the rung that this one refines, if it does.
    """

    ref: ObjectRef
    tokens: Span
    layers: Span
    chunk: int
    group: int
    shape: KVShape | StateShape
    numbers: tuple[int, ...]
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
    """Write a manifest that `loads` accepts, in the oldest version that says all of it.

    Raises:
        UsageError: it would not.
    """
    data = canonical.dumps(_form1(manifest) if is_plain(manifest) else _form2(manifest))
    try:
        loads(data)
    except CorruptData as error:
        raise UsageError(f"manifest cannot be published: {error}") from error
    return data


def loads(data: bytes) -> Manifest:
    """Read a manifest and check everything that can be checked without its objects.

    Raises:
        CorruptData: "format", "version", "json", "schema", "length" (an object's size is out of bounds), "shape"
            (layers, chunks, groups, parts, or a rung that does not fit them), "rung" (two of one name, or none, or one
            that refines a rung which is missing or does not stand alone), "range" (an interval whose ends are swapped).
    """
    version = canonical.check_stamp(data, forms.FORMAT, VERSION, MAX_MANIFEST_BYTES)
    if version == 1:
        manifest = _of_form1(canonical.loads(data, forms.Manifest1, MAX_MANIFEST_BYTES))
    else:
        manifest = _of_form2(canonical.loads(data, forms.Manifest2, MAX_MANIFEST_BYTES))
    _check(manifest)
    if version != 1 and is_plain(manifest):
        raise CorruptData("shape", "manifest says nothing that version 1 does not say")
    return manifest


def is_plain(manifest: Manifest) -> bool:
    """Whether version 1 says all of it."""
    stateless = all(rung.states is None for rung in manifest.rungs)
    return stateless and parts_are_plain(manifest.model, manifest.groups, manifest.parts, len(manifest.chunks))


def parts_are_plain(model: Model, groups: tuple[Group, ...], listed: tuple[Part, ...], chunks: int) -> bool:
    """Whether these are all rows of a model whose layers are alike, without a word of windows."""
    return (
        model.geometry is not None
        and all(layer.window_tokens is None for layer in model.layers)
        and all(group.kind == "rows" for group in groups)
        and listed == parts.all_parts(groups, chunks)
    )


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
    base = rung_named(manifest, rung.base).segments if rung.base else ()
    chunks, layers = [Span(*pair) for pair in manifest.chunks], manifest.model.layers
    groups = [(of.kind, Span(*of.layers), parts.shape(layers, of), parts.numbers(layers, of)) for of in manifest.groups]
    found = []
    for at, (group, chunk) in enumerate(manifest.parts):
        kind, span, shape, numbers = groups[group]
        below = _segment_ref(base[at]) if base and kind == "rows" else None
        ref = _segment_ref(rung.segments[at])
        found.append(SegmentPlace(ref, chunks[chunk], span, chunk, group, shape, numbers, below))
    return found


def header(manifest: Manifest, rung_name: str, place: SegmentPlace) -> segment.SegmentHeader:
    """The header that the segment at `place` must have."""
    states = isinstance(place.shape, StateShape)
    tokens = Span(0, place.tokens.stop) if states else place.tokens
    return segment.SegmentHeader(manifest.context, rung_name, tokens, place.layers, place.shape)


def open_layers(manifest: Manifest, groups: int) -> int:
    """How many layers can be computed behind the context once the first `groups` groups are in place."""
    return parts.open_layers(manifest.model.layers, manifest.groups, groups)


def all_parts(groups: tuple[Group, ...], chunks: tuple[Pair, ...]) -> tuple[Part, ...]:
    """Rows of every chunk, and states behind the last."""
    return parts.all_parts(groups, len(chunks))


def _segment_ref(cell: SizedId) -> ObjectRef:
    return ObjectRef("segments", cell.id, cell.size_bytes)


def tokens_ref(manifest: Manifest) -> ObjectRef:
    """The token object to ask for."""
    return ObjectRef("tokens", manifest.tokens.id, manifest.tokens.size_bytes)


def profile_ref(rung: Rung) -> ObjectRef | None:
    """The profile to ask for; None: the rung needs none."""
    return None if rung.profile is None else ObjectRef("profiles", rung.profile.id, rung.profile.size_bytes)


def _check(manifest: Manifest) -> None:
    layers = manifest.model.layers
    parts.check_layers(layers)
    parts.check_cover("chunks", manifest.chunks, manifest.tokens.count)
    parts.check_groups(layers, manifest.groups)
    parts.check_parts(layers, manifest.groups, manifest.chunks, manifest.parts)
    if manifest.tokens.size_bytes > tokens.bound_bytes(manifest.tokens.count):
        raise CorruptData("length", f"manifest states {manifest.tokens.size_bytes} bytes for its token object")
    names = [rung.name for rung in manifest.rungs]
    if not names or len(set(names)) != len(names):
        raise CorruptData("rung", "manifest has no rung, or two of one name")
    alone = {rung.name for rung in manifest.rungs if rung.base is None}
    bounds = segment_bounds_bytes(manifest)
    for rung in manifest.rungs:
        if rung.base is not None and rung.base not in alone:
            raise CorruptData("rung", f"rung {rung.name} refines {rung.base}, which does not stand alone here")
        _check_rung(manifest, rung, bounds)


def segment_bounds_bytes(manifest: Manifest) -> list[tuple[int, int]]:
    """Of each part's segment: bytes that it must be above, and the most that anybody has reason to write.

    That is a header, and besides that 9/8 of what is uncoded, and 4096.
    """
    layers, found = manifest.model.layers, []
    groups = [(Span(*of.layers), parts.shape(layers, of), parts.numbers(layers, of)) for of in manifest.groups]
    for group, chunk in manifest.parts:
        (span, shape, numbers), tokens = groups[group], Span(*manifest.chunks[chunk])
        head = segment.SegmentHeader(manifest.context, LOSSLESS, tokens, span, shape)
        raw_bytes = parts.raw_bytes(shape, len(numbers), len(tokens))
        found.append((head.size_bytes, head.size_bytes + raw_bytes + raw_bytes // 8 + 4096))
    return found


def _check_rung(manifest: Manifest, rung: Rung, bounds: list[tuple[int, int]]) -> None:
    if rung.profile is not None and rung.profile.size_bytes > MAX_PROFILE_BYTES:
        raise CorruptData("length", f"rung {rung.name} has a profile of {rung.profile.size_bytes} bytes")
    stated = rung.quality
    for interval in (stated.dloss_interval_micronats, stated.kl_interval_micronats) if stated else ():
        if interval is not None and interval[0] > interval[1]:
            raise CorruptData("range", f"rung {rung.name} states an interval of {interval}, whose ends are swapped")
    if len(rung.segments) != len(manifest.parts):
        raise CorruptData("shape", f"rung {rung.name} does not have one segment for each part")
    if (rung.states is not None) != any(group.kind == "states" for group in manifest.groups):
        raise CorruptData("shape", f"rung {rung.name} names a codec of states where there are none, or lacks it")
    for one, (above, most) in zip(rung.segments, bounds, strict=True):
        if not above < one.size_bytes <= most:
            raise CorruptData("length", f"rung {rung.name} has a segment of {one.size_bytes} bytes, bound {most}")


def _of_form1(form: forms.Manifest1) -> Manifest:
    shape = form.model.geometry
    if not (1 <= shape.layers <= 1024 and 1 <= shape.kv_heads <= 1024 and 1 <= shape.head_dim <= 4096):
        raise CorruptData("shape", f"manifest has an impossible geometry: {shape}")
    parts.check_cover("groups", form.groups, shape.layers)
    if not form.rungs:  # whose segments are what bounds the number of parts
        raise CorruptData("rung", "manifest has no rung")
    groups = tuple(Group("rows", pair) for pair in form.groups)
    rungs = tuple(Rung(one.name, one.codec, _flat(one, form), one.profile, one.quality, one.base) for one in form.rungs)
    return Manifest(
        form.context,
        form.form,
        Model(form.model.name, form.model.fingerprint, alike(shape), form.model.dtype),
        form.tokens,
        form.chunks,
        groups,
        all_parts(groups, form.chunks),
        rungs,
        form.origin,
    )


def _flat(rung: forms.Rung1, form: forms.Manifest1) -> tuple[SizedId, ...]:
    if len(rung.segments) != len(form.chunks) or any(len(row) != len(form.groups) for row in rung.segments):
        raise CorruptData("shape", f"rung {rung.name} does not have one segment for each chunk and group")
    return tuple(row[group] for group in range(len(form.groups)) for row in rung.segments)


def _form1(manifest: Manifest) -> forms.Manifest1:
    chunks = len(manifest.chunks)

    def rung(of: Rung) -> forms.Rung1:
        segments = tuple(of.segments[chunk::chunks] for chunk in range(chunks))
        return forms.Rung1(of.name, of.codec, segments, of.profile, of.quality, of.base)

    return forms.Manifest1(
        manifest.context,
        manifest.form,
        model_form1(manifest.model),
        manifest.tokens,
        manifest.chunks,
        tuple(group.layers for group in manifest.groups),
        tuple(map(rung, manifest.rungs)),
        manifest.origin,
    )


def model_form1(model: Model) -> forms.Model1:
    """A model whose layers are alike, as version 1 writes it."""
    assert model.geometry is not None
    return forms.Model1(model.name, model.fingerprint, model.geometry, model.dtype)


def _of_form2(form: forms.Manifest2) -> Manifest:
    layers = tuple(layer.value for layer in form.model.layers)
    return Manifest(
        form.context,
        form.form,
        Model(form.model.name, form.model.fingerprint, layers, form.model.dtype),
        form.tokens,
        form.chunks,
        form.groups,
        form.parts,
        tuple(
            Rung(one.name, one.codec, one.segments, one.profile, one.quality, one.base, one.states)
            for one in form.rungs
        ),
        form.origin,
    )


def _form2(manifest: Manifest) -> forms.Manifest2:
    rungs = tuple(
        forms.Rung2(one.name, one.codec, one.segments, one.profile, one.quality, one.base, one.states)
        for one in manifest.rungs
    )
    return forms.Manifest2(
        manifest.context,
        manifest.form,
        model_form2(manifest.model),
        manifest.tokens,
        manifest.chunks,
        manifest.groups,
        manifest.parts,
        rungs,
        manifest.origin,
    )


def model_form2(model: Model) -> forms.Model2:
    """A model as version 2 writes it."""
    layers = tuple(map(forms.Layer2.of, model.layers))
    return forms.Model2(model.name, model.fingerprint, layers, model.dtype)
