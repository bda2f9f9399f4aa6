"""Quantisations of a model, made by llama.cpp."""

import ctypes
from pathlib import Path
from typing import Final, Literal

import llama_cpp

Quantisation = Literal["f16", "bf16", "q8_0", "q4_0", "q2_k"]
_FILE_TYPES: Final[dict[Quantisation, int]] = {"f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q2_k": 10}  # LLAMA_FTYPE_…


def write_quantised(path: Path, source: Path, to: Quantisation) -> Path:
    """Write a quantisation of the model in `source`, which may be quantised itself.

    Raises:
        OSError: llama.cpp could not.
    """
    llama_cpp.llama_backend_init()
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize, wanted.nthread = _FILE_TYPES[to], True, 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(wanted)):
        raise OSError(f"llama.cpp cannot quantise {source.name} to {to}")
    return path
