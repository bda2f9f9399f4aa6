"""A batch of tokens for `llama_decode`, in native memory that is reused."""

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt


class Batch:
    """Tokens of one sequence at consecutive positions. Not thread-safe."""

    def __init__(self, size_tokens: int) -> None:
        self.native = llama_cpp.llama_batch_init(size_tokens, 0, 1)

    def fill(self, tokens: npt.NDArray[np.int32], position: int, sequence: int, logits: int) -> None:
        """Put in `tokens`, the first at `position`; `logits`: of how many of the last ones."""
        native, count = self.native, len(tokens)
        native.n_tokens = count
        ids = np.ascontiguousarray(tokens, np.int32)
        positions = np.arange(position, position + count, dtype=np.int32)
        ctypes.memmove(native.token, ids.ctypes.data, ids.nbytes)
        ctypes.memmove(native.pos, positions.ctypes.data, positions.nbytes)
        for i in range(count):
            native.n_seq_id[i] = 1
            native.seq_id[i][0] = sequence
            native.logits[i] = i >= count - logits

    def close(self) -> None:
        """Free the memory."""
        llama_cpp.llama_batch_free(self.native)
