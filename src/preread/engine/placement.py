"""Which cells llama.cpp writes a batch to, as its graph says before it is computed.

Where a token's cell lies is llama.cpp's to choose, and nothing of its API tells. But K is written to the cache by nodes
of one operation, a layer each, whose second source says for each token of the batch which row of the layer's K tensor
it gets (llama-kv-cache.cpp, `cpy_k`). The gate shows those of the first layer of each of llama.cpp's caches.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from preread.engine.gate import Gate
from preread.engine.ggml import Tensor, operation_number

_WRITE = b"SET_ROWS"
_TYPES = {26: np.int32, 27: np.int64}  # GGML_TYPE_I32, GGML_TYPE_I64

Cells = npt.NDArray[np.int64]


class Placement:
    """Looks on while batches are computed. Belongs to the engine's thread.

    Args:
        gate: that graphs go through.
        keys: address of the K tensor of the first layer of each of llama.cpp's caches.
    """

    def __init__(self, ggml: ctypes.CDLL, gate: Gate, keys: Sequence[int]) -> None:
        self._ggml, self._gate, self._keys = ggml, gate, list(keys)
        self._found: list[list[Cells]] = []
        gate.learn(Tensor.op.offset, Tensor.view_src.offset, operation_number(ggml, _WRITE), keys)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """What is computed while this is open is looked at."""
        self._found = [[] for _ in self._keys]
        with self._gate.noting(self._note):
            yield

    def cells(self, part: int) -> Cells:
        """The cells in one of llama.cpp's caches of what was computed, in order; none where no layer of it was."""
        return np.concatenate([np.empty(0, np.int64), *(self._found[part] if part < len(self._found) else ())])

    def _note(self, node: int) -> None:
        tensor = Tensor.from_address(node)
        rows = tensor.src[1]
        kind = _TYPES.get(Tensor.from_address(rows).type) if rows else None
        if kind is not None:  # else nothing is found, and nothing copied
            found = np.empty(Tensor.from_address(rows).ne[0], kind)
            if self._ggml.ggml_nbytes(rows) == found.nbytes:
                self._ggml.ggml_backend_tensor_get(rows, found.ctypes.data, 0, found.nbytes)
                self._found[self._keys.index(tensor.view_src)].append(found.astype(np.int64))
