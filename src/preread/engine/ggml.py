"""The KV cache's tensors inside llama.cpp: where they are, and reading and writing rows of them.

llama.cpp has no API for single layers of its cache. But its graph nodes are `ggml_tensor` structs, and those of the
cache are named `cache_k_l<layer>` and `cache_v_l<layer>`; their addresses do not change while the context lives, and
`graph.py` finds them. Row *i* of such a tensor holds cell *i*: the K (after RoPE) or V of one token, float16, a vector
for each head. That V lies that way too needs flash attention.
"""

import ctypes
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.errors import EngineError
from preread.values import Geometry, Half, Layer

_SLAB_CELLS = 4096
_MOST_OPERATIONS, _LAST_OPERATION = 256, b"GLU"
_F32, _F16 = 0, 1  # GGML_TYPE_F32, GGML_TYPE_F16
_EMBEDDINGS = b"token_embd.weight"
CACHED_KEY = re.compile(rb"cache_k_l(\d+)$")
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
    ggml.ggml_backend_buffer_is_host.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_buffer_is_host.restype = ctypes.c_bool
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
    """K and V tensors of the layers that have rows. Reading and writing is thread-safe as long as the rows differ.

    Args:
        ggml: the library.
        found: addresses of the tensors, by half ("k" or "v") and layer.
        layers: what each of the model's layers keeps.

    Raises:
        EngineError: a tensor is missing, or is not what this class knows how to write.
    """

    def __init__(self, ggml: ctypes.CDLL, found: Mapping[tuple[str, int], int], layers: Sequence[Layer]) -> None:
        self._ggml, self._found, self._layers = ggml, found, layers
        counts = set[int]()
        for layer, kept in enumerate(layers):
            for half, width in zip("kv", _widths(kept), strict=True):
                if width and (half, layer) not in found:
                    raise EngineError(f"the graph of this model shows no cache tensor for {half} of layer {layer}")
                if width:
                    counts.add(_cells(ggml, found[half, layer], width))
        if len(counts) > 1:
            raise EngineError("the cache's layers differ in size")
        self._cells = max(counts, default=0)

    def write(self, layer: int, first_cell: int, k: Half, v: Half) -> None:
        """Write rows of one layer; `k` has shape (kv_heads, tokens, k_dim), and `v` (kv_heads, tokens, v_dim)."""
        for half, rows, width in zip("kv", (k, v), _widths(self._layers[layer]), strict=True):
            # (kv_heads, tokens, dim) -> a row per token, as the cache has it
            flat = np.ascontiguousarray(rows.transpose(1, 0, 2))
            offset, size = self._extent(first_cell, flat.shape[0], width)
            if flat.nbytes != size or flat.dtype != np.float16:
                raise EngineError(
                    f"rows of {flat.nbytes} bytes do not fit {size} bytes of cache: this is a bug in preread"
                )
            if size:
                self._ggml.ggml_backend_tensor_set(self._found[half, layer], flat.ctypes.data, offset, size)

    def read(self, layer: int, first_cell: int, tokens: int) -> tuple[Half, Half]:
        """K and V rows of one layer: (kv_heads, tokens, k_dim) and (kv_heads, tokens, v_dim)."""
        shape, halves = self._layers[layer].rows, []
        assert shape is not None
        for half, dim in (("k", shape.k_dim), ("v", shape.v_dim)):
            flat = np.empty((tokens, shape.kv_heads, dim), np.float16)
            offset, size = self._extent(first_cell, tokens, shape.kv_heads * dim)
            if size:
                self._ggml.ggml_backend_tensor_get(self._found[half, layer], flat.ctypes.data, offset, size)
            halves.append(flat.transpose(1, 0, 2))
        return halves[0], halves[1]

    def first_values(self, layer: int, count: int) -> npt.NDArray[np.uint16]:
        """The first `count` values (cells, count) of every cell's key in a layer, as bits."""
        found, (width, _) = np.empty((self._cells, count), np.uint16), _widths(self._layers[layer])
        tensor = Tensor.from_address(self._found["k", layer])
        # A cache may have a million cells: a few bytes of each are read where they lie, not all of its keys copied.
        if tensor.data and self._ggml.ggml_backend_buffer_is_host(tensor.buffer):
            keys = np.ctypeslib.as_array((ctypes.c_uint8 * (2 * width * self._cells)).from_address(tensor.data))
            # One value for all of a cell's: value by value it takes more than twice as long.
            firsts = np.ndarray((self._cells,), f"V{2 * count}", keys, strides=(2 * width,))
            found.view(firsts.dtype)[:, 0] = firsts
            return found
        for start in range(0, self._cells, _SLAB_CELLS):
            cells = min(_SLAB_CELLS, self._cells - start)
            offset, size = self._extent(start, cells, width)
            rows = np.empty((cells, width), np.uint16)
            self._ggml.ggml_backend_tensor_get(self._found["k", layer], rows.ctypes.data, offset, size)
            found[start : start + cells] = rows[:, :count]
        return found

    @property
    def cells(self) -> int:
        """How many there are; 0: no layer has rows."""
        return self._cells

    def key_at(self, layer: int) -> int:
        """The address of a layer's K tensor."""
        return self._found["k", layer]

    def _extent(self, first_cell: int, tokens: int, width: int) -> tuple[int, int]:
        if first_cell < 0 or first_cell + tokens > self._cells:
            raise EngineError(f"cells {first_cell} to {first_cell + tokens} are outside the cache of {self._cells}")
        return 2 * first_cell * width, 2 * tokens * width


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


def _widths(layer: Layer) -> tuple[int, int]:
    """Values of a row of K, and of V."""
    shape = layer.rows
    return (0, 0) if shape is None else (shape.kv_heads * shape.k_dim, shape.kv_heads * shape.v_dim)


def _cells(ggml: ctypes.CDLL, address: int, width: int) -> int:
    """Number of rows of a cache tensor, after checking that the struct is read right and the rows are as expected."""
    tensor = Tensor.from_address(address)
    ne, nb = list(tensor.ne), list(tensor.nb)
    if bytes(ggml.ggml_get_name(address)) != tensor.name or ggml.ggml_nbytes(address) != nb[1] * ne[1]:
        raise EngineError("this llama.cpp lays out ggml_tensor in a way that preread does not know")
    if tensor.type != _F16 or ne[0] != width or nb[0] != 2 or nb[1] != 2 * width or ne[2] != 1 or ne[3] != 1:
        raise EngineError(
            f"{tensor.name.decode()} has type {tensor.type}, shape {ne}, strides {nb}: not plain float16 rows"
        )
    return int(ne[1])
