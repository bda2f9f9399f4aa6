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

from preread.engine.ggml import CacheTensors
from preread.errors import EngineError
from preread.values import Geometry

_HEAD = struct.Struct("<IiII")
_CELL = struct.Struct("<iIi")
_LAYERS = struct.Struct("<II")
_ROWS = struct.Struct("<iQ")
_F16 = 1
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
    expected = _state(_magic(context), 0, 1, geometry)
    # Only the rows' own bytes may differ.
    same = found.shape == expected.shape and bool((found == expected)[_frame(geometry)].all())
    if not same:
        raise EngineError("this llama.cpp saves a sequence in a form that preread does not know")


def allocate(
    context: object, geometry: Geometry, tensors: CacheTensors, tokens: int, *, sequence: int, scratch: int
) -> None:
    """Give `sequence`, in an empty cache, cells 0 … tokens−1 with positions of the same numbers and unwritten rows.

    Raises:
        EngineError: llama.cpp refused, or put the cells elsewhere.
    """
    memory = llama_cpp.llama_get_memory(context)
    magic = _magic(context)
    step = max(1, _BLOB_BYTES // (geometry.values_per_token * 2))
    for start in range(0, tokens, step):
        count = min(step, tokens - start)
        blob = _state(magic, start, count, geometry)
        blob_at = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        taken = llama_cpp.llama_state_seq_set_data(context, blob_at, len(blob), scratch)
        if taken != len(blob):
            raise EngineError(f"llama.cpp did not allocate cells {start} to {start + count}")
        llama_cpp.llama_memory_seq_cp(memory, scratch, sequence, -1, -1)
        llama_cpp.llama_memory_seq_rm(memory, scratch, -1, -1)
    reached = llama_cpp.llama_memory_seq_pos_max(memory, sequence)
    marks = tensors.read(0, 0, tokens)[0][0, :, 0].view(np.uint16)
    if reached != tokens - 1 or not np.array_equal(marks, _marks(0, tokens)):
        raise EngineError("llama.cpp did not allocate the cells in order")


def _magic(context: object) -> int:
    """The magic number of sequence states, learned from the state of an empty sequence."""
    size = llama_cpp.llama_state_seq_get_size(context, 2)
    saved = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, saved, size, 2)
    return int.from_bytes(bytes(saved[:4]), "little")


def _marks(start: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """What the first key value of each row is set to, so that the rows can be found again: finite float16 patterns."""
    return (np.arange(start, start + count) % 31_743 + 1).astype(np.uint16)


def _state(magic: int, start: int, count: int, geometry: Geometry) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """State of a sequence of `count` cells from position `start`, rows zeroed but for a mark in layer 0's keys.

    The zeros come from the system as pages that nobody touched yet, so that they cost next to nothing.
    """
    row_bytes = 2 * geometry.kv_heads * geometry.head_dim
    layer_bytes = _ROWS.size + row_bytes * count
    rows_at = _HEAD.size + _CELL.size * count + _LAYERS.size
    state = np.zeros(rows_at + 2 * geometry.layers * layer_bytes, np.uint8)
    frame = state.data
    _HEAD.pack_into(frame, 0, magic, 2, 1, count)
    cells = state[_HEAD.size : _HEAD.size + _CELL.size * count].view("<i4").reshape(count, 3)
    cells[:] = 1, 1, 2
    cells[:, 0] = np.arange(start, start + count)
    _LAYERS.pack_into(frame, rows_at - _LAYERS.size, 0, geometry.layers)
    for half in range(2 * geometry.layers):
        _ROWS.pack_into(frame, rows_at + half * layer_bytes, _F16, row_bytes)
    marked = state[rows_at + _ROWS.size : rows_at + layer_bytes].reshape(count, row_bytes)
    marked[:, :2] = _marks(start, count).view(np.uint8).reshape(count, 2)
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
