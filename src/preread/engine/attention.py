"""Attention in tiles, instead of llama.cpp's own row by row. What it does is told in `attention.c`."""

import ctypes
import weakref

from preread.compiled import library as compiled
from preread.errors import EngineError

_ATTENTION, _CUSTOM = b"FLASH_ATTN_EXT", b"CUSTOM"
_MOST_OPERATIONS, _NONE = 256, -1


class _Operations(ctypes.Structure):
    """`struct operations` of attention.c."""

    _fields_ = (
        ("attention", ctypes.c_int32),
        ("custom", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("sight", ctypes.c_void_p),
    )


def attends_in_tiles(bits: int) -> bool:
    """Whether this machine can, with vectors of at most so many bits: x86-64 with AVX2 (256).

    Elsewhere attention stays llama.cpp's.
    """
    library = compiled("preread.engine._attention")
    library.preread_attention_here.restype = ctypes.c_bool
    return bool(library.preread_attention_here(bits))


class Attention:
    """What the gate gives every node of a graph to. Needs `struct ggml_tensor` to be as `ggml.Tensor` describes it."""

    def __init__(self, ggml: ctypes.CDLL, bits: int) -> None:
        """`bits`: of the widest vectors that it may use."""
        numbers: dict[bytes, int] = {}
        for number in range(_MOST_OPERATIONS):  # ggml knows both names: the loop ends before its table does
            numbers[ggml.ggml_op_name(number)] = number
            if _ATTENTION in numbers and _CUSTOM in numbers:
                break
        else:
            raise EngineError("this llama.cpp names its operations in a way that preread does not know")
        self._number = numbers[_ATTENTION]
        self._operations = _Operations(self._number, numbers[_CUSTOM], bits)
        self._library = compiled("preread.engine._attention")
        free = weakref.finalize(self, self._library.preread_attention_free, ctypes.pointer(self._operations))
        free.atexit = False  # some thread may still be decoding

    @property
    def take(self) -> ctypes.c_void_p:
        """Address of the function."""
        return ctypes.cast(self._library.preread_attention_take, ctypes.c_void_p)

    @property
    def on(self) -> bool:
        """Whether nodes of graphs that are built from now on are taken."""
        return bool(self._operations.attention == self._number)

    @on.setter
    def on(self, wanted: bool) -> None:
        self._operations.attention = self._number if wanted else _NONE

    @property
    def operations(self) -> ctypes.c_void_p:
        """What the function must be given beside a node."""
        return ctypes.cast(ctypes.pointer(self._operations), ctypes.c_void_p)
