"""The KV cache as many sequences share it: cells are given to contexts, shared with requests, and taken back.

All sequences live in one unified cache of llama.cpp. A cell holds the K and V of one token in every layer, and says
which sequences see it: sharing a context with a request copies nothing. Where a token's cell lies is llama.cpp's to
choose; of cells that are reserved here, to be written from outside, it is found out by marks in their first layer.

Of a model with windows llama.cpp has two caches, whose cells of one token lie at different places. What a sequence's
windows have left behind is nobody's there: it is never written, and read as zeros. So a sequence may be gone on with
behind its end only, or where its windows begin at the start; `plan/legality.py` says where.

Of a model with recurrent layers a sequence has a state besides, which stands for all of its tokens. llama.cpp shares
and forgets it whole, whatever positions it is told: so a sequence of such a model is shared whole, and cut nowhere.
Where that is not asked for, the answers would be wrong without an error: it is refused.

It must not know what a context is called, or why one makes room for another.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import llama_cpp
import numpy as np

from preread.engine import cells
from preread.engine.cells import Cells, Layout
from preread.engine.ggml import CacheTensors
from preread.engine.states import StateTensors
from preread.engine.tiles import is_batched, is_tiled, passed_over
from preread.errors import CorruptData, EngineError
from preread.plan.legality import PASSED_CELLS, first_seen
from preread.values import KVBlock, Span, StateBlock

COMPUTED: Final = -1
"""In place of a cell: what was computed into a reserved context lies where llama.cpp put it."""

UNPLACED: Final = -3
"""In place of a cell: nothing has been computed for this position yet, or not where it was seen."""

_MOST_LEFT_BEHIND: Final = PASSED_CELLS + 512
"""Cells that are held, at most, in the cache of windows: what these left behind of the last stretch is free there."""
_TRIES: Final = 4
"""Each shows more of the free cells, and freeing some may change which llama.cpp gives next."""

_INFINITE: Final = np.uint16(0x7C00)
_STATES_ONLY: Final = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


@dataclass(frozen=True, slots=True)
class Tensors:
    """Where rows are, and states, if there are any."""

    rows: CacheTensors
    states: StateTensors | None


class Rows:
    """A reserved context's cells, by position. Made by `Cache.reserve`; of no use after `Cache.free`.

    Attributes:
        cells: in llama.cpp's first cache; `windowed`: in the second one, where there is one.
        state: which of llama.cpp's states is the sequence's, in a model that has recurrent layers.
    """

    def __init__(self, sequence: int, cells: Cells, windowed: Cells | None = None, state: int | None = None) -> None:
        self.sequence, self.cells, self.windowed, self.state = sequence, cells, windowed, state

    @property
    def parts(self) -> list[Cells]:
        """The cells in each cache."""
        return [self.cells] if self.windowed is None else [self.cells, self.windowed]

    def runs(self, tokens: Span, part: int = 0) -> Iterator[tuple[int, int, int]]:
        """(first position, first cell, count) of rows of one cache that lie side by side.

        None of what was computed since, or left behind.
        """
        at = self.parts[part][tokens.start : tokens.stop]
        for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(at) != 1) + 1):
            if len(run) and at[run[0]] >= 0:
                yield tokens.start + int(run[0]), int(at[run[0]]), len(run)


class Cache:
    """Sequences and their cells. Belongs to the engine's thread, but for `inject`.

    Attributes:
        closed: why nothing is read of it or written to it; None: it is.

    Args:
        context: llama.cpp's.
        layout: of its cache.
        tensors: the cache's, or why there are none.
        scratch: a sequence that nobody else uses.
        whole: sequences are shared whole, and cut nowhere; see `plan/legality.py`.
    """

    def __init__(self, context: object, layout: Layout, tensors: Tensors | str, scratch: int, *, whole: bool) -> None:
        self._context, self._layout, self._scratch, self._whole = context, layout, scratch, whole
        self.closed = tensors if isinstance(tensors, str) else None
        self._tensors = None if isinstance(tensors, str) else tensors
        self._memory = llama_cpp.llama_get_memory(context)
        self._allocations = 0

    @property
    def tensors(self) -> Tensors:
        """Of the cache, and of states.

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
            found = self._allocated(sequence, Span(0, tokens))
            states = self.tensors.states
            state = None if states is None else states.marked(tokens - 1, self._allocations)
            first, *others = found or [_nowhere(tokens)]
            return Rows(sequence, first, others[0] if others else None, state)
        except EngineError:
            self.free(self._scratch)
            self.free(sequence)
            raise

    def take(self, rows: Rows, tokens: Span) -> None:
        """Free the cells of some reserved rows: these positions are going to be computed.

        Raises:
            EngineError: the model's sequences are whole or nothing.
        """
        if self._whole:
            raise EngineError("a part of a sequence was to be computed that is whole or nothing: a bug in preread")
        llama_cpp.llama_memory_seq_rm(self._memory, rows.sequence, tokens.start, tokens.stop)
        for part in rows.parts:
            part[tokens.start : tokens.stop] = COMPUTED

    def put_back(self, rows: Rows, tokens: Span) -> None:
        """Reserve rows again that were taken and not computed.

        Raises:
            EngineError: as `reserve` does; they stay taken then.
        """
        try:
            for part, found in zip(rows.parts, self._allocated(rows.sequence, tokens), strict=True):
                part[tokens.start : tokens.stop] = found
        except EngineError:
            self.free(self._scratch)
            llama_cpp.llama_memory_seq_rm(self._memory, rows.sequence, tokens.start, tokens.stop)
            raise

    def unplaced(self, sequence: int, tokens: int) -> Rows:
        """Rows for positions 0 … tokens−1 of a sequence, of which the runner notes where they lie."""
        first, *others = [np.full(tokens, UNPLACED, np.int32) for _ in self._layout.parts] or [_nowhere(tokens)]
        return Rows(sequence, first, others[0] if others else None)

    def copy(self, source: Rows, target: Rows, tokens: Span, layers: int) -> None:
        """Write to reserved rows what the first so many layers have at these positions where they were computed.

        Those that were computed into the reserved context itself, or left behind by a window, stay as they are. Where
        these are the last positions, states are copied too.

        Raises:
            EngineError: it is not known where some of them lie.
        """
        states = self._layout.states
        if states is not None and tokens.stop == len(target.cells):
            these = [layer for layer in states.layers if layer < layers]
            self.inject_state(target, self.export_state(source.sequence, these))
        for number, part in enumerate(self._layout.parts):
            these = [layer for layer in part.layers if layer < layers]
            for position, cell, count in target.runs(tokens, number) if these else ():
                at = source.parts[number][position : position + count]
                if len(at) < count or (at < 0).any():
                    raise EngineError("the cells that layers were computed into cannot be told")
                for first, from_cell, some in source.runs(Span(position, position + count), number):
                    for layer in these:
                        k, v = self.tensors.rows.read(layer, from_cell, some)
                        self.tensors.rows.write(layer, cell + first - position, k, v)

    @contextmanager
    def tiled(self, rows: Rows, position: int) -> Iterator[None]:
        """What is computed of these rows while this is open, from a position on, comes to lie as `tiles.py` wants it,
        where cells are free for that: those before are held meanwhile. It must be the first of its batch.
        """
        try:
            self._hold(position, len(rows.cells), [int(at[position - 1]) if position else -1 for at in rows.parts])
            yield
        finally:
            self.free(self._scratch)

    def _hold(self, position: int, stop: int, last: Sequence[int]) -> None:
        """Hold the free cells that these positions are not to get, as far as this can be done.

        last: the cell of the position before, in each part.
        """
        context, parts, rows = self._context, self._layout.parts, self.tensors.rows
        most = [PASSED_CELLS if one.window_tokens is None else _MOST_LEFT_BEHIND for one in parts]
        passed = [0] * len(parts)
        for _ in range(_TRIES if passed else 0):
            self._allocations += 1
            try:
                found = cells.hold(
                    context, self._layout, rows, passed, stop - position, self._scratch, self._allocations
                )
            except EngineError:  # there are not so many
                self.free(self._scratch)
                return
            after = [free[count:] for free, count in zip(found, passed, strict=True)]
            if not any(passed_over(free, position, stop, at) for free, at in zip(after, last, strict=False)):
                llama_cpp.llama_memory_seq_rm(self._memory, self._scratch, 1, -1)
                return
            self.free(self._scratch)
            wanted = [passed_over(free, position, stop, at) for free, at in zip(found, last, strict=False)]
            passed = [*map(min, wanted, most)]  # others may lie between, which more cells will show

    def is_tiled(self, rows: Rows, tokens: Span, layers: int) -> bool:
        """Whether what the first so many layers compute at these positions has the bits that it has in an empty cache,
        as far as that depends on where cells lie.

        rows: where they do, and those before, as far as these were seen.
        """
        for part, at in zip(self._layout.parts, rows.parts, strict=False):
            first = first_seen(tokens.start, part.window_tokens)
            if min(part.layers) < layers and not is_tiled(at[first : tokens.stop], first):
                return False
        return True

    def is_batched(self, part: Span, beside: int, tokens: int) -> bool:
        """Whether these positions, of a context of so many tokens, get prefill's bits in a step with others beside."""
        return is_batched(part, beside, tokens)

    def share(self, source: int, target: int, tokens: Span) -> None:
        """Let `target` see what `source` has at these positions.

        Raises:
            EngineError: the model's sequences are shared whole, and these are not all that `source` has.
        """
        if not len(tokens):
            return  # a state would be shared all the same
        if self._whole and tokens != Span(0, self._length(source)):
            raise EngineError("a part of a sequence was to be shared that is whole or nothing: a bug in preread")
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, tokens.start, tokens.stop)

    def cut(self, sequence: int, position: int) -> None:
        """Take from a sequence what it has at `position` and beyond.

        Raises:
            EngineError: it has something there, and the model's sequences are cut nowhere.
        """
        if not position:
            return self.free(sequence)
        if self._whole and position < self._length(sequence):
            raise EngineError("a sequence was to be cut that is whole or nothing: a bug in preread")
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, position, -1)

    def free(self, sequence: int) -> None:
        """Empty a sequence. Cells that no other sees are free."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def inject(self, rows: Rows, block: KVBlock) -> None:
        """Write KV into reserved cells. Thread-safe for different rows, also while the engine computes behind the gate.

        Rows that were computed here since stay as they are. Those that a window has left behind are not written.

        Raises:
            EngineError: the block is not of these rows.
            CorruptData: "values": it has numbers that are not finite. Attention would spread them to whoever shares a
                tile of the cache.
        """
        tensors, layers = self.tensors, self._layout.layers
        inside = 0 <= block.layers.start and block.layers.stop <= len(layers) and block.tokens.stop <= len(rows.cells)
        expected = cells.shapes_of(layers, len(block.tokens), block.layers) if inside else None
        if (block.k.shape, block.v.shape) != expected:
            raise EngineError(f"a KV block of shape {block.k.shape} does not fit the reserved {expected}")
        for half in (block.k, block.v):
            if ((half.view(np.uint16) & _INFINITE) == _INFINITE).any():
                raise CorruptData("values", "a KV block has numbers that are not finite")
        numbers = cells.having_rows(layers, block.layers)
        for number, part in enumerate(self._layout.parts):
            these = [layer for layer in part.layers if block.layers.start <= layer < block.layers.stop]
            for position, cell, count in rows.runs(block.tokens, number) if these else ():
                at = slice(position - block.tokens.start, position - block.tokens.start + count)
                for layer in these:
                    i = numbers.index(layer)
                    tensors.rows.write(layer, cell, block.k[i, :, at], block.v[i, :, at])

    def inject_state(self, rows: Rows, block: StateBlock) -> None:
        """Write the states of some layers of a reserved sequence. Thread-safe for different layers, as `inject` is.

        Raises:
            EngineError: the block is not of these rows.
            CorruptData: "values": it has numbers that are not finite.
        """
        tensors, states = self.tensors.states, self._layout.states
        fits = states is not None and block.shape == states.shape and {*block.layers} <= {*states.layers}
        if not fits or tensors is None or rows.state is None or block.position != len(rows.cells):
            raise EngineError(f"states of {len(block.layers)} layers at {block.position} do not fit what was reserved")
        if len(block.r) != len(block.layers) or len(block.s) != len(block.layers):
            raise EngineError("a block of states has others than it says")
        if not (np.isfinite(block.r).all() and np.isfinite(block.s).all()):
            raise CorruptData("values", "a state has numbers that are not finite")
        for layer, r, s in zip(block.layers, block.r, block.s, strict=True):
            tensors.write(layer, rows.state, r, s)

    def export(self, sequence: int, tokens: Span, layers: Span) -> KVBlock:
        """Copy what a sequence has at these positions; zeros where a window has left it behind.

        Raises:
            EngineError: it lacks some of them, or this model's cache cannot be read.
        """
        _ = self.tensors  # or it cannot be read
        if not 0 <= tokens.start <= tokens.stop <= self._length(sequence):
            raise EngineError(f"tokens {tokens.start} to {tokens.stop} are not all in the cache")
        return cells.rows_of(self._saved(sequence), self._layout, tokens, layers)

    def export_state(self, sequence: int, layers: Sequence[int]) -> StateBlock:
        """Copy the states that some recurrent layers have of a sequence.

        Raises:
            EngineError: it is empty, or this model's states cannot be read.
        """
        if self.tensors.states is None:
            raise EngineError("this model keeps no states")
        return cells.states_in(self._saved(sequence, _STATES_ONLY), self._layout, layers)

    def _saved(self, sequence: int, flags: int = 0) -> cells.Bytes:
        """What llama.cpp saves of a sequence."""
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, sequence, flags)
        saved = np.empty(size, np.uint8)
        at = saved.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        llama_cpp.llama_state_seq_get_data_ext(self._context, at, size, sequence, flags)
        return saved

    def _length(self, sequence: int) -> int:
        """How many tokens a sequence has, from its first on."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def _allocated(self, sequence: int, tokens: Span) -> list[Cells]:
        self._allocations += 1
        context, rows = self._context, self.tensors.rows
        return cells.allocate(context, self._layout, rows, tokens, sequence, self._scratch, self._allocations)


def _nowhere(tokens: int) -> Cells:
    """In place of cells, of a model that is recurrent throughout: its tokens have none."""
    return np.full(tokens, cells.LEFT_BEHIND, np.int32)
