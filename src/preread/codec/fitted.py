"""The fitted rungs: K un-rotated, predicted from the token, brought into the profile's basis, quantised, coded.

Payload: if the block holds any of the context's sink tokens, u32 length and then these tokens losslessly; then the
coded symbols of all others, token after token, each token's components by descending variance.
"""

import ctypes
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.codec.base import Payload, block_shape, check_block
from preread.codec.profile import FittedRung, Prepared
from preread.codec.rope import Single, angles, unrotate
from preread.codec.shuffle import Shuffle
from preread.codec.zstd import Zstd
from preread.compiled import library
from preread.errors import CorruptData, UsageError
from preread.values import Geometry, Half, KVBlock, Span

VERSION = "fitted/1"

LAMBDA = 0.12
"""What a bit is worth in squared steps: the slope of a uniform quantiser's distortion at high rates, 2 ln 2 / 12."""

_ROWS = 6
"""Tokens that the compiled product takes at a time."""

Symbols = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fitted rung, bound to one context's tokens."""

    prepared: Prepared
    index: int

    @property
    def rung(self) -> str:
        return self._rung.name

    @property
    def version(self) -> str:
        return VERSION

    @property
    def _rung(self) -> FittedRung:
        return self.prepared.profile.rungs[self.index]

    def encode(self, block: KVBlock) -> bytes:
        check_block(block)
        profile = self.prepared.profile
        group, sinks = self._place(block.tokens, block.layers), self._sinks(block.tokens)
        if group is None or block.k.shape[1::2] != (profile.geometry.kv_heads, profile.geometry.head_dim):
            raise UsageError(f"{block.layers} with K of shape {block.k.shape} is not a layer group of the profile")
        start = b""
        if sinks:
            packed = Zstd(level=3).compress(Shuffle().pack(block.k[:, :, :sinks], block.v[:, :, :sinks]))
            start = struct.pack("<I", len(packed)) + packed
        if sinks == len(block.tokens):
            return start
        classes = self._rung.classes[group]
        y = coefficients(self.prepared, block, group, sinks)[:, : len(classes)]
        return start + write(y / np.float32(self._rung.step), classes, self._rung.bias)[0]

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry) -> KVBlock:
        shape = block_shape(tokens, layers, geometry)
        profile = self.prepared.profile
        group = self._place(tokens, layers)
        if group is None or geometry != profile.geometry:
            raise CorruptData("shape", f"{layers} of {geometry} is not a layer group of the profile")
        k, v = np.empty(shape, np.float16), np.empty(shape, np.float16)
        sinks, view = self._sinks(tokens), memoryview(payload)
        if sinks:
            view = self._read_sinks(view, k[:, :, :sinks], v[:, :, :sinks])
        if sinks < len(tokens):
            rest = Span(tokens.start + sinks, tokens.stop)
            x = self._synthesise(view, rest, group)
            cosines, sines = angles(profile.rope, rest)
            _rows(x, k, v, sinks, cosines, sines, profile.rope.near)
        elif len(view):
            raise CorruptData("length", f"payload has {len(view)} bytes too many")
        return KVBlock(tokens, layers, k, v)

    def _place(self, tokens: Span, layers: Span) -> int | None:
        if tokens.stop > len(self.prepared.features):
            raise UsageError(f"{tokens} lies outside the {len(self.prepared.features)} tokens that were prepared")
        return self.prepared.profile.group(layers)

    def _sinks(self, tokens: Span) -> int:
        return max(0, min(self.prepared.profile.sink_tokens, tokens.stop) - tokens.start)

    def _read_sinks(self, view: memoryview, k: Half, v: Half) -> memoryview:
        if len(view) < 4:
            raise CorruptData("length", "payload ends before its first tokens")
        (length,) = struct.unpack_from("<I", view)
        if length > len(view) - 4:
            raise CorruptData("length", f"payload states {length} bytes for its first tokens, it has {len(view) - 4}")
        shape = k.shape[0], k.shape[1], k.shape[2], k.shape[3]
        data = Zstd(level=3).decompress(view[4 : 4 + length], Shuffle().size_bytes(shape))
        k[:], v[:] = Shuffle().unpack(data, shape)
        return view[4 + length :]

    def _synthesise(self, coded: memoryview, tokens: Span, group: int) -> Single:
        """Vectors (tokens, padded N) from coded symbols."""
        profile, rung = self.prepared.profile, self._rung
        classes = rung.classes[group]
        symbols = read(coded, len(tokens), classes)
        features = self.prepared.features[tokens.start : tokens.stop]
        components = len(classes)
        a = np.zeros((padded_rows(len(tokens)), components + features.shape[1]), np.float32)
        a[: len(tokens), components:] = features
        bias = np.array(rung.bias, np.float32)
        _compiled().preread_values(
            symbols.ctypes.data, len(tokens), components, a.shape[1], rung.step, bias.ctypes.data, a.ctypes.data
        )
        x = product(a, profile.synthesis(group, components))
        mean = profile.bases[group].mean
        x[:, : len(mean)] += mean
        return x[: len(tokens)]


def coefficients(prepared: Prepared, block: KVBlock, group: int, sinks: int) -> Single:
    """Coefficients (tokens, C) of a block's tokens after the first `sinks`, in the weighted space."""
    profile = prepared.profile
    tokens = Span(block.tokens.start + sinks, block.tokens.stop)
    k = unrotate(block.k[:, :, sinks:], tokens, profile.rope)
    x = vectors(k, block.v[:, :, sinks:].astype(np.float32)) - profile.bases[group].mean
    features = prepared.features[tokens.start : tokens.stop]
    a = np.zeros((padded_rows(len(tokens)), x.shape[1] + features.shape[1]), np.float32)
    a[: len(tokens), : x.shape[1]], a[: len(tokens), x.shape[1] :] = x, features
    return product(a, profile.analysis(group))[: len(tokens), : len(profile.bases[group].rows)]


def product(a: Single, panels: Single) -> Single:
    """a (tokens, K) by panels of a matrix (K, N), (tokens, padded N); `tokens` as `padded_rows` has it."""
    tokens, depth = a.shape
    blocks = tokens // _ROWS
    out = np.empty((tokens, panels.shape[0] * panels.shape[2]), np.float32)
    picked, values = np.empty((blocks, depth), np.int32), np.empty((blocks, depth, _ROWS), np.float32)
    counts = np.empty(blocks, np.int64)
    _compiled().preread_product(
        a.ctypes.data,
        panels.ctypes.data,
        tokens,
        depth,
        out.shape[1],
        picked.ctypes.data,
        values.ctypes.data,
        counts.ctypes.data,
        out.ctypes.data,
    )
    return out


def padded_rows(tokens: int) -> int:
    """`tokens` rounded up to what the compiled product takes at a time."""
    return -(-tokens // _ROWS) * _ROWS


def vectors(k: Single, v: Single) -> Single:
    """K and V (layers, kv_heads, tokens, head_dim) as one vector for each token, (tokens, N)."""
    halves = (half.transpose(2, 0, 1, 3).reshape(half.shape[2], -1) for half in (k, v))
    return np.concatenate(list(halves), axis=1)


def write(y: Single, classes: npt.NDArray[np.uint8], bias: tuple[float, float]) -> tuple[bytes, Symbols]:
    """Quantise and code coefficients (tokens, components) in steps; the bytes, and the symbols that were chosen."""
    y, classes = np.ascontiguousarray(y, np.float32), np.ascontiguousarray(classes)
    symbols, near = np.zeros(y.shape, np.int16), np.array(bias, np.float32)
    out = np.empty(64 + 6 * y.size, np.uint8)
    size = _compiled().preread_symbols_write(
        y.ctypes.data,
        *y.shape,
        classes.ctypes.data,
        LAMBDA,
        near.ctypes.data,
        symbols.ctypes.data,
        out.ctypes.data,
        out.size,
    )
    if not 0 <= size <= out.size:
        raise MemoryError("the entropy coder ran out of memory")
    return out[:size].tobytes(), symbols


def read(coded: Payload, tokens: int, classes: npt.NDArray[np.uint8]) -> Symbols:
    """Symbols (tokens, components) from exactly the bytes that `write` made of them.

    Raises:
        CorruptData: "length": they are not.
    """
    data = np.frombuffer(coded, np.uint8)
    symbols = np.zeros((tokens, len(classes)), np.int16)
    classes = np.ascontiguousarray(classes)
    if _compiled().preread_symbols_read(
        data.ctypes.data, data.size, *symbols.shape, classes.ctypes.data, symbols.ctypes.data
    ):
        raise CorruptData("length", f"payload is not {symbols.size} coded symbols")
    return symbols


def _rows(x: Single, k: Half, v: Half, first: int, cosines: Single, sines: Single, near: bool) -> None:
    """Write vectors into rows `first` … of K (rotated) and V."""
    layers, heads, _, dim = k.shape
    pairs = cosines.shape[1]
    for half, offset in ((k, 0), (v, layers * heads * dim)):
        turned = half is k and pairs > 0
        for n in range(layers * heads):
            out = half[n // heads, n % heads, first:]
            _compiled().preread_rows(
                x.ctypes.data + 4 * (offset + n * dim),
                *x.shape,
                dim,
                cosines.ctypes.data if turned else None,
                sines.ctypes.data if turned else None,
                pairs,
                near,
                out.ctypes.data,
            )


def _compiled() -> ctypes.CDLL:
    part = library("preread.codec._fitted")
    if part.preread_values.argtypes is None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        part.preread_symbols_write.argtypes = [
            *[pointer, count, count, pointer, ctypes.c_float, pointer, pointer, pointer, count]
        ]
        part.preread_symbols_write.restype = count
        part.preread_symbols_read.argtypes = [pointer, count, count, count, pointer, pointer]
        part.preread_product.argtypes = [pointer, pointer, count, count, count, pointer, pointer, pointer, pointer]
        part.preread_product.restype = None
        part.preread_rows.argtypes = [pointer, count, count, count, pointer, pointer, count, ctypes.c_int, pointer]
        part.preread_rows.restype = None
        part.preread_symbols_prepare()
        part.preread_values.argtypes = [pointer, count, count, count, ctypes.c_float, pointer, pointer]
        part.preread_values.restype = None
    return part
