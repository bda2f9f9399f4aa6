"""The fitted codec's products, compiled: vectors to coefficients in the cloud, coefficients to vectors on the edge.

They run in the thread that calls them, and in no other: a library's own threads would wait for more work in a busy
loop, on the very processors that a prompt is being computed on.
"""

import ctypes
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.codec.rope import Single
from preread.compiled import library, vector_bits

COLUMNS: Final = 64
"""Vectors are padded to a multiple of this, for the compiled product."""

_ROWS = 6
"""Tokens that the compiled product takes at a time."""


ROWS_APART: Final = 4
"""Strong rows end, and all rows, at a multiple of this."""


@dataclass(frozen=True, slots=True)
class Synthesis:
    """How features and coefficients of one layer group become vectors: x = mean + column · Σ a · scale · row.

    Attributes:
        panels: rows of prediction and basis, two and two interleaved, (padded N / COLUMNS, rows / 2, COLUMNS, 2) int16;
            rows is R + C, made a multiple of ROWS_APART by rows of zeros.
        weak_panels: the same and 128, four and four interleaved, (padded N / COLUMNS, rows / 4, COLUMNS, 4) uint8.
        scales: of each row, (rows,) float32.
        means, columns: (padded N,) float32.
    """

    panels: npt.NDArray[np.int16]
    weak_panels: npt.NDArray[np.uint8]
    scales: Single
    means: Single
    columns: Single


def panels(matrix: Single) -> Single:
    """A matrix (K, N) in the order in which the compiled product reads it, (N / COLUMNS, K, COLUMNS), N padded."""
    depth, width = matrix.shape
    padded = np.zeros((depth, padded_width(width)), np.float32)
    padded[:, :width] = matrix
    return np.ascontiguousarray(padded.reshape(depth, -1, COLUMNS).transpose(1, 0, 2))


def padded_width(width: int) -> int:
    """`width` rounded up to whole panels."""
    return -(-width // COLUMNS) * COLUMNS


def analysed(a: Single, panels: Single) -> Single:
    """a (tokens, K) by panels of a matrix (K, N): (tokens, padded N); `tokens` is padded too."""
    out = np.empty((len(a), panels.shape[0] * panels.shape[2]), np.float32)
    compiled().preread_analysis(
        a.ctypes.data, panels.ctypes.data, *a.shape, out.shape[1], out.ctypes.data, vector_bits()
    )
    return out


def synthesised(a: Single, to: Synthesis, strong: int) -> Single:
    """Vectors (tokens, padded N) from features and coefficients (tokens, K); `tokens` is padded too.

    Args:
        a: of each row that the product takes, K a multiple of ROWS_APART.
        to: the rows.
        strong: of so many rows, a multiple of ROWS_APART, a token may have anything; what it has of all others is kept
            as int8, which is enough where it is of a few sizes.
    """
    out = np.empty((len(a), len(to.means)), np.float32)
    failed = compiled().preread_synthesis(
        a.ctypes.data,
        to.scales.ctypes.data,
        *a.shape,
        strong,
        to.panels.ctypes.data,
        to.weak_panels.ctypes.data,
        2 * to.panels.shape[1],
        out.shape[1],
        to.means.ctypes.data,
        to.columns.ctypes.data,
        vector_bits(),
        out.ctypes.data,
    )
    if failed:
        raise MemoryError("the codec's product ran out of memory")
    return out


def padded_depth(rows: int) -> int:
    """`rows` rounded up to a multiple of ROWS_APART."""
    return -(-rows // ROWS_APART) * ROWS_APART


def padded_rows(tokens: int) -> int:
    """`tokens` rounded up to what the compiled product takes at a time."""
    return -(-tokens // _ROWS) * _ROWS


def compiled() -> ctypes.CDLL:
    """The compiled part of the fitted codec, its functions declared."""
    part = library("preread.codec._fitted")
    if part.preread_values.argtypes is None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        part.preread_analysis.argtypes = [pointer, pointer, count, count, count, pointer, ctypes.c_int]
        part.preread_analysis.restype = None
        part.preread_synthesis.argtypes = [
            *[pointer, pointer, count, count, count, pointer, pointer, count, count, pointer, pointer],
            *[ctypes.c_int, pointer],
        ]
        part.preread_rows.argtypes = [
            *[pointer, count, count, count, count, pointer, pointer, count, ctypes.c_int, count, pointer],
            ctypes.c_int,
        ]
        part.preread_rows.restype = None
        part.preread_values.argtypes = [pointer, count, count, count, ctypes.c_float, pointer, pointer, ctypes.c_int]
        part.preread_values.restype = None
    return part
