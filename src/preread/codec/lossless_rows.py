"""Rows of a block that a fitted rung keeps losslessly: sinks at a context's start, and late ones."""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.codec.base import Payload
from preread.codec.shuffle import Shuffle
from preread.codec.zstd import Zstd
from preread.errors import CorruptData
from preread.values import Half

_ZSTD = Zstd(level=3)
_SMALL = 0.5
"""A late sink's V is smaller than this share of what is usual: who has nothing to look at looks there."""

_MOST_TOKENS = 1 << 16
"""Of a block: a place is written as u16."""

Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LateSinks:
    """Some tokens of a block, and their K and V (layers, kv_heads, tokens, head_dim)."""

    at: Places
    k: Half
    v: Half

    def write(self, k: Half, v: Half) -> None:
        """Put them into a block's rows."""
        k[:, :, self.at], v[:, :, self.at] = self.k, self.v


def find_late(v: Half, first: int, most: int) -> Places:
    """At most so many late sinks of a block, whose V is (layers, kv_heads, tokens, head_dim), from token `first` on.

    Windows lose sight of a context's start, and models with windows have learnt to make sinks of tokens in its middle:
    of hundreds of them one, whose V is a third of the usual in all layers. An error there is multiplied by most of what
    attention gives away.
    """
    sizes = np.sqrt(np.square(v[:, :, first:_MOST_TOKENS].astype(np.float32)).sum(axis=(1, 3)))
    shares = (sizes / np.maximum(np.median(sizes, axis=1, keepdims=True), 1e-12)).mean(axis=0)
    small = np.argsort(shares, kind="stable")[:most]
    places: Places = np.sort(small[shares[small] < _SMALL]) + first
    return places


def pack_late(k: Half, v: Half, at: Places) -> bytes:
    """u8 count, u16 for each which token it is, and if there are any `packed` rows."""
    places = struct.pack("<B", len(at)) + at.astype("<u2").tobytes()
    return places + (packed(k[:, :, at], v[:, :, at]) if len(at) else b"")


def unpack_late(view: memoryview, k: Half, v: Half, first: int, most: int) -> tuple[LateSinks, memoryview]:
    """What `pack_late` wrote, of at most so many tokens from `first` on, and what follows it.

    Args:
        k, v: of the block, for their shapes.

    Raises:
        CorruptData: "length", or "range": there are too many, or tokens that are out of order or not the block's.
    """
    count = view[0] if len(view) else 0
    if len(view) < 1 + 2 * count:
        raise CorruptData("length", "payload ends before its late sinks")
    at = np.frombuffer(view[1 : 1 + 2 * count], "<u2").astype(np.intp)
    if count > most or (np.diff(at) <= 0).any() or (count and not first <= at[0] <= at[-1] < k.shape[2]):
        raise CorruptData("range", "payload has late sinks where none can be")
    rows = [np.empty((*half.shape[:2], count, half.shape[3]), np.float16) for half in (k, v)]
    view = view[1 + 2 * count :]
    return LateSinks(at, rows[0], rows[1]), unpacked(view, rows[0], rows[1]) if count else view


def packed(k: Half, v: Half) -> bytes:
    """u32 length, and rows as lossless segments have them."""
    data = _ZSTD.compress(Shuffle().pack(k, v))
    return struct.pack("<I", len(data)) + data


def unpacked(payload: Payload, k: Half, v: Half) -> memoryview:
    """Fill rows with what `packed` wrote; what follows it.

    Raises:
        CorruptData: "length", or as what reads lossless segments does.
    """
    view = memoryview(payload)
    if len(view) < 4:
        raise CorruptData("length", "payload ends before its sinks")
    (length,) = struct.unpack_from("<I", view)
    if length > len(view) - 4:
        raise CorruptData("length", f"payload states {length} bytes for its sinks, it has {len(view) - 4}")
    shape = k.shape[0], k.shape[1], k.shape[2], k.shape[3], v.shape[3]
    k[:], v[:] = Shuffle().unpack(_ZSTD.decompress(view[4 : 4 + length], Shuffle().size_bytes(shape)), shape)
    return view[4 + length :]
