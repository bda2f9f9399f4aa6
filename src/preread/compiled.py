"""The compiled parts: small C files beside the modules that use them, called through ctypes, without the GIL."""

import ctypes
import importlib.util
from functools import cache

from preread.errors import EngineError


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
