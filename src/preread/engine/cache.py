"""The KV cache as many sequences share it: cells are given to contexts, shared with requests, and taken back.

All sequences live in one unified cache of llama.cpp. A cell holds the K and V of one token in every layer, and says
which sequences see it: sharing a context with a request copies nothing. Where a token's cell lies is llama.cpp's to
choose; of cells that are reserved here, to be written from outside, it is found out by marks in their first layer.

It must not know what a context is called, or why one makes room for another.
"""

import ctypes
from collections.abc import Iterator
from typing import Final

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine import cells
from preread.engine.ggml import CacheTensors
from preread.errors import CorruptData, EngineError
from preread.values import Geometry, KVBlock, Span

COMPUTED: Final = -1
"""In place of a cell: what was computed into a reserved context lies where llama.cpp put it."""

_INFINITE: Final = np.uint16(0x7C00)


class Rows:
    """A reserved context's cells, by position. Made by `Cache.reserve`; of no use after `Cache.free`."""

    def __init__(self, sequence: int, cells: npt.NDArray[np.int32]) -> None:
        self.sequence, self.cells = sequence, cells

    def runs(self, tokens: Span) -> Iterator[tuple[int, int, int]]:
        """(first position, first cell, count) of rows that lie side by side; none of what was computed since."""
        at = self.cells[tokens.start : tokens.stop]
        for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(at) != 1) + 1):
            if len(run) and at[run[0]] != COMPUTED:
                yield tokens.start + int(run[0]), int(at[run[0]]), len(run)


class Cache:
    """Sequences and their cells. Belongs to the engine's thread, but for `inject`.

    Attributes:
        closed: why nothing is read of it or written to it; None: it is.

    Args:
        context: llama.cpp's.
        geometry: of its cache.
        tensors: the cache's, or why there are none.
        scratch: a sequence that nobody else uses.
    """

    def __init__(self, context: object, geometry: Geometry, tensors: CacheTensors | str, scratch: int) -> None:
        self._context, self._geometry, self._scratch = context, geometry, scratch
        self.closed = tensors if isinstance(tensors, str) else None
        self._tensors = None if isinstance(tensors, str) else tensors
        self._memory = llama_cpp.llama_get_memory(context)
        self._allocations = 0

    @property
    def tensors(self) -> CacheTensors:
        """The cache's tensors.

        Raises:
            EngineError: nothing can be read of this model's cache.
        """
        if self._tensors is None or self.closed:
            raise EngineError(f"this model's KV cannot be exchanged: {self.closed}")
        return self._tensors

    def reserve(self, sequence: int, tokens: int) -> Rows:
        """Give an empty sequence cells for positions 0 … tokens−1, whose rows are zero.

        Raises:
            EngineError: llama.cpp gave no cells, or others than can be told; the sequence is empty then.
        """
        try:
            return Rows(sequence, self._allocated(sequence, Span(0, tokens)))
        except EngineError:
            self.free(self._scratch)
            self.free(sequence)
            raise

    def take(self, rows: Rows, tokens: Span) -> None:
        """Free the cells of some reserved rows: these positions are going to be computed."""
        llama_cpp.llama_memory_seq_rm(self._memory, rows.sequence, tokens.start, tokens.stop)
        rows.cells[tokens.start : tokens.stop] = COMPUTED

    def put_back(self, rows: Rows, tokens: Span) -> None:
        """Reserve rows again that were taken and not computed.

        Raises:
            EngineError: as `reserve` does; they stay taken then.
        """
        try:
            rows.cells[tokens.start : tokens.stop] = self._allocated(rows.sequence, tokens)
        except EngineError:
            self.free(self._scratch)
            llama_cpp.llama_memory_seq_rm(self._memory, rows.sequence, tokens.start, tokens.stop)
            raise

    def share(self, source: int, target: int, tokens: Span) -> None:
        """Let `target` see what `source` has at these positions."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, tokens.start, tokens.stop)

    def cut(self, sequence: int, position: int) -> None:
        """Take from a sequence what it has at `position` and beyond."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, position, -1)

    def free(self, sequence: int) -> None:
        """Empty a sequence. Cells that no other sees are free."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def inject(self, rows: Rows, block: KVBlock) -> None:
        """Write KV into reserved cells. Thread-safe for different rows, also while the engine computes behind the gate.

        Rows that were computed here since stay as they are.

        Raises:
            EngineError: the block is not of these rows.
            CorruptData: "values": it has numbers that are not finite. Attention would spread them to whoever shares a
                tile of the cache.
        """
        tensors, shape = self.tensors, self._geometry
        expected = (len(block.layers), shape.kv_heads, len(block.tokens), shape.head_dim)
        inside = 0 <= block.layers.start and block.layers.stop <= shape.layers and block.tokens.stop <= len(rows.cells)
        if block.k.shape != expected or block.v.shape != expected or not inside:
            raise EngineError(f"a KV block of shape {block.k.shape} does not fit the reserved {expected}")
        for half in (block.k, block.v):
            if ((half.view(np.uint16) & _INFINITE) == _INFINITE).any():
                raise CorruptData("values", "a KV block has numbers that are not finite")
        for position, cell, count in rows.runs(block.tokens):
            at = slice(position - block.tokens.start, position - block.tokens.start + count)
            for i, layer in enumerate(range(block.layers.start, block.layers.stop)):
                tensors.write(layer, cell, block.k[i, :, at], block.v[i, :, at])

    def export(self, sequence: int, tokens: Span, layers: Span) -> KVBlock:
        """Copy what a sequence has at these positions.

        Raises:
            EngineError: it lacks some of them, or this model's cache cannot be read.
        """
        _ = self.tensors  # or it cannot be read
        size = llama_cpp.llama_state_seq_get_size(self._context, sequence)
        saved = np.empty(size, np.uint8)
        llama_cpp.llama_state_seq_get_data(
            self._context, saved.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), size, sequence
        )
        return cells.rows_of(saved, self._geometry, tokens, layers)

    def _allocated(self, sequence: int, tokens: Span) -> npt.NDArray[np.int32]:
        self._allocations += 1
        tensors, shape = self.tensors, self._geometry
        return cells.allocate(self._context, shape, tensors, tokens, sequence, self._scratch, self._allocations)
