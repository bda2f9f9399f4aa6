"""The compiled parts: small C files beside the modules that use them, called through ctypes, without the GIL."""

import ctypes
import importlib.util
import os
from functools import cache

from preread.errors import EngineError, UsageError

VECTOR_BITS = (512, 256, 128)
"""Widths of vectors that compiled parts have code for: with AVX-512, with AVX2, and with what every processor has."""


@cache
def library(name: str) -> ctypes.CDLL:
    """The shared library of a compiled part, for example "preread.engine._gate".

    Raises:
        EngineError: it was not built.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EngineError(f"the compiled part {name} is missing: reinstall preread with a C compiler at hand")
    return ctypes.CDLL(spec.origin)


def vector_bits() -> int:
    """Bits of the widest vectors that compiled parts may use: `PREREAD_VECTOR_BITS` of the environment, or else any.

    What a processor does not have is not used, whatever this says.

    Raises:
        UsageError: the variable is none of `VECTOR_BITS`.
    """
    said = os.environ.get("PREREAD_VECTOR_BITS", str(max(VECTOR_BITS)))
    if said not in map(str, VECTOR_BITS):
        raise UsageError(f"PREREAD_VECTOR_BITS is {said!r}: it must be 512, 256 or 128, or not be set")
    return int(said)
