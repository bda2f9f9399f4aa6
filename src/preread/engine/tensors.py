"""The tensors of a model's files that are not quantised, as 32-bit floats. What a header says is `gguf.py`'s matter."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.engine.gguf import Header, Tensor
from preread.engine.peek import header_of
from preread.engine.registry import part_paths
from preread.errors import CorruptData

Single = npt.NDArray[np.float32]

_F32, _F16, _BF16 = 0, 1, 30  # GGML_TYPE_…
_VALUE_BYTES: Final = {_F32: 4, _F16: 2, _BF16: 2}


Parts = Sequence[tuple[Path, Header]]
"""A model's files, and their headers."""


def parts(path: Path) -> Parts:
    """The files of the model that begins with this one.

    Raises:
        CorruptData: one is no GGUF file.
    """
    return [(part, header_of(part)) for part in part_paths(path)]


def plain(files: Parts, wanted: Callable[[Tensor], bool]) -> Iterator[tuple[str, Single]]:
    """Names and values of those tensors of a model that are wanted and not quantised, their slowest axis first.

    Raises:
        CorruptData: a file ends before its tensors do.
    """
    for part, header in files:
        with part.open("rb") as file:
            for tensor in header.tensors:
                if tensor.kind in _VALUE_BYTES and wanted(tensor):
                    size_bytes = _VALUE_BYTES[tensor.kind] * math.prod(tensor.shape)
                    file.seek(header.data_start + tensor.offset_bytes)
                    data = file.read(size_bytes)
                    if len(data) != size_bytes:
                        raise CorruptData("length", f"{part.name} ends in the middle of {tensor.name}: it is not whole")
                    yield tensor.name, floats(data, tensor.kind).reshape(tensor.shape[::-1])


def floats(data: bytes, kind: int) -> Single:
    """The values of a tensor of one of ggml's plain types."""
    if kind == _BF16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if kind == _F32 else "<f2").astype(np.float32)
