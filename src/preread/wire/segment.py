"""KV of one chunk × layer group × rung as an immutable object: a fixed little-endian header, then the codec's payload.

Layout of the 80 header bytes: magic `PRSG`, version u16, reserved u16 (zero), context 32 bytes, rung 16 bytes ASCII
padded with NUL, token start and stop u32, layer start and stop u16, kv_heads u16, head_dim u16, payload length u64.
It must not know codecs: the payload is opaque here. A segment's ObjectId is the digest of the whole frame.
"""

import re
import struct
from dataclasses import dataclass

from preread.errors import CorruptData, UsageError
from preread.values import ContextId, Span
from preread.wire.digest import is_id

MAGIC = b"PRSG"
VERSION = 1
HEADER = struct.Struct("<4sHH32s16sIIHHHHQ")

_RUNG = re.compile(r"[a-z0-9.-]{1,16}")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says that it holds; the payload's length follows from the payload.

    Attributes:
        context: the context that it is a part of.
        rung: name in the quality ladder, 1 to 16 characters of a-z, 0-9, `.` and `-`.
        tokens: positions in the context, half-open.
        layers: layers of the model, half-open.
        kv_heads: KV heads of each layer.
        head_dim: values of each head.
    """

    context: ContextId
    rung: str
    tokens: Span
    layers: Span
    kv_heads: int
    head_dim: int


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
    if len(header.tokens) < 1 or len(header.layers) < 1 or header.kv_heads < 1 or header.head_dim < 1 or not payload:
        raise UsageError("a segment must hold at least one value")
    try:
        return _fields(header, len(payload)) + payload
    except struct.error as error:
        raise UsageError(f"segment header holds a number out of range: {error}") from error


def unpack(frame: bytes, expected: SegmentHeader) -> memoryview:
    """Payload of `frame`, without a copy, once its header says exactly what is `expected`.

    Raises:
        CorruptData: "magic", "version", "length", "context", "rung" or "shape" (tokens, layers, heads, dimension).
    """
    if len(frame) < HEADER.size:
        raise CorruptData("length", f"segment has {len(frame)} bytes, its header alone has {HEADER.size}")
    magic, version, reserved, context, rung, *shape, payload_bytes = HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise CorruptData("magic", "not a segment")
    if version != VERSION or reserved != 0:
        found = f"{version}.{reserved}" if reserved else f"{version}"
        raise CorruptData("version", f"segment has version {found}, this preread reads version {VERSION}: upgrade it")
    if payload_bytes != len(frame) - HEADER.size:
        message = f"segment states {payload_bytes} payload bytes and has {len(frame) - HEADER.size}"
        raise CorruptData("length", message)
    if context != bytes.fromhex(expected.context):
        raise CorruptData("context", f"segment is of context {context.hex()}, expected {expected.context}")
    if rung != _padded(expected.rung):
        raise CorruptData("rung", f"segment is of another rung than {expected.rung!r}")
    if shape != _shape(expected):
        raise CorruptData("shape", f"segment has tokens, layers, heads, dimension {shape}, expected {_shape(expected)}")
    return memoryview(frame)[HEADER.size :]


def _fields(header: SegmentHeader, payload_bytes: int) -> bytes:
    context, rung = bytes.fromhex(header.context), _padded(header.rung)
    return HEADER.pack(MAGIC, VERSION, 0, context, rung, *_shape(header), payload_bytes)


def _padded(rung: str) -> bytes:
    return rung.encode("ascii").ljust(16, b"\0")


def _shape(header: SegmentHeader) -> list[int]:
    spans = [header.tokens.start, header.tokens.stop, header.layers.start, header.layers.stop]
    return [*spans, header.kv_heads, header.head_dim]
