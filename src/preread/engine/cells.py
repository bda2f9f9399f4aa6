"""Cells of llama.cpp's KV cache without computing: a sequence state of the right form and zeroed rows allocates them.

The form, as `llama_state_seq_get_data` writes it (llama-kv-cache.cpp, `state_write`), little-endian:

    u32 magic, i32 sequence, and then each cache's block:
    u32 streams (1), u32 cells; where there are none, the block ends here
    per cell: i32 position, u32 sequences (1), [i32 x, i32 y, i32 token,] i32 sequence
    u32 V transposed (0 with flash attention), u32 layers
    per layer: i32 type, u64 row bytes, a row of K per cell;  then the same for V, of layers that have one
    and at last what recurrent layers keep, see `states.py`

What is in brackets is there in models whose positions have several axes, which are all the same for text.

A model whose layers all attend to all tokens has one cache. One with windows has two, of the layers without a window
and of those with one (llama-kv-cache-iswa.cpp), each with cells of its own: one token's may lie at different places in
the two. In the second one llama.cpp gives to others, whenever it likes, cells of a single sequence that its window has
left behind, and it writes none of them into a state. Such rows are *left behind* here. A model whose layers are all
recurrent has no cache.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine import states
from preread.engine.ggml import CacheTensors
from preread.engine.states import States, states_of
from preread.errors import EngineError
from preread.plan.legality import first_seen
from preread.values import KVBlock, Layer, RowShape, Span, StateBlock

Bytes = npt.NDArray[np.uint8]
Cells = npt.NDArray[np.int32]

LEFT_BEHIND = -2
"""In place of a cell: nobody looks at this row any more, and llama.cpp may have given its cell to others."""

_HEAD = struct.Struct("<Ii")
_BLOCK = struct.Struct("<II")
_LAYERS = struct.Struct("<II")
_ROWS = struct.Struct("<iQ")
_CELL, _PLANES_CELL = 3, 6
"""Values of 32 bits that a cell's form has."""
_F16 = 1
_MARK = 4
"""Values of a row that a mark takes."""
_PATTERNS = 31_743
"""Float16 patterns of positive finite numbers."""
_BLOB_BYTES = 8 << 20  # rows are allocated in steps, so that the zeroed rows never take much memory


@dataclass(frozen=True, slots=True)
class Part:
    """One of llama.cpp's caches: the layers that it has, and their window; None: they attend to all tokens."""

    layers: tuple[int, ...]
    window_tokens: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """How llama.cpp keeps what a model's layers keep.

    Attributes:
        layers: what each of them keeps.
        parts: the caches, in the order of their blocks.
        states: what recurrent layers keep; None: there are none.
        planes: positions have several axes.
    """

    layers: tuple[Layer, ...]
    parts: tuple[Part, ...]
    states: States | None
    planes: bool = False

    @property
    def token_bytes(self) -> int:
        """Of one token's K and V in all layers."""
        return sum(row_bytes for part in self.parts for _, _, row_bytes in self.rows(part))

    @property
    def cell_values(self) -> int:
        """Values of 32 bits that a cell's form has."""
        return _PLANES_CELL if self.planes else _CELL

    def rows(self, part: Part) -> list[tuple[int, int, int]]:
        """What a part's block has rows of, in order: half (K, V), layer, and a row's bytes."""
        found = []
        for layer in part.layers:
            shape = self.layers[layer].rows
            assert shape is not None
            found += [(0, layer, 2 * shape.kv_heads * shape.k_dim), (1, layer, 2 * shape.kv_heads * shape.v_dim)]
        return sorted(((half, layer, size) for half, layer, size in found if size), key=lambda row: row[0])


def layout(layers: Sequence[Layer], *, planes: bool = False) -> Layout:
    """The layout of a model of such layers."""
    rows = {i: layer.window_tokens for i, layer in enumerate(layers) if layer.rows is not None}
    kinds = sorted(set(rows.values()), key=lambda window: window is not None)
    parts = (Part(tuple(i for i, window in rows.items() if window == kind), kind) for kind in kinds)
    return Layout(tuple(layers), tuple(parts), states_of(layers), planes)


def check_form(context: object, layout: Layout) -> None:
    """Compare the state of a sequence of one cell (sequence 0, position 0) with the form that `allocate` writes.

    Raises:
        EngineError: this llama.cpp or this model saves sequences in another form.
    """
    found = _saved_of(context, 0)
    expected = _state(_magic_of(found), 0, 1, layout)
    # Only the rows' own bytes may differ.
    same = found.shape == expected.shape and bool((found == expected)[_frame(layout)].all())
    if not same:
        raise EngineError("this llama.cpp saves a sequence in a form that preread does not know")


def allocate(
    context: object,
    layout: Layout,
    tensors: CacheTensors,
    tokens: Span,
    sequence: int,
    scratch: int,
    number: int = 0,
) -> list[Cells]:
    """Give a `sequence` cells with unwritten rows for positions that it lacks.

    Args:
        context, layout, tensors: of the cache.
        tokens: the positions.
        sequence: that gets them.
        scratch: an empty sequence.
        number: of the allocation, unlike the last ones': its marks differ from what those have left.

    Returns:
        For each part the cell (tokens,) of each position; `LEFT_BEHIND` where a window has and it cannot be told.
        What recurrent layers keep is marked with `number`.

    Raises:
        EngineError: llama.cpp refused, or its cells cannot be found again.
    """
    memory = llama_cpp.llama_get_memory(context)
    magic = _magic(context, scratch)
    states_bytes = layout.states.rows_bytes if layout.states else 0  # each step has them all
    step = max(1, max(_BLOB_BYTES, states_bytes) // layout.token_bytes) if layout.parts else len(tokens)
    for start in range(tokens.start, tokens.stop, step):
        count = min(step, tokens.stop - start)
        _restore(context, scratch, _state(magic, start, count, layout, scratch, number))
        llama_cpp.llama_memory_seq_cp(memory, scratch, sequence, -1, -1)
        llama_cpp.llama_memory_seq_rm(memory, scratch, -1, -1)
    last = llama_cpp.llama_memory_seq_pos_max(memory, sequence)
    if last < tokens.stop - 1:
        raise EngineError("llama.cpp did not allocate the cells that were asked for")
    return [
        _found(tensors.first_values(part.layers[0], _MARK), tokens, number, first_seen(last + 1, part.window_tokens))
        for part in layout.parts
    ]


def hold(
    context: object, layout: Layout, tensors: CacheTensors, counts: Sequence[int], more: int, scratch: int, number: int
) -> list[Cells]:
    """Give an empty `scratch` sequence the next free cells in each of llama.cpp's caches, but no state.

    Args:
        context, layout, tensors: of the cache.
        counts: how many in each part to keep, whose positions are 0; so many `more` are at position 1.
        scratch, number: as of `allocate`.

    Returns:
        For each part its cells, in the order in which llama.cpp gives them.

    Raises:
        EngineError: llama.cpp refused, or its cells cannot be told.
    """
    empty = _saved_of(context, scratch)
    _restore(context, scratch, _state(_magic_of(empty), 0, more, layout, scratch, number, counts, empty))
    return [
        _found(tensors.first_values(part.layers[0], _MARK), Span(0, count + more), number, 0)
        for part, count in zip(layout.parts, counts, strict=True)
    ]


def rows_of(saved: Bytes, layout: Layout, tokens: Span, layers: Span) -> KVBlock:
    """Some rows of a sequence's state. Those that their layer's window has left behind are zero.

    Raises:
        EngineError: it lacks some of them, or has another form.
    """
    blocks, numbers = _blocks(saved, layout), having_rows(layout.layers, layers)
    k, v = (np.zeros(shape, np.float16) for shape in shapes_of(layout.layers, len(tokens), layers))
    length = 1 + max((int(block.positions.max()) for block in blocks if len(block.positions)), default=-1)
    for part, block in zip(layout.parts, blocks, strict=True):
        seen = Span(max(tokens.start, min(tokens.stop, first_seen(length, part.window_tokens))), tokens.stop)
        order = np.argsort(block.positions, kind="stable")
        first = int(np.searchsorted(block.positions[order], seen.start))
        order = order[first : first + len(seen)]
        if not np.array_equal(block.positions[order], np.arange(seen.start, seen.stop)):
            raise EngineError(f"tokens {tokens.start} to {tokens.stop} are not all in the cache")
        straight = len(order) and bool((np.diff(order) == 1).all())
        at, count, start = seen.start - tokens.start, len(block.positions), block.rows_at
        for half, layer, row_bytes in layout.rows(part):
            start += _ROWS.size
            if layer in numbers:
                out = (k, v)[half][numbers.index(layer)]
                rows = saved[start : start + row_bytes * count].view(np.float16)
                rows = rows.reshape(count, out.shape[0], out.shape[2])
                these = rows[order[0] : order[-1] + 1] if straight else rows[order]
                out[:, at:] = these.transpose(1, 0, 2)
            start += row_bytes * count
    return KVBlock(tokens, layers, k, v)


def having_rows(layers: Sequence[Layer], span: Span) -> list[int]:
    """The layers of a span that have rows."""
    return [layer for layer in range(span.start, span.stop) if layers[layer].rows is not None]


def shapes_of(layers: Sequence[Layer], tokens: int, span: Span) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a block's K and V.

    Raises:
        EngineError: the layers of the span differ in that.
    """
    shapes = {layers[layer].rows for layer in having_rows(layers, span)}
    if len(shapes) > 1:
        raise EngineError(f"layers {span.start} to {span.stop} differ in the size of their rows")
    usual = next((layer.rows for layer in layers if layer.rows is not None), None)
    shape, count = (*shapes, usual, RowShape(0, 0, 0))[0] or RowShape(0, 0, 0), len(having_rows(layers, span))
    return (count, shape.kv_heads, tokens, shape.k_dim), (count, shape.kv_heads, tokens, shape.v_dim)


def states_in(saved: Bytes, layout: Layout, layers: Sequence[int]) -> StateBlock:
    """The states of some layers, in what a sequence saves of its states alone.

    Raises:
        EngineError: it has none, or another form.
    """
    assert layout.states is not None
    return states.block_of(saved[_HEAD.size :], layout.states, layers)


@dataclass(frozen=True, slots=True)
class _Block:
    """A cache's block of a state: of each cell the position, and where its rows begin."""

    positions: Cells
    rows_at: int


def _blocks(saved: Bytes, layout: Layout) -> list[_Block]:
    """The blocks of a state.

    Raises:
        EngineError: it has another form.
    """
    blocks, at, width = [], _HEAD.size, 4 * layout.cell_values
    for part in layout.parts:
        if at + _BLOCK.size > len(saved):
            break
        streams, count = _BLOCK.unpack_from(saved.data, at)
        cells_at, rows_at = at + _BLOCK.size, at + _BLOCK.size + (width * count + _LAYERS.size if count else 0)
        at = rows_at + (sum(_ROWS.size + size * count for _, _, size in layout.rows(part)) if count else 0)
        if streams != 1 or at > len(saved):
            break
        positions = saved[cells_at : cells_at + width * count].view("<i4").reshape(count, layout.cell_values)[:, 0]
        blocks.append(_Block(positions, rows_at))
    ends = {at} if layout.states is None else {at + states.size_bytes(layout.states, count) for count in (0, 1)}
    if len(blocks) != len(layout.parts) or len(saved) not in ends:
        raise EngineError("this llama.cpp saves a sequence in a form that preread does not know")
    return blocks


def _restore(context: object, sequence: int, state: Bytes) -> None:
    """Raises EngineError where llama.cpp does not take a state."""
    at = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    if llama_cpp.llama_state_seq_set_data(context, at, len(state), sequence) != len(state):
        raise EngineError("llama.cpp did not allocate the cells that were asked for")


def _magic(context: object, scratch: int) -> int:
    """The magic number of sequence states, learned from the state of an empty sequence."""
    return _magic_of(_saved_of(context, scratch))


def _magic_of(saved: Bytes) -> int:
    return int.from_bytes(saved[:4].tobytes(), "little")


def _saved_of(context: object, sequence: int) -> Bytes:
    """What llama.cpp saves of a sequence."""
    size = llama_cpp.llama_state_seq_get_size(context, sequence)
    saved = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, saved, size, sequence)
    return np.frombuffer(saved, np.uint8)


def _marks(positions: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.uint16]:
    """What the first key values (positions, 4) of rows are set to, so that they can be found again.

    All are finite float16 patterns. Rows of the last 10⁹ allocations have other marks; those that a model computed,
    and that look like a mark by chance, would make the cells of two positions one, which is found.
    """
    digits = positions % _PATTERNS, positions // _PATTERNS, 0 * positions + number, 0 * positions + number // _PATTERNS
    return (np.stack(digits, -1) % _PATTERNS + 1).astype(np.uint16)


def _found(values: npt.NDArray[np.uint16], tokens: Span, number: int, seen: int) -> Cells:
    """The cell of each position, by the first values (cells, 4) of all cells' rows.

    Those before `seen` are left behind: a mark of theirs may stand in a cell that others have by now.

    Raises:
        EngineError: some other position has no cell, or several.
    """
    marks = _marks(np.arange(tokens.start, tokens.stop), number)
    same = np.flatnonzero((values[:, 2] == marks[0, 2]) & (values[:, 3] == marks[0, 3]))
    positions = (values[same, 0].astype(np.int64) - 1) + (values[same, 1].astype(np.int64) - 1) * _PATTERNS
    first = min(max(tokens.start, seen), tokens.stop)
    inside = (positions >= first) & (positions < tokens.stop)
    cells = np.full(len(tokens), LEFT_BEHIND, np.int32)
    cells[positions[inside] - tokens.start] = same[inside]
    if int(inside.sum()) != tokens.stop - first or (cells[first - tokens.start :] < 0).any():
        raise EngineError("the cells that llama.cpp allocated cannot be found")
    return cells


def _state(
    magic: int,
    start: int,
    count: int,
    layout: Layout,
    sequence: int = 2,
    number: int = 0,
    held: Sequence[int] = (),
    empty: Bytes | None = None,
) -> Bytes:
    """State of a sequence of `count` cells from position `start`, zero but for marks in each part's first keys, and in
    the first recurrent layer.

    The zeros come from the system as pages that nobody touched yet, so that they cost next to nothing.

    Args:
        held: so many cells of each part are there besides, at position 0, and the others at 1, whatever their marks
            say: no window leaves any of them behind.
        empty: what is saved of a sequence without tokens, whose recurrent layers' block it gets; None: it has a state.
    """
    values, every = layout.cell_values, [count + more for more in held or [0] * len(layout.parts)]
    size = _HEAD.size + sum(
        _BLOCK.size
        + 4 * values * count
        + _LAYERS.size
        + sum(_ROWS.size + row_bytes * count for _, _, row_bytes in layout.rows(part))
        for part, count in zip(layout.parts, every, strict=True)
    )
    block_bytes = states.size_bytes(layout.states, 1 if empty is None else 0) if layout.states else 0
    state = np.zeros(size + block_bytes, np.uint8)
    frame, at = state.data, _HEAD.size
    _HEAD.pack_into(frame, 0, magic, sequence)
    for index, (part, count_here) in enumerate(zip(layout.parts, every, strict=True)):
        positions = np.arange(start, start + count_here)
        rows_at, rows = at + _BLOCK.size + 4 * values * count_here + _LAYERS.size, layout.rows(part)
        _BLOCK.pack_into(frame, at, 1, count_here)
        cells = state[at + _BLOCK.size : rows_at - _LAYERS.size].view("<i4").reshape(count_here, values)
        at_positions = (positions >= held[index]).astype(np.int64) if held else positions
        cells[:, 0], cells[:, 1], cells[:, -1] = at_positions, 1, sequence
        if layout.planes:
            cells[:, 2], cells[:, 3] = at_positions, at_positions
        _LAYERS.pack_into(frame, rows_at - _LAYERS.size, 0, len(part.layers))
        marked = state[rows_at + _ROWS.size : rows_at + _ROWS.size + rows[0][2] * count_here].reshape(
            count_here, rows[0][2]
        )
        marked[:, : 2 * _MARK] = _marks(positions, number).view(np.uint8).reshape(count_here, 2 * _MARK)
        at = rows_at
        for _, _, row_bytes in rows:
            _ROWS.pack_into(frame, at, _F16, row_bytes)
            at += _ROWS.size + row_bytes * count_here
    if layout.states is not None and empty is None:
        states.put(state[at:], layout.states, start + count - 1, number)
    elif block_bytes and empty is not None:
        state[at:] = empty[len(empty) - block_bytes :]
    return state


def _frame(layout: Layout) -> npt.NDArray[np.bool_]:
    """Which bytes of a one-cell state are form.

    Neither rows are, nor sequence ids, which differ from call to call, nor a cell's token.
    """
    form = np.ones(len(_state(0, 0, 1, layout)), bool)
    form[4:8] = False
    at = _HEAD.size
    for part in layout.parts:
        form[at + _BLOCK.size + 8 : at + _BLOCK.size + 4 * layout.cell_values] = False
        at += _BLOCK.size + 4 * layout.cell_values + _LAYERS.size
        for _, _, row_bytes in layout.rows(part):
            at += _ROWS.size
            form[at : at + row_bytes] = False
            at += row_bytes
    if layout.states is not None:
        form[at:] = states.form(layout.states)
    return form
