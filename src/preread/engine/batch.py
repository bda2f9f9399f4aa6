"""A batch of tokens for `llama_decode`, in native memory that is reused."""

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt

TILED_ROWS = 64
"""From so many rows on, llama.cpp's flash attention on CPUs goes by tiles, with one pass over the context for all."""

_TILED_THREADS = 2
_ROW_POSITION, _TILED_POSITION = 1.2e-3, 7e-4
"""By so much of itself a row becomes dearer with every token before it: alone, and as one of `TILED_ROWS`."""
_MARGIN = 1.05


def filler_rows(rows: int, context_tokens: int, threads: int) -> int:
    """How many rows of filler make a batch of `rows`, behind so many tokens, faster by taking it to `TILED_ROWS`.

    Processor time of a prompt over that of the same prompt filled up, with two threads, medians of 3 or 5 interleaved:

        context             40    48    56    63 rows
        SmolLM2, 300      0.68  0.79  0.99  1.08
        SmolLM2, 1,000    0.85  1.04  1.15  1.13
        SmolLM2, 4,000    0.94  1.08        1.22
        Qwen-0.5B, 1,000  0.98  1.04        1.30
        Qwen-0.5B, 4,000  1.13  1.43        1.63

    One thread gains more (63 rows behind 4,000 tokens: 1.8 and 2.2), but llama.cpp cuts the rows of all heads into four
    pieces a thread, and pays for a whole tile wherever a cut divides one. With four threads 64 rows of SmolLM2 take as
    long as 63, with eight 1.5 times as long: so with more than two there is no filler.
    """
    if threads > _TILED_THREADS or rows >= TILED_ROWS:
        return 0
    alone = rows * (1 + _ROW_POSITION * context_tokens)
    filled = TILED_ROWS * (1 + _TILED_POSITION * context_tokens)
    return TILED_ROWS - rows if alone > _MARGIN * filled else 0


class Batch:
    """Tokens of one sequence at consecutive positions, and filler. Not thread-safe."""

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

    def pad(self, count: int, sequence: int) -> None:
        """Add `count` tokens of another sequence, which must be empty: they see only each other, and nobody sees them.

        They come last, so that the others lie in the cells where they would lie without them.
        """
        native, start = self.native, self.native.n_tokens
        native.n_tokens = start + count
        for i in range(count):
            native.token[start + i] = 0  # any token will do
            native.pos[start + i] = i
            native.n_seq_id[start + i] = 1
            native.seq_id[start + i][0] = sequence
            native.logits[start + i] = False

    def close(self) -> None:
        """Free the memory."""
        llama_cpp.llama_batch_free(self.native)
