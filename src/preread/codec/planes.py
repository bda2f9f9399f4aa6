"""Lossless packing of float32: a plane for each of the four bytes of all values, R's, then S's.

The sign is turned to the other end of the word, so that the first plane is the exponent and nothing else: it is what
varies little, and takes about 3 of its 8 bits. The other planes are noise.
"""

from dataclasses import dataclass

import numpy as np

from preread.values import Single, StateShape

_SHIFTS = 24, 16, 8, 0


@dataclass(frozen=True, slots=True)
class Planes:
    """Byte planes of float32; exact for every value, signed zeros included."""

    def size_bytes(self, layers: int, shape: StateShape) -> int:
        return 4 * layers * (shape.r_values + shape.s_rows * shape.s_row_values)

    def pack(self, r: Single, s: Single) -> bytes:
        return _planes(r) + _planes(s)

    def unpack(self, data: bytes, layers: int, shape: StateShape) -> tuple[Single, Single]:
        split = 4 * layers * shape.r_values
        r, s = _values(data[:split]), _values(data[split:])
        return r.reshape(layers, shape.r_values), s.reshape(layers, shape.s_rows, shape.s_row_values)


def _planes(values: Single) -> bytes:
    words = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    turned = words << np.uint32(1) | words >> np.uint32(31)
    return b"".join((turned >> np.uint32(shift)).astype(np.uint8).tobytes() for shift in _SHIFTS)


def _values(data: bytes) -> Single:
    planes = np.frombuffer(data, np.uint8).reshape(4, -1)
    turned = np.zeros(planes.shape[1], np.uint32)
    for plane, shift in zip(planes, _SHIFTS, strict=True):
        turned |= plane.astype(np.uint32) << np.uint32(shift)
    return (turned >> np.uint32(1) | turned << np.uint32(31)).view(np.float32)
