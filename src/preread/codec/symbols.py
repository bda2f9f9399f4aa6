"""Coefficients to bits and back, as Python sees it; the coder itself is `symbols.c`."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.codec.base import Payload
from preread.codec.rope import Single
from preread.compiled import library
from preread.errors import CorruptData

CLASSES: Final = 24
"""Classes of components that the coder tells apart."""

RATIOS: Final = 9 * 8
"""What the sizes of symbols nearby say: ratio of those before in the token, times ratio of those of earlier tokens."""

LEVELS: Final = 32
ALPHABET: Final = 32
LARGEST: Final = 15
"""Symbols −15 … 15 are in the tables, in this order; what follows stands for all others."""

TOTAL: Final = 1 << 12
"""Sum of a level's frequencies."""

LAMBDA: Final = 0.12
"""What a bit is worth in squared steps: the slope of a uniform quantiser's distortion at high rates, 2 ln 2 / 12."""

Symbols = npt.NDArray[np.int16]
Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Coder:
    """What the symbols of one profile are coded with. Everything else about them is the same everywhere.

    Attributes:
        means: of sizes, by class, in 1/256, (CLASSES,) uint16.
        levels: which table is used, by class and ratios, (CLASSES, RATIOS) uint8 below LEVELS.
        frequencies: of each level's symbols, (LEVELS, ALPHABET) uint16; every row's sum is TOTAL. 0: there is no such
            symbol in this level; only 0 and what stands for others are always there.
    """

    means: npt.NDArray[np.uint16]
    levels: npt.NDArray[np.uint8]
    frequencies: npt.NDArray[np.uint16]
    _slots: list[npt.NDArray[np.uint32]] = field(default_factory=list, compare=False, repr=False)

    def sound(self) -> bool:
        """Whether it can be used without harm."""
        every = self.frequencies.astype(np.int64)
        tables = (every.sum(axis=1) == TOTAL).all() and every[:, LARGEST].all() and every[:, -1].all()
        return bool(tables and (self.levels < LEVELS).all())

    def slots(self) -> npt.NDArray[np.uint32]:
        """The frequencies as `symbols.c` wants them for reading; kept."""
        if not self._slots:
            slots = np.zeros(LEVELS * TOTAL, np.uint32)
            _compiled().preread_symbols_slots(self.frequencies.ctypes.data, slots.ctypes.data)
            self._slots.append(slots)
        return self._slots[0]


def write(y: Single, classes: Classes, coder: Coder, bias: Sequence[float]) -> tuple[bytes, Symbols]:
    """Quantise and code coefficients (tokens, components) in steps; the bytes, and the symbols that were chosen.

    Args:
        y: the coefficients.
        classes: of each component.
        coder: tables.
        bias: how much nearer to zero the reader puts sizes of 1, and larger ones, in steps.
    """
    y, classes = np.ascontiguousarray(y, np.float32), np.ascontiguousarray(classes)
    symbols, near = np.zeros(y.shape, np.int16), np.array(bias, np.float32)
    out = np.empty(64 + 8 * y.size, np.uint8)
    size = _compiled().preread_symbols_write(
        y.ctypes.data,
        *y.shape,
        classes.ctypes.data,
        coder.means.ctypes.data,
        coder.levels.ctypes.data,
        coder.frequencies.ctypes.data,
        LAMBDA,
        near.ctypes.data,
        symbols.ctypes.data,
        out.ctypes.data,
        out.size,
    )
    if size < 0:
        raise MemoryError("the entropy coder ran out of memory")
    return out[:size].tobytes(), symbols


def read(coded: Payload, tokens: int, classes: Classes, coder: Coder) -> Symbols:
    """Symbols (tokens, components) from exactly the bytes that `write` made of them.

    Raises:
        CorruptData: "length": they are not.
    """
    data = np.frombuffer(coded, np.uint8)
    symbols = np.empty((tokens, len(classes)), np.int16)
    classes = np.ascontiguousarray(classes)
    if _compiled().preread_symbols_read(
        data.ctypes.data,
        data.size,
        *symbols.shape,
        classes.ctypes.data,
        coder.means.ctypes.data,
        coder.levels.ctypes.data,
        coder.slots().ctypes.data,
        symbols.ctypes.data,
    ):
        raise CorruptData("length", f"payload is not {symbols.size} coded symbols")
    return symbols


def ratios(symbols: Symbols, classes: Classes, means: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """What the coder sees around each symbol (tokens, components), below RATIOS; tables are fitted by it."""
    symbols, classes = np.ascontiguousarray(symbols), np.ascontiguousarray(classes)
    out = np.empty(symbols.shape, np.uint8)
    if _compiled().preread_symbols_contexts(
        symbols.ctypes.data, *symbols.shape, classes.ctypes.data, means.ctypes.data, out.ctypes.data
    ):
        raise MemoryError("the entropy coder ran out of memory")
    return out


def coarse(symbols: Symbols, classes: Classes) -> Symbols:
    """Symbols without the bits that are written plainly, for the classes whose symbols are large."""
    shifts = np.where(classes > 12, (classes.astype(np.int16) - 11) // 2, 0)
    return (np.sign(symbols) * (np.abs(symbols) >> shifts)).astype(np.int16)


def _compiled() -> ctypes.CDLL:
    part = library("preread.codec._fitted")
    if part.preread_symbols_read.argtypes is None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        part.preread_symbols_write.argtypes = [
            *[pointer, count, count, pointer, pointer, pointer, pointer],
            *[ctypes.c_float, pointer, pointer, pointer, count],
        ]
        part.preread_symbols_write.restype = count
        part.preread_symbols_contexts.argtypes = [pointer, count, count, pointer, pointer, pointer]
        part.preread_symbols_slots.argtypes = [pointer, pointer]
        part.preread_symbols_slots.restype = None
        part.preread_symbols_read.argtypes = [
            *[pointer, count, count, count, pointer, pointer, pointer, pointer, pointer]
        ]
    return part
