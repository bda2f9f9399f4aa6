"""The KV cache's tensors inside llama.cpp: where they are, and reading and writing rows of them.

llama.cpp has no API for single layers of its cache. But its graph nodes are `ggml_tensor` structs, and those of the
cache are named `cache_k_l<layer>` and `cache_v_l<layer>`; their addresses do not change while the context lives. Row
*i* of such a tensor holds cell *i*: the K (after RoPE) or V of one token, `kv_heads · head_dim` float16 values. That V
lies that way too needs flash attention.
"""

import ctypes
import re
from collections.abc import Callable, Collection
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.errors import EngineError
from preread.values import Geometry, Half

_SLAB_CELLS = 4096
_MOST_OPERATIONS, _LAST_OPERATION = 256, b"GLU"
_F32, _F16 = 0, 1  # GGML_TYPE_F32, GGML_TYPE_F16
_EMBEDDINGS = b"token_embd.weight"
CACHED_KEY = re.compile(rb"cache_k_l(\d+)$")
_CACHE = re.compile(rb"cache_(k|v)_l(\d+)$")
_QUERY = re.compile(rb"Qcur-(\d+)$")
_END = re.compile(rb"l_out-(\d+)$")


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as far as it is read here."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


def library() -> ctypes.CDLL:
    """libggml-base as llama-cpp-python ships it, with the functions that it does not declare itself."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    for name in ("libggml-base.so", "libggml-base.dylib"):
        if (folder / name).exists():
            ggml = ctypes.CDLL(str(folder / name))
            break
    else:
        raise EngineError(f"libggml-base is not in {folder}: reinstall llama-cpp-python from source")
    for function in (ggml.ggml_backend_tensor_set, ggml.ggml_backend_tensor_get):
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        function.restype = None
    ggml.ggml_op_name.argtypes, ggml.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
    ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    ggml.ggml_nbytes.argtypes, ggml.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    ggml.ggml_get_type_traits.argtypes = [ctypes.c_int]
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return ggml


def operation_number(ggml: ctypes.CDLL, name: bytes) -> int:
    """ggml's number of an operation.

    Raises:
        EngineError: it knows none of that name.
    """
    for number in range(_MOST_OPERATIONS):
        if (known := ggml.ggml_op_name(number)) == name:
            return number
        if known == _LAST_OPERATION:  # the table ends there
            break
    raise EngineError(f"this llama.cpp knows no operation {name.decode()}")


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h, up to what is read here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class Embeddings:
    """The model's token embeddings, in whatever type the file has them."""

    def __init__(self, ggml: ctypes.CDLL, address: int, vocab_size: int) -> None:
        tensor = Tensor.from_address(address)
        traits = ggml.ggml_get_type_traits(tensor.type).contents
        ne, nb = list(tensor.ne), list(tensor.nb)
        if ne[1] != vocab_size or ne[2] != 1 or nb[1] * ne[1] != ggml.ggml_nbytes(address) or not tensor.data:
            raise EngineError(f"the token embeddings have shape {ne} and strides {nb}: not a row per token")
        if tensor.type != _F32 and not traits.to_float:
            raise EngineError(f"the token embeddings are of a type that cannot be read: {traits.type_name!r}")
        self._traits, self._data, self._type = traits, tensor.data, tensor.type
        self._width, self._row_bytes = ne[0], nb[1]

    def rows(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Embeddings (tokens, width) of token ids, which must be of the vocabulary. Thread-safe."""
        out = np.empty((len(tokens), self._width), np.float32)
        for row, token in zip(out, tokens.tolist(), strict=True):
            source = self._data + token * self._row_bytes
            if self._type == _F32:
                ctypes.memmove(row.ctypes.data, source, self._row_bytes)
            else:
                self._traits.to_float(source, row.ctypes.data, self._width)
        return out


class CacheTensors:
    """K and V tensors of every layer. Reading and writing rows is thread-safe as long as the rows differ."""

    def __init__(self, ggml: ctypes.CDLL, k: list[int], v: list[int], geometry: Geometry, cells: int) -> None:
        self._ggml, self._k, self._v, self._geometry, self._cells = ggml, k, v, geometry, cells
        self._row_bytes = 2 * geometry.kv_heads * geometry.head_dim

    def write(self, layer: int, first_cell: int, k: Half, v: Half) -> None:
        """Write rows of one layer; `k` and `v` have shape (kv_heads, tokens, head_dim)."""
        for tensor, rows in ((self._k[layer], k), (self._v[layer], v)):
            # (kv_heads, tokens, head_dim) -> a row per token, as the cache has it
            flat = np.ascontiguousarray(rows.transpose(1, 0, 2))
            offset, size = self._extent(first_cell, flat.shape[0])
            if flat.nbytes != size or flat.dtype != np.float16:
                raise EngineError(
                    f"rows of {flat.nbytes} bytes do not fit {size} bytes of cache: this is a bug in preread"
                )
            self._ggml.ggml_backend_tensor_set(tensor, flat.ctypes.data, offset, size)

    def read(self, layer: int, first_cell: int, tokens: int) -> tuple[Half, Half]:
        """K and V rows of one layer, each of shape (kv_heads, tokens, head_dim)."""
        offset, size = self._extent(first_cell, tokens)
        halves = []
        for tensor in (self._k[layer], self._v[layer]):
            flat = np.empty((tokens, self._geometry.kv_heads, self._geometry.head_dim), np.float16)
            self._ggml.ggml_backend_tensor_get(tensor, flat.ctypes.data, offset, size)
            halves.append(flat.transpose(1, 0, 2))
        return halves[0], halves[1]

    def first_values(self, layer: int, count: int) -> npt.NDArray[np.uint16]:
        """The first `count` values (cells, count) of every cell's key in a layer, as bits."""
        found = np.empty((self._cells, count), np.uint16)
        for start in range(0, self._cells, _SLAB_CELLS):
            cells = min(_SLAB_CELLS, self._cells - start)
            offset, size = self._extent(start, cells)
            rows = np.empty((cells, self._row_bytes // 2), np.uint16)
            self._ggml.ggml_backend_tensor_get(self._k[layer], rows.ctypes.data, offset, size)
            found[start : start + cells] = rows[:, :count]
        return found

    @property
    def cells(self) -> int:
        """How many there are."""
        return self._cells

    def key_at(self, layer: int) -> int:
        """The address of a layer's K tensor."""
        return self._k[layer]

    def _extent(self, first_cell: int, tokens: int) -> tuple[int, int]:
        if first_cell < 0 or first_cell + tokens > self._cells:
            raise EngineError(f"cells {first_cell} to {first_cell + tokens} are outside the cache of {self._cells}")
        return first_cell * self._row_bytes, tokens * self._row_bytes


def find_cache(ggml: ctypes.CDLL, observe: Callable[[Callable[[int], None]], None], geometry: Geometry) -> CacheTensors:
    """Find the cache's tensors among the nodes of one evaluated graph and what these view.

    Args:
        observe: runs a small decode and calls its argument with the address of every node.
        geometry: what the model's metadata says; tensors of another shape are refused.

    Raises:
        EngineError: a tensor is missing or is not what this module knows how to write.
    """
    found: dict[tuple[str, int], int] = {}
    nodes: list[int] = []

    def see(address: int) -> None:
        nodes.append(address)
        tensor = Tensor.from_address(address)
        for candidate in (tensor.view_src, *tensor.src):
            _note(candidate, found)
            if candidate:
                _note(Tensor.from_address(candidate).view_src, found)

    observe(see)
    missing = [f"{half} of layer {i}" for half in "kv" for i in range(geometry.layers) if (half, i) not in found]
    if missing:
        raise EngineError(f"the graph of this model shows no cache tensor for {missing[0]}")
    ends = {bytes(ggml.ggml_get_name(node)) for node in nodes}
    if absent := [i for i in range(geometry.layers) if b"l_out-%d" % i not in ends]:
        raise EngineError(f"the graph of this model does not name the end of layer {absent[0]}")
    cells = {_cells(ggml, address, geometry) for address in found.values()}
    if len(cells) != 1:
        raise EngineError("the cache's layers differ in size")
    k, v = ([found[half, i] for i in range(geometry.layers)] for half in "kv")
    return CacheTensors(ggml, k, v, geometry, cells.pop())


def find_embeddings(ggml: ctypes.CDLL, observe: Callable[[Callable[[int], None]], None], vocab_size: int) -> Embeddings:
    """Find the token embeddings among what the nodes of one evaluated graph read.

    Raises:
        EngineError: the graph does not read them, or they are not as this module knows how to read them.
    """
    found: set[int] = set()

    def see(address: int) -> None:
        for source in Tensor.from_address(address).src:
            if source and Tensor.from_address(source).name == _EMBEDDINGS:
                found.add(source)

    observe(see)
    if len(found) != 1:
        raise EngineError("the graph of this model shows no token embeddings")
    return Embeddings(ggml, found.pop(), vocab_size)


class Queries:
    """The queries of one evaluated graph, as they meet K: after RoPE where a model has it. Given to `Gate.observe`."""

    def __init__(self, ggml: ctypes.CDLL, tokens: int, geometry: Geometry) -> None:
        self._ggml, self._tokens, self._geometry = ggml, tokens, geometry
        self._found: dict[int, npt.NDArray[np.float32]] = {}

    def see(self, address: int) -> bool:
        """Whether a node is some layer's queries, a vector for each head and token."""
        tensor = Tensor.from_address(address)
        ne = list(tensor.ne)
        shaped = ne[0] == self._geometry.head_dim and ne[2] == self._tokens and ne[3] == 1
        return bool(_QUERY.match(tensor.name)) and tensor.type == _F32 and shaped

    def take(self, address: int) -> None:
        """Copy them; of several nodes of one layer the last is what attention reads."""
        tensor = Tensor.from_address(address)
        match = _QUERY.match(tensor.name)
        if match is None or self._ggml.ggml_nbytes(address) != 4 * tensor.ne[0] * tensor.ne[1] * tensor.ne[2]:
            return
        rows = np.empty((tensor.ne[2], tensor.ne[1], tensor.ne[0]), np.float32)
        self._ggml.ggml_backend_tensor_get(address, rows.ctypes.data, 0, rows.nbytes)
        self._found[int(match[1])] = rows

    def all(self) -> npt.NDArray[np.float32] | None:
        """Queries (layers, heads, tokens, head_dim); None: the graph does not show those of every layer."""
        layers = [self._found.get(layer) for layer in range(self._geometry.layers)]
        rows = [layer for layer in layers if layer is not None]
        if len(rows) < len(layers) or len({row.shape for row in rows}) != 1:
            return None
        return np.stack(rows).transpose(0, 2, 1, 3)


class Residuals:
    """The residual stream at the end of some layers, batch after batch. Given to `Gate.observe`."""

    def __init__(self, ggml: ctypes.CDLL, layers: Collection[int]) -> None:
        self._ggml, self._found = ggml, {layer: list[npt.NDArray[np.float32]]() for layer in layers}

    def see(self, address: int) -> bool:
        """Whether a node is the end of one of these layers, a vector for each token."""
        tensor = Tensor.from_address(address)
        match = _END.match(tensor.name)
        return match is not None and int(match[1]) in self._found and tensor.type == _F32 and tensor.ne[2] == 1

    def take(self, address: int) -> None:
        """Copy it."""
        tensor = Tensor.from_address(address)
        match = _END.match(tensor.name)
        if match is None or self._ggml.ggml_nbytes(address) != 4 * tensor.ne[0] * tensor.ne[1]:
            return
        rows = np.empty((tensor.ne[1], tensor.ne[0]), np.float32)
        self._ggml.ggml_backend_tensor_get(address, rows.ctypes.data, 0, rows.nbytes)
        self._found[int(match[1])].append(rows)

    def of(self, layer: int, tokens: int) -> npt.NDArray[np.float32]:
        """The stream (tokens, width) at the end of a layer.

        Raises:
            EngineError: the graphs did not show it for so many tokens.
        """
        rows = self._found[layer]
        if sum(map(len, rows)) != tokens:
            raise EngineError(f"the graph of this model does not show what leaves layer {layer}")
        return np.concatenate(rows)


def _note(address: int | None, found: dict[tuple[str, int], int]) -> None:
    if address and (match := _CACHE.match(Tensor.from_address(address).name)):
        found[match[1].decode(), int(match[2])] = address


def _cells(ggml: ctypes.CDLL, address: int, geometry: Geometry) -> int:
    """Number of rows of a cache tensor, after checking that the struct is read right and the rows are as expected."""
    tensor, width = Tensor.from_address(address), geometry.kv_heads * geometry.head_dim
    ne, nb = list(tensor.ne), list(tensor.nb)
    if bytes(ggml.ggml_get_name(address)) != tensor.name or ggml.ggml_nbytes(address) != nb[1] * ne[1]:
        raise EngineError("this llama.cpp lays out ggml_tensor in a way that preread does not know")
    if tensor.type != _F16 or ne[0] != width or nb[0] != 2 or nb[1] != 2 * width or ne[2] != 1 or ne[3] != 1:
        raise EngineError(
            f"{tensor.name.decode()} has type {tensor.type}, shape {ne}, strides {nb}: not plain float16 rows"
        )
    return int(ne[1])
