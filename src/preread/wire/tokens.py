"""Token ids of a context as an immutable object: a header of ten bytes and one zstd frame of little-endian u32.

Layout: magic `PRTK`, version u16, count u32, then the zstd frame, whose header must state 4 × count bytes.
"""

import struct

import numpy as np
import numpy.typing as npt
import zstandard

from preread.errors import CorruptData, UsageError
from preread.wire.fields import MAX_TOKENS

MAGIC = b"PRTK"
VERSION = 1
HEADER = struct.Struct("<4sHI")
_LEVEL = 9


def pack(tokens: npt.NDArray[np.int32]) -> bytes:
    """Write token ids, an int32 array of shape (count,) with 1 ≤ count ≤ 2**24 and no negative id.

    Raises:
        UsageError: the array is not that.
    """
    if tokens.ndim != 1 or tokens.dtype != np.int32 or not 1 <= tokens.size <= MAX_TOKENS or tokens.min() < 0:
        raise UsageError("tokens must be a non-empty one-dimensional int32 array of ids that are not negative")
    raw = tokens.astype("<u4").tobytes()
    frame = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(raw)
    return HEADER.pack(MAGIC, VERSION, tokens.size) + frame


def unpack(data: bytes, max_tokens: int) -> npt.NDArray[np.int32]:
    """Read token ids, at most `max_tokens`; allocates no more than 4 × `max_tokens` bytes and a constant factor.

    Raises:
        CorruptData: "magic", "version", "length" (too short, too many, or another number than stated), "zstd",
            "range" (an id beyond int32).
    """
    if len(data) < HEADER.size:
        raise CorruptData("length", f"token object has {len(data)} bytes, its header alone has {HEADER.size}")
    magic, version, count = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise CorruptData("magic", "not a token object")
    if version != VERSION:
        message = f"token object has version {version}, this preread reads version {VERSION}: upgrade it"
        raise CorruptData("version", message)
    if not 1 <= count <= max_tokens:
        raise CorruptData("length", f"token object states {count} tokens, 1 to {max_tokens} are allowed")
    ids = np.frombuffer(_decompress(data[HEADER.size :], 4 * count), dtype="<u4")
    if ids.max() > np.iinfo(np.int32).max:
        raise CorruptData("range", "token object holds an id beyond int32")
    return ids.astype(np.int32)


def bound_bytes(count: int) -> int:
    """Largest size of a token object that anybody has reason to write for `count` tokens."""
    return HEADER.size + 4 * count + count // 2 + 128


def _decompress(frame: bytes, size_bytes: int) -> bytes:
    # zstandard allocates what the frame states, so what it states is checked first; then it holds it to that.
    try:
        if zstandard.get_frame_parameters(frame).content_size != size_bytes:
            raise CorruptData("length", f"token object's zstd frame does not state {size_bytes} bytes")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptData("zstd", f"token object's zstd frame is broken: {error}") from error
