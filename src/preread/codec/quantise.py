"""Group quantisation as in KIVI (Liu et al., 2024): asymmetric, K grouped along tokens for each channel, V along the
head dimension for each token, 64 values to a group (the last group of a row may be shorter).

A group is `low + step · code` with `low` its least value, exact in float16, and `step` rounded up to float16, so that
every code fits and the error is at most step/2 before the result is rounded to float16. Constant groups have step 0.

Packed layout: lows and steps of K, lows and steps of V, codes of K, codes of V. K lies channel-major, (layers,
kv_heads, head_dim, tokens). With 4 bits, a plane's first half of codes lies in the low nibbles and the second half in
the high nibbles.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.codec.base import Shape
from preread.compiled import library, vector_bits
from preread.errors import CorruptData
from preread.values import Half

GROUP = 64

Codes = npt.NDArray[np.uint8]
Single = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quantiser:
    """Packs arrays at `bits` a value, 4 or 8, and half a bit for each group's low and step."""

    bits: int

    def size_bytes(self, shape: Shape) -> int:
        k_rows, k_row, v_rows, v_row = _rows(shape)
        groups = k_rows * _groups(k_row) + v_rows * _groups(v_row)
        return 4 * groups + self._plane_bytes(k_rows * k_row) + self._plane_bytes(v_rows * v_row)

    def pack(self, k: Half, v: Half) -> bytes:
        k_scales, k_codes = self._quantise(k.transpose(0, 1, 3, 2))
        v_scales, v_codes = self._quantise(v)
        return k_scales + v_scales + self._pack_codes(k_codes) + self._pack_codes(v_codes)

    def unpack(self, data: bytes, shape: Shape) -> tuple[Half, Half]:
        layers, heads, tokens, k_dim, v_dim = shape
        k_rows, k_row, v_rows, v_row = _rows(shape)
        k_groups, v_groups = k_rows * _groups(k_row), v_rows * _groups(v_row)
        scales = np.frombuffer(data, dtype="<f2", count=2 * (k_groups + v_groups)).astype(np.float32)
        _check_scales(scales, k_groups, v_groups)
        codes = np.frombuffer(data, dtype=np.uint8, offset=4 * (k_groups + v_groups))
        k_bytes = self._plane_bytes(k_rows * k_row)
        k = self._restore(scales[: 2 * k_groups], codes[:k_bytes], k_rows, k_row)
        v = self._restore(scales[2 * k_groups :], codes[k_bytes:], v_rows, v_row)
        channel_major = k.reshape(layers, heads, k_dim, tokens)
        v = v.reshape(layers, heads, tokens, v_dim)
        return np.ascontiguousarray(channel_major.transpose(0, 1, 3, 2)), v

    def _quantise(self, half: Half) -> tuple[bytes, Codes]:
        """Scales as bytes (lows, then steps), and codes, of an array whose last axis is to be grouped."""
        row = half.shape[-1]
        if not row:
            return b"", np.empty(0, np.uint8)
        values = np.ascontiguousarray(half, dtype=np.float32).reshape(-1, row)
        starts = np.arange(0, row, GROUP)
        low = np.minimum.reduceat(values, starts, axis=1)
        high = np.maximum.reduceat(values, starts, axis=1)
        step = _ceil_half(np.divide(high - low, 2**self.bits - 1, dtype=np.float32))
        grouped, lows = _per_group(values, low)
        codes = (grouped - lows) / _per_group(values, np.where(step > 0, step, np.float32(1)))[1]
        scales = np.stack([low, step]).astype("<f2").tobytes()
        return scales, np.rint(codes).astype(np.uint8).reshape(-1)

    def _plane_bytes(self, count: int) -> int:
        return count if self.bits == 8 else (count + 1) // 2

    def _pack_codes(self, codes: Codes) -> bytes:
        if self.bits == 8:
            return codes.tobytes()
        half = (codes.size + 1) // 2
        packed = codes[:half].copy()
        packed[: codes.size - half] |= codes[half:] << 4
        return packed.tobytes()

    def _restore(self, scales: Single, codes: Codes, rows: int, row: int) -> Half:
        """Values of `rows` rows of `row` codes each; `scales` holds their lows, then their steps."""
        lows, steps = np.ascontiguousarray(scales.reshape(2, -1))
        out = np.empty(rows * row, np.float16)
        _compiled().preread_restore(
            codes.ctypes.data,
            self.bits == 4,
            lows.ctypes.data,
            steps.ctypes.data,
            rows,
            row,
            GROUP,
            out.ctypes.data,
            vector_bits(),
        )
        return out


def _compiled() -> ctypes.CDLL:
    part = library("preread.codec._restore")
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    part.preread_restore.argtypes = [
        pointer,
        ctypes.c_int,
        pointer,
        pointer,
        count,
        count,
        count,
        pointer,
        ctypes.c_int,
    ]
    part.preread_restore.restype = None
    return part


def _rows(shape: Shape) -> tuple[int, int, int, int]:
    """(rows of K, values in each, rows of V, values in each)."""
    layers, heads, tokens, k_dim, v_dim = shape
    return layers * heads * k_dim, tokens, layers * heads * tokens, v_dim


def _groups(row: int) -> int:
    return -(-row // GROUP)


def _per_group(values: Single, scales: Single) -> tuple[Single, Single]:
    """`values` of shape (rows, row) and `scales` of shape (rows, groups) as two arrays that broadcast."""
    row = values.shape[1]
    if row % min(row, GROUP) == 0:
        return values.reshape(scales.size, -1), scales.reshape(-1, 1)
    return values, np.repeat(scales, GROUP, axis=1)[:, :row]


def _ceil_half(step: Single) -> Single:
    """Least float16 not below `step`, as float32."""
    half = step.astype(np.float16)
    return np.where(half.astype(np.float32) < step, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)


def _check_scales(scales: Single, k_groups: int, v_groups: int) -> None:
    steps = scales[k_groups : 2 * k_groups], scales[2 * k_groups + v_groups :]
    if not np.isfinite(scales).all() or any(step.min(initial=0) < 0 for step in steps):
        raise CorruptData("range", "payload holds a low or a step that is not finite, or a negative step")
