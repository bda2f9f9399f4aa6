"""Cells of llama.cpp's KV cache without computing: a sequence state of the right form and zeroed rows allocates them.

The form, as `llama_state_seq_get_data` writes it (llama-kv-cache.cpp, `state_write`), little-endian:

    u32 magic, i32 sequence, u32 streams (1), u32 cells
    per cell: i32 position, u32 sequences (1), i32 sequence
    u32 V transposed (0 with flash attention), u32 layers
    per layer: i32 type, u64 row bytes, a row of K per cell;  then the same for V
"""

import ctypes
import struct

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine.ggml import CacheTensors
from preread.errors import EngineError
from preread.values import Geometry, KVBlock, Span

Bytes = npt.NDArray[np.uint8]

_HEAD = struct.Struct("<IiII")
_CELL = struct.Struct("<iIi")
_LAYERS = struct.Struct("<II")
_ROWS = struct.Struct("<iQ")
_F16 = 1
_MARK = 4
"""Values of a row that a mark takes."""
_PATTERNS = 31_743
"""Float16 patterns of positive finite numbers."""
_BLOB_BYTES = 8 << 20  # rows are allocated in steps, so that the zeroed rows never take much memory


def check_form(context: object, geometry: Geometry) -> None:
    """Compare the state of a sequence of one cell (sequence 0, position 0) with the form that `allocate` writes.

    Raises:
        EngineError: this llama.cpp or this model saves sequences in another form.
    """
    size = llama_cpp.llama_state_seq_get_size(context, 0)
    saved = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, saved, size, 0)
    found = np.frombuffer(saved, np.uint8)
    expected = _state(_magic(context, 0), 0, 1, geometry)
    # Only the rows' own bytes may differ.
    same = found.shape == expected.shape and bool((found == expected)[_frame(geometry)].all())
    if not same:
        raise EngineError("this llama.cpp saves a sequence in a form that preread does not know")


def allocate(
    context: object,
    geometry: Geometry,
    tensors: CacheTensors,
    tokens: Span,
    sequence: int,
    scratch: int,
    number: int = 0,
) -> npt.NDArray[np.int32]:
    """Give a `sequence` cells with unwritten rows for positions that it lacks.

    Args:
        context, geometry, tensors: of the cache.
        tokens: the positions.
        sequence: that gets them.
        scratch: an empty sequence.
        number: of the allocation, unlike the last ones': its marks differ from what those have left.

    Returns:
        The cell (tokens,) of each position.

    Raises:
        EngineError: llama.cpp refused, or its cells cannot be found again.
    """
    memory = llama_cpp.llama_get_memory(context)
    magic = _magic(context, scratch)
    step = max(1, _BLOB_BYTES // (geometry.values_per_token * 2))
    for start in range(tokens.start, tokens.stop, step):
        count = min(step, tokens.stop - start)
        blob = _state(magic, start, count, geometry, scratch, number)
        blob_at = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        taken = llama_cpp.llama_state_seq_set_data(context, blob_at, len(blob), scratch)
        if taken != len(blob):
            raise EngineError(f"llama.cpp did not allocate cells {start} to {start + count}")
        llama_cpp.llama_memory_seq_cp(memory, scratch, sequence, -1, -1)
        llama_cpp.llama_memory_seq_rm(memory, scratch, -1, -1)
    if llama_cpp.llama_memory_seq_pos_max(memory, sequence) < tokens.stop - 1:
        raise EngineError("llama.cpp did not allocate the cells that were asked for")
    return _found(tensors.first_values(_MARK), tokens, number)


def rows_of(saved: Bytes, geometry: Geometry, tokens: Span, layers: Span) -> KVBlock:
    """Some rows of a sequence's state.

    Raises:
        EngineError: it lacks some of them, or has another form.
    """
    _, _, streams, count = _HEAD.unpack_from(saved.data)
    row_bytes = 2 * geometry.kv_heads * geometry.head_dim
    cells_at, layer_bytes = _HEAD.size, _ROWS.size + row_bytes * count
    rows_at = cells_at + _CELL.size * count + _LAYERS.size
    if streams != 1 or len(saved) != rows_at + 2 * geometry.layers * layer_bytes:
        raise EngineError("this llama.cpp saves a sequence in a form that preread does not know")
    positions = saved[cells_at : cells_at + _CELL.size * count].view("<i4").reshape(count, 3)[:, 0]
    order = np.argsort(positions, kind="stable")
    first = int(np.searchsorted(positions[order], tokens.start))
    order = order[first : first + len(tokens)]
    if not np.array_equal(positions[order], np.arange(tokens.start, tokens.stop)):
        raise EngineError(f"tokens {tokens.start} to {tokens.stop} are not all in the cache")
    k = np.empty((len(layers), geometry.kv_heads, len(tokens), geometry.head_dim), np.float16)
    v = np.empty_like(k)
    straight = len(order) and bool((np.diff(order) == 1).all())
    for i, layer in enumerate(range(layers.start, layers.stop)):
        for half, out in enumerate((k, v)):
            at = rows_at + (half * geometry.layers + layer) * layer_bytes + _ROWS.size
            rows = saved[at : at + row_bytes * count].view(np.float16).reshape(count, geometry.kv_heads, -1)
            these = rows[order[0] : order[-1] + 1] if straight else rows[order]
            out[i] = these.transpose(1, 0, 2)
    return KVBlock(tokens, layers, k, v)


def _magic(context: object, scratch: int) -> int:
    """The magic number of sequence states, learned from the state of an empty sequence."""
    size = llama_cpp.llama_state_seq_get_size(context, scratch)
    saved = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, saved, size, scratch)
    return int.from_bytes(bytes(saved[:4]), "little")


def _marks(positions: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.uint16]:
    """What the first key values (positions, 4) of rows are set to, so that they can be found again.

    All are finite float16 patterns. Rows of the last 10⁹ allocations have other marks; those that a model computed,
    and that look like a mark by chance, would make the cells of two positions one, which is found.
    """
    digits = positions % _PATTERNS, positions // _PATTERNS, 0 * positions + number, 0 * positions + number // _PATTERNS
    return (np.stack(digits, -1) % _PATTERNS + 1).astype(np.uint16)


def _found(values: npt.NDArray[np.uint16], tokens: Span, number: int) -> npt.NDArray[np.int32]:
    """The cell of each position, by the first values (cells, 4) of all cells' rows.

    Raises:
        EngineError: some position has no cell, or several.
    """
    marks = _marks(np.arange(tokens.start, tokens.stop), number)
    same = np.flatnonzero((values[:, 2] == marks[0, 2]) & (values[:, 3] == marks[0, 3]))
    positions = (values[same, 0].astype(np.int64) - 1) + (values[same, 1].astype(np.int64) - 1) * _PATTERNS
    inside = (positions >= tokens.start) & (positions < tokens.stop)
    cells = np.full(len(tokens), -1, np.int32)
    cells[positions[inside] - tokens.start] = same[inside]
    if int(inside.sum()) != len(tokens) or (cells < 0).any():
        raise EngineError("the cells that llama.cpp allocated cannot be found")
    return cells


def _state(magic: int, start: int, count: int, geometry: Geometry, sequence: int = 2, number: int = 0) -> Bytes:
    """State of a sequence of `count` cells from position `start`, rows zeroed but for marks in layer 0's keys.

    The zeros come from the system as pages that nobody touched yet, so that they cost next to nothing.
    """
    row_bytes = 2 * geometry.kv_heads * geometry.head_dim
    layer_bytes = _ROWS.size + row_bytes * count
    rows_at = _HEAD.size + _CELL.size * count + _LAYERS.size
    state = np.zeros(rows_at + 2 * geometry.layers * layer_bytes, np.uint8)
    frame = state.data
    _HEAD.pack_into(frame, 0, magic, sequence, 1, count)
    cells = state[_HEAD.size : _HEAD.size + _CELL.size * count].view("<i4").reshape(count, 3)
    cells[:] = 1, 1, sequence
    cells[:, 0] = np.arange(start, start + count)
    _LAYERS.pack_into(frame, rows_at - _LAYERS.size, 0, geometry.layers)
    for half in range(2 * geometry.layers):
        _ROWS.pack_into(frame, rows_at + half * layer_bytes, _F16, row_bytes)
    marked = state[rows_at + _ROWS.size : rows_at + layer_bytes].reshape(count, row_bytes)
    marked[:, : 2 * _MARK] = _marks(np.arange(start, start + count), number).view(np.uint8).reshape(count, 2 * _MARK)
    return state


def _frame(geometry: Geometry) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which bytes of a one-cell state are form: neither rows nor sequence ids, which differ from call to call."""
    row_bytes = 2 * geometry.kv_heads * geometry.head_dim
    form = np.ones(len(_state(0, 0, 1, geometry)), bool)
    form[4:8] = form[_HEAD.size + 8 : _HEAD.size + _CELL.size] = False
    at = _HEAD.size + _CELL.size + _LAYERS.size
    for _ in range(2 * geometry.layers):
        at += _ROWS.size
        form[at : at + row_bytes] = False
        at += row_bytes
    return form
