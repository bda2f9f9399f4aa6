"""What the fitted rungs need to know of a model, once: bases, predictions, steps. Immutable, named by its digest.

A group's rows of K (before rotation) and V of one token, all layers of the group side by side, are one vector x:
[K of the first layer, K of the next, …, V of the first layer, …], heads in order. It is written as

    x = mean + prediction · features(token) + y · basis

and y, the coefficients, are quantised. The basis is that of a principal component analysis of what the prediction
leaves, in a space where errors count by what they do to the output: there, a vector is x times the square root of its
weights, and basis and prediction are kept as they are there, as int8 with a scale for each row.
`fit/codec.py` makes profiles; `fitted.py` uses them.

Layout: "PRPF", u32 length of the head, the head (JSON), then the arrays, little-endian, in the order and of the shapes
that the head implies, and nothing else.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from preread.codec.rope import Rope, Single
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint, Geometry, Span

MAGIC: Final = b"PRPF"
CLASSES: Final = 24
"""Classes of components that the entropy coder tells apart."""

COLUMNS: Final = 32
"""Vectors are padded to a multiple of this, for the compiled product."""

_MAX_HEAD_BYTES = 1 << 16
_MAX_LAYERS, _MAX_WIDTH = 1024, 1 << 16

Bytes8 = npt.NDArray[np.int8]
Classes = npt.NDArray[np.uint8]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


@dataclass(frozen=True, slots=True)
class Quality:
    """What a rung does to the model's output, against exact KV, on text that the fit has not seen.

    Attributes:
        dloss: mean change of loss, nats/token.
        kl: mean KL divergence from the next-token distribution after exact KV, nats.
        top1: share of positions with the same likeliest token.
        tokens: how many positions were measured.
    """

    dloss: float
    kl: float
    top1: float
    tokens: int


@dataclass(frozen=True, slots=True)
class FittedRung:
    """One lossy rung.

    Attributes:
        name: in the ladder.
        bits: a value, on the fit's own text.
        quality: as measured by the fit.
        step: of the quantiser, in the weighted space.
        bias: how much nearer to zero the reader puts symbols of size 1, and larger ones, in steps.
        classes: for each group the classes of its coded components, (components,) uint8 below `CLASSES`.
    """

    name: str
    bits: float
    quality: Quality
    step: float
    bias: tuple[float, float]
    classes: tuple[Classes, ...]


@dataclass(frozen=True, slots=True)
class Basis:
    """Of one layer group, with N = 2 · layers · kv_heads · head_dim values in a vector.

    Attributes:
        mean: (N,) float32.
        weight: (N,) float32, what a squared error of 1 costs; positive.
        rows, row_scales: basis (C, N) int8, and (C,) float32 that its rows are to be multiplied by: then they are
            orthonormal, but for rounding.
        prediction, prediction_scales: features to weighted vectors, (R, N) int8, and (R,) float32.
    """

    mean: Single
    weight: Single
    rows: Bytes8
    row_scales: Single
    prediction: Bytes8
    prediction_scales: Single

    def vectors(self, components: int) -> Single:
        """What a coefficient of 1 of the first components adds to x, (components, N)."""
        weighted = self.rows[:components] * self.row_scales[:components, None]
        return (weighted / np.sqrt(self.weight)).astype(np.float32)

    def predicted(self) -> Single:
        """What a feature of 1 adds to x, (R, N)."""
        return (self.prediction * self.prediction_scales[:, None] / np.sqrt(self.weight)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that the fitted rungs of one model share.

    Attributes:
        fingerprint, geometry: of the model.
        group_layers: layers coded together; the last group may have fewer.
        sink_tokens: so many tokens at the context's start are kept lossless: attention sinks, unlike all others.
        calibration: what text it was fitted on; for people.
        rope: how the model rotates K.
        feature_mean, features: token features are (normalised embedding − mean (E,)) · features (E, R) float16.
        bases: one for each layer group.
        rungs: best first.
    """

    fingerprint: Fingerprint
    geometry: Geometry
    group_layers: int
    sink_tokens: int
    calibration: str
    rope: Rope
    feature_mean: Single
    features: npt.NDArray[np.float16]
    bases: tuple[Basis, ...]
    rungs: tuple[FittedRung, ...]
    _panels: dict[tuple[int, int], Single] = field(default_factory=dict, compare=False, repr=False)

    def group(self, layers: Span) -> int | None:
        """Index of the layer group that is exactly `layers`."""
        index = layers.start // self.group_layers
        return index if 0 <= index < len(self.bases) and self.groups[index] == layers else None

    @property
    def groups(self) -> tuple[Span, ...]:
        """The layer groups, in order."""
        return _groups(self.geometry.layers, self.group_layers)

    def synthesis(self, group: int, components: int) -> Single:
        """Coefficients and features to vectors, (components + R) by N, as panels for the compiled product; kept."""
        key = group, components
        if key not in self._panels:
            basis = self.bases[group]
            self._panels[key] = panels(np.vstack([basis.vectors(components), basis.predicted()]))
        return self._panels[key]

    def analysis(self, group: int) -> Single:
        """Vectors less their mean, and features, to coefficients, (N + R) by C, as panels; kept."""
        key = group, -1
        if key not in self._panels:
            basis = self.bases[group]
            rows = basis.vectors(len(basis.rows))
            weighted = (rows * basis.weight).astype(np.float64)
            # The rows are orthonormal but for their rounding to int8, which this takes back.
            back = np.linalg.solve(weighted @ rows.T, weighted).T
            self._panels[key] = panels(np.vstack([back, -basis.predicted() @ back]).astype(np.float32))
        return self._panels[key]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A profile made ready for one context: `features` of its tokens, (tokens, R) float32."""

    profile: Profile
    features: Single


def prepare(profile: Profile, embeddings: Single) -> Prepared:
    """Make a profile ready for a context.

    Args:
        profile: of the model.
        embeddings: the model's own, of the context's tokens, (tokens, E).

    Raises:
        UsageError: the embeddings are not of this model.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != len(profile.feature_mean):
        raise UsageError(f"embeddings of shape {embeddings.shape} do not fit a profile for {len(profile.feature_mean)}")
    return Prepared(profile, (normalised(embeddings) - profile.feature_mean) @ profile.features.astype(np.float32))


def normalised(embeddings: Single) -> Single:
    """Rows brought to a root mean square of 1, as the model's first layer sees them."""
    rows: Single = embeddings / np.sqrt(np.mean(embeddings * embeddings, axis=1, keepdims=True) + np.float32(1e-12))
    return rows


def panels(matrix: Single) -> Single:
    """A matrix (K, N) in the order in which the compiled product reads it, (N / COLUMNS, K, COLUMNS), N padded."""
    depth, width = matrix.shape
    padded = np.zeros((depth, padded_width(width)), np.float32)
    padded[:, :width] = matrix
    return np.ascontiguousarray(padded.reshape(depth, -1, COLUMNS).transpose(1, 0, 2))


def padded_width(width: int) -> int:
    """`width` rounded up to whole panels."""
    return -(-width // COLUMNS) * COLUMNS


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The head's fields; arrays follow it. Numbers with fractions are in the arrays."""

    format: Literal["preread-profile"]
    version: Literal[1]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    geometry: Geometry
    group_layers: Annotated[int, msgspec.Meta(ge=1, le=_MAX_LAYERS)]
    sink_tokens: Annotated[int, msgspec.Meta(ge=0, le=64)]
    calibration: Annotated[str, msgspec.Meta(max_length=4096)]
    near: bool
    pairs: Count
    embedding_width: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    feature_count: Count
    components: tuple[Count, ...]
    rungs: tuple[tuple[Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9.-]{1,16}\Z")], tuple[Count, ...]], ...]


def dumps(profile: Profile) -> bytes:
    """Write a profile."""
    head = _Head(
        "preread-profile",
        1,
        profile.fingerprint,
        profile.geometry,
        profile.group_layers,
        profile.sink_tokens,
        profile.calibration,
        profile.rope.near,
        len(profile.rope.frequencies),
        len(profile.feature_mean),
        profile.features.shape[1],
        tuple(len(basis.rows) for basis in profile.bases),
        tuple((rung.name, tuple(len(classes) for classes in rung.classes)) for rung in profile.rungs),
    )
    text = msgspec.json.encode(head, order="sorted")
    parts = [MAGIC, struct.pack("<I", len(text)), text, _raw(profile.rope.frequencies, "<f4")]
    parts += [_raw(profile.feature_mean, "<f4"), _raw(profile.features, "<f2")]
    for basis in profile.bases:
        parts += [_raw(basis.mean, "<f4"), _raw(basis.weight, "<f4")]
        parts += [_raw(basis.rows, "i1"), _raw(basis.row_scales, "<f4")]
        parts += [_raw(basis.prediction, "i1"), _raw(basis.prediction_scales, "<f4")]
    for rung in profile.rungs:
        stated = rung.quality
        numbers = [rung.bits, stated.dloss, stated.kl, stated.top1, stated.tokens, rung.step, *rung.bias]
        parts += [_raw(np.array(numbers), "<f8"), *(_raw(classes, "u1") for classes in rung.classes)]
    return b"".join(parts)


def loads(data: bytes) -> Profile:
    """Read a profile, and check that nothing in it can do worse than make bad answers.

    Raises:
        CorruptData: "magic", "json", "schema", "shape" (impossible sizes), "length" (not exactly the bytes that the
            head implies), "range" (a number that is not finite, or not positive where it must be).
    """
    head, rest = _head(data)
    if not (1 <= head.geometry.layers <= _MAX_LAYERS and head.geometry.kv_heads >= 1 and head.geometry.head_dim >= 1):
        raise CorruptData("shape", f"profile has an impossible geometry: {head.geometry}")
    groups = _groups(head.geometry.layers, head.group_layers)
    widths = [2 * len(layers) * head.geometry.kv_heads * head.geometry.head_dim for layers in groups]
    _check_shapes(head, widths)
    count = head.feature_count
    size = 4 * head.pairs + 4 * head.embedding_width + 2 * head.embedding_width * count
    size += sum(8 * n + c * n + 4 * c + count * n + 4 * count for c, n in zip(head.components, widths, strict=True))
    size += sum(8 * 8 + sum(coded) for _, coded in head.rungs)
    if size != len(rest):
        raise CorruptData("length", f"profile has {len(rest)} bytes of arrays, its head implies {size}")
    take = _taker(rest)
    rope = Rope(head.near, take("<f4", head.pairs))
    mean, features = take("<f4", head.embedding_width), take("<f2", head.embedding_width, count)
    bases = tuple(_basis(take, c, n, count) for c, n in zip(head.components, widths, strict=True))
    rungs = tuple(_rung(take, name, coded) for name, coded in head.rungs)
    return Profile(
        Fingerprint(head.fingerprint),
        head.geometry,
        head.group_layers,
        head.sink_tokens,
        head.calibration,
        rope,
        mean,
        features,
        bases,
        rungs,
    )


Taker = Callable[..., npt.NDArray[Any]]


def _head(data: bytes) -> tuple[_Head, memoryview]:
    if data[:4] != MAGIC or len(data) < 8:
        raise CorruptData("magic", "this is not a profile")
    (length,) = struct.unpack_from("<I", data, 4)
    if length > _MAX_HEAD_BYTES or 8 + length > len(data):
        raise CorruptData("length", f"profile states a head of {length} bytes")
    try:
        head = msgspec.json.decode(data[8 : 8 + length], type=_Head)
    except msgspec.ValidationError as error:
        raise CorruptData("schema", f"profile's head: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptData("json", f"profile's head: {error}") from error
    return head, memoryview(data)[8 + length :]


def _check_shapes(head: _Head, widths: list[int]) -> None:
    shape = head.geometry
    if max(widths) > _MAX_WIDTH or 2 * head.pairs > shape.head_dim:
        raise CorruptData("shape", "profile has vectors that are too long, or rotates more channels than there are")
    if len(head.components) != len(widths) or any(c > n for c, n in zip(head.components, widths, strict=True)):
        raise CorruptData("shape", "profile does not have a basis for each layer group")
    for name, coded in head.rungs:
        if len(coded) != len(widths) or any(c > most for c, most in zip(coded, head.components, strict=True)):
            raise CorruptData("shape", f"rung {name} of the profile codes components that it does not have")
    if len({name for name, _ in head.rungs}) != len(head.rungs):
        raise CorruptData("shape", "profile has two rungs of one name")


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


def _rung(take: Taker, name: str, coded: tuple[int, ...]) -> FittedRung:
    bits, dloss, kl, top1, tokens, step, one, more = take("<f8", 8).tolist()
    classes = tuple(take("u1", count) for count in coded)
    if not 1 <= tokens < 2**31:
        raise CorruptData("range", f"rung {name} of the profile was measured on {tokens:g} tokens")
    if not (0 < step < 1e30 and 0 <= one < 1 and 0 <= more < 1) or any((row >= CLASSES).any() for row in classes):
        raise CorruptData("range", f"rung {name} of the profile has an impossible step, bias or class")
    return FittedRung(name, bits, Quality(dloss, kl, top1, int(tokens)), step, (one, more), classes)


def _groups(layers: int, group_layers: int) -> tuple[Span, ...]:
    return tuple(Span(first, min(first + group_layers, layers)) for first in range(0, layers, group_layers))


def _raw(array: npt.NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()
