"""Lossy packing of states: each group of rows is rounded to a step of its own, a share of the group's usual size.

What a delta net answers is a product of its state and a query, which is scaled afterwards to a fixed size head by head:
so an error counts by its share of the head. Within a head one step for all values is best: large ones take many bits
and small ones hardly any, as zstd codes the symbols by how frequent they are.

Layout: steps of R's layers, steps of S's groups, float32; symbols of R, then of S, int8. A group is 64 rows of S, a
head of most families or half of one; R is one group for each layer.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.errors import CorruptData
from preread.values import Single, StateShape

GROUP_ROWS: Final = 64
LARGEST: Final = 127
"""Symbols are -127 ... 127."""

_LARGEST_STEP: Final = float(np.finfo(np.float32).max) / (LARGEST + 1)
_SMALLEST_STEP: Final = float(np.finfo(np.float32).tiny)

Symbols = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Steps:
    """Packs states as symbols of 8 bits, most of which are the same few.

    Attributes:
        share: the step, as a share of its group's root mean square; longer where the group's largest needs it.
    """

    share: float

    def size_bytes(self, layers: int, shape: StateShape) -> int:
        steps = bool(shape.r_values) + _groups(shape)
        return layers * (4 * steps + shape.r_values + shape.s_rows * shape.s_row_values)

    def pack(self, r: Single, s: Single) -> bytes:
        r_steps, r_symbols = _rounded(r[:, None, :], self.share)
        s_steps, s_symbols = _rounded(s, self.share)
        return b"".join(part.tobytes() for part in (r_steps, s_steps, r_symbols, s_symbols))

    def unpack(self, data: bytes, layers: int, shape: StateShape) -> tuple[Single, Single]:
        r_groups, s_groups, split = layers * bool(shape.r_values), layers * _groups(shape), layers * shape.r_values
        steps = np.frombuffer(data, "<f4", r_groups + s_groups).astype(np.float32)
        symbols = np.frombuffer(data, np.int8, offset=4 * len(steps))
        if not (steps <= _LARGEST_STEP).all() or (steps < 0).any() or (symbols < -LARGEST).any():
            raise CorruptData("range", "payload holds a step or a symbol that no state is written with")
        r = symbols[:split].astype(np.float32).reshape(layers, shape.r_values)
        s = symbols[split:].astype(np.float32).reshape(layers, shape.s_rows, shape.s_row_values)
        if r.size:
            r *= steps[:r_groups, None]
        if s.size:
            s *= _of_rows(steps[r_groups:].reshape(layers, -1), shape.s_rows)
        return r, s


def _groups(shape: StateShape) -> int:
    """Groups of S in a layer."""
    return -(-shape.s_rows // GROUP_ROWS) if shape.s_row_values else 0


def _rounded(values: Single, share: float) -> tuple[Single, Symbols]:
    """Steps (layers, groups) and symbols (layers, rows, values) of rows (layers, rows, values)."""
    layers, rows, _ = values.shape
    if not values.size:
        return np.zeros((layers, 0), np.float32), np.zeros(values.shape, np.int8)
    wide, starts = values.astype(np.float64), np.arange(0, rows, GROUP_ROWS)
    square = np.add.reduceat((wide**2).mean(axis=2), starts, axis=1) / np.diff([*starts, rows])
    largest = np.maximum.reduceat(np.abs(wide).max(axis=2), starts, axis=1)
    needed = np.maximum(share * np.sqrt(square), largest / LARGEST)
    steps = np.clip(needed, _SMALLEST_STEP, _LARGEST_STEP).astype("<f4")
    symbols = np.rint(wide / _of_rows(steps, rows))
    return steps, np.clip(symbols, -LARGEST, LARGEST).astype(np.int8)


def _of_rows(steps: Single, rows: int) -> Single:
    """Each row's step, (layers, rows, 1)."""
    return np.repeat(steps, GROUP_ROWS, axis=1)[:, :rows, None]
