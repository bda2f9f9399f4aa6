"""A part of a context at one rung as an immutable object: a fixed little-endian header, then the codec's payload.

A part is rows of some layers over a span of tokens, or the states of some layers behind a position. Layout of the 80
header bytes of version 1: magic `PRSG`, version u16, reserved u16 (zero), context 32 bytes, rung 16 bytes ASCII padded
with NUL, token start and stop u32, layer start and stop u16, kv_heads u16, head_dim u16, payload length u64. It says
all of rows of every layer of a span, whose K is as wide as V. Of others the header has version 2 and 88 bytes: a u16
for their kind instead of the reserved one, and three u32 instead of the two u16.
It must not know codecs: the payload is opaque here. A segment's ObjectId is the digest of the whole frame.
"""

import re
import struct
from dataclasses import dataclass

from preread.errors import CorruptData, UsageError
from preread.values import ContextId, KVShape, Span, StateShape
from preread.wire.digest import is_id

MAGIC = b"PRSG"
VERSION = 2
HEADER = struct.Struct("<4sHH32s16sIIHHHHQ")
"""Of version 1."""
WIDE_HEADER = struct.Struct("<4sHH32s16sIIHHIIIQ")
"""Of version 2."""

_ROWS, _STATES = 0, 1

_RUNG = re.compile(r"[a-z0-9.-]{1,16}")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says that it holds; the payload's length follows from the payload.

    Attributes:
        context: the context that it is a part of.
        rung: name in the quality ladder, 1 to 16 characters of a-z, 0-9, `.` and `-`.
        tokens: positions in the context, half-open; of states all that were read, from 0 on.
        layers: layers of the model, half-open.
        shape: of the rows, or of each layer's state.
    """

    context: ContextId
    rung: str
    tokens: Span
    layers: Span
    shape: KVShape | StateShape

    @property
    def size_bytes(self) -> int:
        """Of the header."""
        return WIDE_HEADER.size if self._is_wide else HEADER.size

    @property
    def _is_wide(self) -> bool:
        shape = self.shape
        if isinstance(shape, StateShape):
            return True
        return shape.layers != len(self.layers) or shape.k_dim != shape.v_dim


def valid_rung(name: str) -> bool:
    """Whether `name` can name a rung: 1 to 16 characters of a-z, 0-9, `.` and `-`."""
    return _RUNG.fullmatch(name) is not None


def pack(header: SegmentHeader, payload: bytes) -> bytes:
    """Write a segment.

    Raises:
        UsageError: the header cannot be written: no id, no rung name, an empty span, or a number out of range.
    """
    if not is_id(header.context) or not valid_rung(header.rung):
        raise UsageError(f"segment of context {header.context!r} at rung {header.rung!r} cannot be written")
    if len(header.tokens) < 1 or len(header.layers) < 1 or not _holds(header.shape) or not payload:
        raise UsageError("a segment must hold at least one value")
    try:
        return _fields(header, len(payload)) + payload
    except struct.error as error:
        raise UsageError(f"segment header holds a number out of range: {error}") from error


def unpack(frame: bytes, expected: SegmentHeader) -> memoryview:
    """Payload of `frame`, without a copy, once its header says exactly what is `expected`.

    Raises:
        CorruptData: "magic", "version", "length", "context", "rung" or "shape" (kind, tokens, layers, heads, sizes).
    """
    form, size_bytes = _form(expected), expected.size_bytes
    if len(frame) < size_bytes:
        raise CorruptData("length", f"segment has {len(frame)} bytes, its header alone has {size_bytes}")
    magic, version, kind, context, rung, *shape, payload_bytes = form.unpack_from(frame)
    if magic != MAGIC:
        raise CorruptData("magic", "not a segment")
    _check_version(version, kind, expected)
    if payload_bytes != len(frame) - size_bytes:
        message = f"segment states {payload_bytes} payload bytes and has {len(frame) - size_bytes}"
        raise CorruptData("length", message)
    if context != bytes.fromhex(expected.context):
        raise CorruptData("context", f"segment is of context {context.hex()}, expected {expected.context}")
    if rung != _padded(expected.rung):
        raise CorruptData("rung", f"segment is of another rung than {expected.rung!r}")
    if (kind, shape) != (_kind(expected), _shape(expected)):
        raise CorruptData("shape", f"segment has tokens, layers, heads, sizes {shape}, expected {_shape(expected)}")
    return memoryview(frame)[size_bytes:]


def _check_version(version: int, kind: int, expected: SegmentHeader) -> None:
    """Refuse what this release does not know, and the version that is not the one for what is expected."""
    known, kinds = _version(expected), (_ROWS, _STATES) if version == VERSION else (_ROWS,)
    if version != known or kind not in kinds:
        found = f"{version}.{kind}" if kind else f"{version}"
        reads = f"this preread reads version {known} here"
        raise CorruptData("version", f"segment has version {found}, {reads}: upgrade it")


def _version(header: SegmentHeader) -> int:
    return 1 if _form(header) is HEADER else VERSION


def _form(header: SegmentHeader) -> struct.Struct:
    return HEADER if header.size_bytes == HEADER.size else WIDE_HEADER


def _kind(header: SegmentHeader) -> int:
    return _STATES if isinstance(header.shape, StateShape) else _ROWS


def _holds(shape: KVShape | StateShape) -> bool:
    if isinstance(shape, StateShape):
        return shape.r_values + shape.s_values >= 1
    return min(shape.layers, shape.kv_heads, shape.k_dim) >= 1


def _fields(header: SegmentHeader, payload_bytes: int) -> bytes:
    context, rung, version = bytes.fromhex(header.context), _padded(header.rung), _version(header)
    return _form(header).pack(MAGIC, version, _kind(header), context, rung, *_shape(header), payload_bytes)


def _padded(rung: str) -> bytes:
    return rung.encode("ascii").ljust(16, b"\0")


def _shape(header: SegmentHeader) -> list[int]:
    spans = [header.tokens.start, header.tokens.stop, header.layers.start, header.layers.stop]
    shape = header.shape
    if isinstance(shape, StateShape):
        return [*spans, 0, shape.r_values, shape.s_values]
    wide = [shape.v_dim] if _version(header) == VERSION else []
    return [*spans, shape.kv_heads, shape.k_dim, *wide]
