"""llama.cpp's context and what goes with it: batches go in, logits come out."""

from collections.abc import Callable

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine.batch import Batch
from preread.engine.gate import Gate
from preread.errors import Cancelled, EngineError

Tokens = npt.NDArray[np.int32]


class Native:
    """A context of llama.cpp, its gate, and memory for its batches. Belongs to the engine's thread.

    Args:
        context: llama.cpp's.
        gate: that its graphs go through.
        batch_tokens: of the largest batch.
        vocab_size: of the model.
    """

    def __init__(self, context: object, gate: Gate, batch_tokens: int, vocab_size: int) -> None:
        self.context, self.gate, self.batch = context, gate, Batch(batch_tokens)
        self.memory = llama_cpp.llama_get_memory(context)
        self._vocab_size = vocab_size

    @property
    def cells(self) -> int:
        """How many tokens its KV cache has room for."""
        return int(llama_cpp.llama_n_ctx(self.context))

    @property
    def sequences(self) -> int:
        """How many sequences it has."""
        return int(llama_cpp.llama_n_seq_max(self.context))

    def clear(self, *, wipe: bool = False) -> None:
        """Forget everything in the cache; with `wipe`, zero its bytes too, as after any failure."""
        self.gate.disarm()
        llama_cpp.llama_memory_clear(self.memory, wipe)

    def decode(self, tokens: Tokens, position: int, sequence: int, *, gated: bool = False, logits: int = 0) -> None:
        """Compute tokens of one sequence; `logits`: of how many of the last they are wanted.

        Raises:
            Cancelled, EngineError: as `run` does.
        """
        self.batch.clear()
        self.batch.add(tokens, position, sequence, np.arange(len(tokens)) >= len(tokens) - logits)
        self.run(gated=gated)

    def run(self, *, gated: bool) -> None:
        """Compute what is in the batch.

        Raises:
            Cancelled: somebody called the gate's `cancel`, and `gated`: that is looked at.
            EngineError: llama.cpp failed.
        """
        status = llama_cpp.llama_decode(self.context, self.batch.native)
        if gated and self.gate.cancelled:
            raise Cancelled("cancelled during prefill")
        if status:
            raise EngineError(f"llama_decode failed with status {status} at position {self.batch.native.pos[0]}")

    def observe(self, see: Callable[[int], None], tokens: int = 1) -> None:
        """Decode some tokens, and call `see` with the address of every node of the graph. The cache is empty before."""
        llama_cpp.llama_memory_clear(self.memory, False)
        self.gate.observe(lambda: self.decode(np.zeros(tokens, np.int32), 0, 0), see)

    def last_row(self) -> npt.NDArray[np.float32]:
        """Logits (vocab,) of the last decoded position: llama.cpp's own memory, until the next batch."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (self._vocab_size,))

    def rows(self, count: int) -> npt.NDArray[np.float32]:
        """Logits (count, vocab) of the last batch, which wanted so many: as `last_row`."""
        pointer = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, (count, self._vocab_size))

    def close(self) -> None:
        """Free everything but the model."""
        self.batch.close()
        llama_cpp.llama_free(self.context)
        self.gate.close()
