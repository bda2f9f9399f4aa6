"""The states of recurrent layers in llama.cpp's memory: where they are, and the form in which a sequence saves its own.

A sequence has one state in each such layer, float32: R, the last inputs of a convolution, and S, which stands for all
tokens before (LFM2 has no S). They are rows of the tensors `cache_r_l<layer>` and `cache_s_l<layer>`, of which there is
one for each sequence that llama.cpp was opened for; several sequences may share one until they are gone on with.

The form, as `llama_memory_recurrent::state_write` has it, little-endian, behind the blocks of the cells (`cells.py`):

    u32 states (1, or 0), and of each: i32 position of its last token, u32 sequences (0)
    u32 S transposed (0), u32 layers of the model, of whatever kind
    per recurrent layer: i32 type, u64 row bytes, R;  then the same for S
"""

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.engine.ggml import Tensor
from preread.errors import EngineError
from preread.values import Layer, Single, StateBlock, StateShape

Bytes = npt.NDArray[np.uint8]

_COUNT = struct.Struct("<I")
_CELL = struct.Struct("<iI")
_LAYERS = struct.Struct("<II")
_ROW = struct.Struct("<iQ")
_F32 = 0
_MARK = 4
"""Values of R that a mark takes."""
_DIGIT = 1 << 20


@dataclass(frozen=True, slots=True)
class States:
    """A model's states: the layers that have one, of how many there are, and what each keeps."""

    layers: tuple[int, ...]
    of: int
    shape: StateShape

    @property
    def rows_bytes(self) -> int:
        """Of all R and S of a sequence."""
        return 4 * len(self.layers) * (self.shape.r_values + self.shape.s_values)


def having_state(layers: Sequence[Layer]) -> tuple[int, ...]:
    """The layers that have a state."""
    return tuple(i for i, layer in enumerate(layers) if layer.state is not None)


def states_of(layers: Sequence[Layer]) -> States | None:
    """The states of a model of such layers; None: it has none."""
    found = having_state(layers)
    shape = layers[found[0]].state if found else None
    return None if shape is None else States(found, len(layers), shape)


def size_bytes(states: States, count: int = 1) -> int:
    """Of the block of a sequence that has a state (`count` 1) or has none (0)."""
    headers = _COUNT.size + _LAYERS.size + 2 * len(states.layers) * _ROW.size
    return headers + count * (_CELL.size + states.rows_bytes)


def put(into: Bytes, states: States, position: int, number: int) -> None:
    """Write the block of a sequence whose last token is at a position, zero but for a mark in its first layer's R."""
    frame = into.data
    _COUNT.pack_into(frame, 0, 1)
    _CELL.pack_into(frame, _COUNT.size, position, 0)
    _LAYERS.pack_into(frame, _COUNT.size + _CELL.size, 0, states.of)
    for at, row_bytes in _rows(states):
        _ROW.pack_into(frame, at, _F32, row_bytes)
    first = _rows(states)[0][0] + _ROW.size
    into[first : first + 4 * _MARK].view(np.float32)[:] = _mark(position, number)


def form(states: States) -> npt.NDArray[np.bool_]:
    """Which bytes of a block are form."""
    found = np.ones(size_bytes(states), bool)
    for at, row_bytes in _rows(states):
        found[at + _ROW.size : at + _ROW.size + row_bytes] = False
    return found


def block_of(saved: Bytes, states: States, layers: Sequence[int]) -> StateBlock:
    """What a block has of some recurrent layers.

    Raises:
        EngineError: the sequence has no state, or the block another form.
    """
    if len(saved) == size_bytes(states, 0):
        raise EngineError("a sequence without tokens has no state")
    expected, (position, _) = np.zeros(len(saved), np.uint8), _CELL.unpack_from(saved.data, _COUNT.size)
    if len(saved) == size_bytes(states):
        put(expected, states, position, 0)
    if len(saved) != size_bytes(states) or not np.array_equal(saved[same := form(states)], expected[same]):
        raise EngineError("this llama.cpp saves a state in a form that preread does not know")
    shape, rows = states.shape, _rows(states)
    r = np.empty((len(layers), shape.r_values), np.float32)
    s = np.empty((len(layers), shape.s_rows, shape.s_row_values), np.float32)
    for i, layer in enumerate(layers):
        index = states.layers.index(layer)
        for out, (at, row_bytes) in zip((r, s), (rows[index], rows[len(states.layers) + index]), strict=True):
            row = saved[at + _ROW.size : at + _ROW.size + row_bytes]
            out[i] = np.frombuffer(row.tobytes(), np.float32).reshape(out.shape[1:])
    return StateBlock(tuple(layers), position + 1, r, s)


class StateTensors:
    """R and S of every recurrent layer. Reading and writing is thread-safe as long as cells differ, or layers do.

    Args:
        ggml: the library.
        found: addresses of the tensors, by half ("r" or "s") and layer.
        states: that they are of.

    Raises:
        EngineError: a tensor is missing, or not as this module knows how to write it.
    """

    def __init__(self, ggml: ctypes.CDLL, found: Mapping[tuple[str, int], int], states: States) -> None:
        self._ggml, self._states = ggml, states
        widths = {"r": states.shape.r_values, "s": states.shape.s_values}
        self._found = {(half, layer): found.get((half, layer), 0) for half in widths for layer in states.layers}
        counts = {
            _count(ggml, address, f"{half} of layer {layer}", widths[half])
            for (half, layer), address in self._found.items()
            if widths[half]
        }
        if len(counts) != 1:
            raise EngineError("the model's states differ in number")
        self.count = counts.pop()

    def write(self, layer: int, cell: int, r: Single, s: Single) -> None:
        """Write one sequence's state in a layer: R (r_values,) and S (s_rows, s_row_values)."""
        for half, values in (("r", r), ("s", s)):
            flat = np.ascontiguousarray(values, np.float32)
            if flat.nbytes:
                address = self._found[half, layer]
                self._ggml.ggml_backend_tensor_set(address, flat.ctypes.data, cell * flat.nbytes, flat.nbytes)

    def marked(self, position: int, number: int) -> int:
        """The cell that `put` marked with these.

        Raises:
            EngineError: there is none, or several.
        """
        row, width = np.empty(_MARK, np.float32), 4 * self._states.shape.r_values
        address, cells = self._found["r", self._states.layers[0]], list[int]()
        for cell in range(self.count):
            self._ggml.ggml_backend_tensor_get(address, row.ctypes.data, cell * width, row.nbytes)
            if np.array_equal(row, _mark(position, number)):
                cells.append(cell)
        if len(cells) != 1:
            raise EngineError("the state that llama.cpp allocated cannot be found")
        return cells[0]


def _rows(states: States) -> list[tuple[int, int]]:
    """Of each row's header where it begins in a block, and the row's bytes: R of each layer, then S."""
    found, at = [], _COUNT.size + _CELL.size + _LAYERS.size
    for values in (states.shape.r_values, states.shape.s_values):
        for _ in states.layers:
            found.append((at, 4 * values))
            at += _ROW.size + 4 * values
    return found


def _mark(position: int, number: int) -> Single:
    """Unlike what any model computes, and what other allocations, or steps of this one, have left."""
    return np.array([-1e30, position, number % _DIGIT, number // _DIGIT % _DIGIT], np.float32)


def _count(ggml: ctypes.CDLL, address: int, what: str, width: int) -> int:
    """How many rows a tensor of states has."""
    if not address:
        raise EngineError(f"the graph of this model shows no state {what}")
    tensor = Tensor.from_address(address)
    ne, nb = list(tensor.ne), list(tensor.nb)
    plain = ggml.ggml_nbytes(address) == nb[1] * ne[1] and nb[1] == 4 * width
    if tensor.type != _F32 or ne[0] != width or ne[2] != 1 or ne[3] != 1 or not plain or width < _MARK:
        raise EngineError(f"the state {what} has type {tensor.type}, shape {ne}, strides {nb}: not plain float32 rows")
    return int(ne[1])
