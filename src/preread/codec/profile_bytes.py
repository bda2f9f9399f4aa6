"""Profiles as bytes: written by the fit, read with care, since they come over the network.

Layout: "PRPF", u32 length of the head, the head (JSON), then the arrays, little-endian, in the order and of the shapes
that the head implies, and nothing else.
"""

import struct
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from preread.codec.groups import layer_groups, sized
from preread.codec.profile import Basis, FittedRung, Profile, Quality, Steps
from preread.codec.rope import Rope, Ropes
from preread.codec.symbols import ALPHABET, CLASSES, LEVELS, RATIOS, Coder
from preread.errors import CorruptData
from preread.values import Fingerprint, Geometry, Span

MAGIC: Final = b"PRPF"
Version = Literal[2, 3, 4]
VERSIONS: Final = (2, 3, 4)
"""Each reads what those before it said too; a profile is written in the first one that can say all of it."""

_MAX_HEAD_BYTES = 1 << 16
_MAX_LAYERS, _MAX_WIDTH = 1024, 1 << 16
_MAX_ROTATIONS = 8
"""A context's angles are worked out for each of them."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
RungName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9.-]{1,16}\Z")]


class _Stamp(msgspec.Struct, frozen=True):
    version: int


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The head's fields; arrays follow it. Numbers with fractions are in the arrays.

    Version 2 lacks the last six, and version 3 the last four.
    """

    format: Literal["preread-profile"]
    version: Version
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    geometry: Geometry
    group_layers: Annotated[int, msgspec.Meta(ge=1, le=_MAX_LAYERS)]
    sink_tokens: Annotated[int, msgspec.Meta(ge=0, le=64)]
    recent_tokens: Count
    calibration: Annotated[str, msgspec.Meta(max_length=4096)]
    near: bool
    pairs: Count
    embedding_width: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    feature_count: Count
    components: tuple[Count, ...]
    rungs: tuple[tuple[RungName, RungName | None, tuple[Count, ...], tuple[Count, ...]], ...]
    recent_part: Count = 0
    sink_runs: bool = False
    groups: tuple[Count, ...] = ()
    rotations: tuple[Count, ...] = ()
    layer_rotations: tuple[Count, ...] = ()
    late_sinks: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


def dumps(profile: Profile) -> bytes:
    """Write a profile."""
    layers, group_layers = profile.geometry.layers, max(map(len, profile.groups))
    regular = profile.groups == layer_groups(layers, group_layers)
    rotations, of_layers = _different(profile.ropes)
    of_one_kind = regular and len(rotations) == 1 and not profile.late_sinks
    version: Version = 4 if not of_one_kind else 3 if profile.recent_part or profile.sink_runs else 2
    head = _Head(
        "preread-profile",
        version,
        profile.fingerprint,
        profile.geometry,
        group_layers,
        profile.sink_tokens,
        profile.recent_tokens,
        profile.calibration,
        rotations[0].near,
        max(len(rope.frequencies) for rope in rotations),
        len(profile.feature_mean),
        profile.features.shape[1],
        tuple(len(basis.rows) for basis in profile.bases),
        tuple((rung.name, rung.base, _counts(rung.older), _counts(rung.recent)) for rung in profile.rungs),
        profile.recent_part,
        profile.sink_runs,
        () if regular else tuple(map(len, profile.groups)),
        tuple(len(rope.frequencies) for rope in rotations) if len(rotations) > 1 else (),
        of_layers if len(rotations) > 1 else (),
        profile.late_sinks,
    )
    text = msgspec.json.encode(head, order="sorted")
    parts = [MAGIC, struct.pack("<I", len(text)), text]
    parts += [_raw(rope.frequencies, "<f4") for rope in rotations]
    parts += [_raw(profile.feature_mean, "<f4"), _raw(profile.features, "<f2")]
    for basis in profile.bases:
        parts += [_raw(basis.mean, "<f4"), _raw(basis.weight, "<f4")]
        parts += [_raw(basis.rows, "i1"), _raw(basis.row_scales, "<f4")]
        parts += [_raw(basis.prediction, "i1"), _raw(basis.prediction_scales, "<f4")]
    coder = profile.coder
    parts += [_raw(coder.means, "<u2"), _raw(coder.levels, "u1"), _raw(coder.frequencies, "<u2")]
    for rung in profile.rungs:
        stated = rung.quality
        numbers = [rung.bits, stated.dloss, stated.kl, stated.top1, stated.tokens]
        numbers += [rung.older.step, rung.recent.step, *rung.bias]
        classes = [*rung.older.classes, *rung.recent.classes]
        parts += [_raw(np.array(numbers), "<f8"), *(_raw(row, "u1") for row in classes)]
    return b"".join(parts)


def loads(data: bytes) -> Profile:
    """Read a profile, and check that nothing in it can do worse than make bad answers.

    Raises:
        CorruptData: "magic", "version", "json", "schema", "shape" (impossible sizes), "length" (not exactly the bytes
            that the head implies), "range" (a number that is not finite, or not positive where it must be).
    """
    head, rest = _head(data)
    if not (1 <= head.geometry.layers <= _MAX_LAYERS and head.geometry.kv_heads >= 1 and head.geometry.head_dim >= 1):
        raise CorruptData("shape", f"profile has an impossible geometry: {head.geometry}")
    groups, rotations = _groups(head), head.rotations or (head.pairs,)
    of_layers = head.layer_rotations or (0,) * head.geometry.layers
    widths = [2 * len(layers) * head.geometry.kv_heads * head.geometry.head_dim for layers in groups]
    _check_shapes(head, widths)
    count = head.feature_count
    size = 4 * sum(rotations) + 4 * head.embedding_width + 2 * head.embedding_width * count
    size += sum(8 * n + c * n + 4 * c + count * n + 4 * count for c, n in zip(head.components, widths, strict=True))
    size += 2 * CLASSES + CLASSES * RATIOS + 2 * LEVELS * ALPHABET
    size += sum(8 * 9 + sum(older) + sum(recent) for _, _, older, recent in head.rungs)
    if size != len(rest):
        raise CorruptData("length", f"profile has {len(rest)} bytes of arrays, its head implies {size}")
    take = _taker(rest)
    ropes = [Rope(head.near, take("<f4", pairs)) for pairs in rotations]
    mean, features = take("<f4", head.embedding_width), take("<f2", head.embedding_width, count)
    bases = tuple(_basis(take, c, n, count) for c, n in zip(head.components, widths, strict=True))
    coder = _coder(take)
    rungs = tuple(_rung(take, *rung) for rung in head.rungs)
    return Profile(
        Fingerprint(head.fingerprint),
        head.geometry,
        groups,
        head.sink_tokens,
        head.recent_tokens,
        head.calibration,
        tuple(ropes[which] for which in of_layers),
        mean,
        features,
        bases,
        coder,
        rungs,
        head.recent_part,
        head.sink_runs,
        head.late_sinks,
    )


Taker = Callable[..., npt.NDArray[Any]]


def _head(data: bytes) -> tuple[_Head, memoryview]:
    if data[:4] != MAGIC or len(data) < 8:
        raise CorruptData("magic", "this is not a profile")
    (length,) = struct.unpack_from("<I", data, 4)
    if length > _MAX_HEAD_BYTES or 8 + length > len(data):
        raise CorruptData("length", f"profile states a head of {length} bytes")
    try:
        version = msgspec.json.decode(data[8 : 8 + length], type=_Stamp).version
        if version not in VERSIONS:
            raise CorruptData("version", f"profile has version {version}, this preread reads 2 to {VERSIONS[-1]}")
        head = msgspec.json.decode(data[8 : 8 + length], type=_Head)
        if version == 2 and (head.recent_part or head.sink_runs):
            raise CorruptData("schema", "profile's head: version 2 has neither `recent_part` nor `sink_runs`")
        if version < 4 and (head.groups or head.rotations or head.layer_rotations or head.late_sinks):
            raise CorruptData("schema", f"profile's head: version {version} has fewer fields")
    except msgspec.ValidationError as error:
        raise CorruptData("schema", f"profile's head: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptData("json", f"profile's head: {error}") from error
    return head, memoryview(data)[8 + length :]


def _groups(head: _Head) -> tuple[Span, ...]:
    """The layer groups. Raises CorruptData "shape"."""
    layers = head.geometry.layers
    if not head.groups:
        return layer_groups(layers, head.group_layers)
    if sum(head.groups) != layers or not 1 <= min(head.groups) or max(head.groups) > head.group_layers:
        raise CorruptData("shape", f"profile has groups of {head.groups[:8]} layers … for {layers} layers")
    return sized(head.groups)


def _check_shapes(head: _Head, widths: list[int]) -> None:
    shape = head.geometry
    if max(widths) > _MAX_WIDTH or 2 * head.pairs > shape.head_dim:
        raise CorruptData("shape", "profile has vectors that are too long, or rotates more channels than there are")
    if head.rotations:
        every, of_layers = len(head.rotations), head.layer_rotations
        known = every <= _MAX_ROTATIONS and len(of_layers) == shape.layers and max(of_layers) < every
        if not known or max(head.rotations) != head.pairs:
            raise CorruptData("shape", "profile does not say how each layer rotates")
    elif head.layer_rotations:
        raise CorruptData("shape", "profile has layers that rotate in a way that it does not have")
    if len(head.components) != len(widths) or any(c > n for c, n in zip(head.components, widths, strict=True)):
        raise CorruptData("shape", "profile does not have a basis for each layer group")
    for name, _, *both in head.rungs:
        for coded in both:
            if len(coded) != len(widths) or any(c > most for c, most in zip(coded, head.components, strict=True)):
                raise CorruptData("shape", f"rung {name} of the profile codes components that it does not have")
    bases = {name: base for name, base, *_ in head.rungs}
    if len(bases) != len(head.rungs):
        raise CorruptData("shape", "profile has two rungs of one name")
    if any(base is not None and bases.get(base, base) is not None for base in bases.values()):
        raise CorruptData("shape", "profile has a rung that refines one which is missing or does not stand alone")


def _taker(rest: memoryview) -> Taker:
    at = 0

    def take(dtype: str, *shape: int) -> npt.NDArray[Any]:
        nonlocal at
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(rest, dtype, count, at).reshape(shape)
        at += array.nbytes
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CorruptData("range", "profile holds numbers that are not finite")
        return array

    return take


def _basis(take: Taker, components: int, width: int, features: int) -> Basis:
    basis = Basis(
        take("<f4", width),
        take("<f4", width),
        take("i1", components, width),
        take("<f4", components),
        take("i1", features, width),
        take("<f4", features),
    )
    if not (basis.weight > 0).all():
        raise CorruptData("range", "profile holds weights that are not positive")
    return basis


def _coder(take: Taker) -> Coder:
    coder = Coder(take("<u2", CLASSES), take("u1", CLASSES, RATIOS), take("<u2", LEVELS, ALPHABET))
    if not coder.sound():
        raise CorruptData("range", "profile holds tables that nothing can be coded with")
    return coder


def _rung(take: Taker, name: str, base: str | None, older: tuple[int, ...], recent: tuple[int, ...]) -> FittedRung:
    bits, dloss, kl, top1, tokens, step, recent_step, one, more = take("<f8", 9).tolist()
    fine = Steps(step, tuple(take("u1", count) for count in older))
    finer = Steps(recent_step, tuple(take("u1", count) for count in recent))
    if not 1 <= tokens < 2**31:
        raise CorruptData("range", f"rung {name} of the profile was measured on {tokens:g} tokens")
    possible = all(0 < size < 1e30 for size in (step, recent_step)) and 0 <= one < 1 and 0 <= more < 1
    if not possible or any((row >= CLASSES).any() for row in (*fine.classes, *finer.classes)):
        raise CorruptData("range", f"rung {name} of the profile has an impossible step, bias or class")
    return FittedRung(name, bits, Quality(dloss, kl, top1, int(tokens)), fine, finer, (one, more), base)


def _different(ropes: Ropes) -> tuple[list[Rope], tuple[int, ...]]:
    """The rotations that layers have, each once, in the order of the first layer, and which one each layer has."""
    known: dict[bytes, int] = {}
    of_layers = tuple(known.setdefault(_raw(rope.frequencies, "<f4"), len(known)) for rope in ropes)
    return [ropes[of_layers.index(which)] for which in range(len(known))], of_layers


def _counts(steps: Steps) -> tuple[int, ...]:
    return tuple(len(classes) for classes in steps.classes)


def _raw(array: npt.NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()
