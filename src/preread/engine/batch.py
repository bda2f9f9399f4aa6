"""A batch of tokens for `llama_decode`, in native memory that is reused."""

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt


class Batch:
    """Tokens, each with its sequence and position. Not thread-safe."""

    def __init__(self, size_tokens: int) -> None:
        self.size_tokens = size_tokens
        self.native = llama_cpp.llama_batch_init(size_tokens, 0, 1)

    def clear(self) -> None:
        """Take everything out."""
        self.native.n_tokens = 0

    def add(self, tokens: npt.NDArray[np.int32], position: int, sequence: int, logits: npt.NDArray[np.bool_]) -> None:
        """Put in `tokens` of one sequence, the first at `position`, behind what is there.

        `logits`: of which of them they are wanted, (tokens,).
        """
        native, first, count = self.native, self.native.n_tokens, len(tokens)
        native.n_tokens = first + count
        ids = np.ascontiguousarray(tokens, np.int32)
        positions = np.arange(position, position + count, dtype=np.int32)
        for array, values in ((native.token, ids), (native.pos, positions)):
            ctypes.memmove(ctypes.addressof(array.contents) + 4 * first, values.ctypes.data, values.nbytes)
        for i, wanted in enumerate(logits.tolist(), first):
            native.n_seq_id[i] = 1
            native.seq_id[i][0] = sequence
            native.logits[i] = wanted

    def close(self) -> None:
        """Free the memory."""
        llama_cpp.llama_batch_free(self.native)
