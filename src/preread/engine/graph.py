"""What llama.cpp's graphs show of a model's memory: where its tensors are, and when a layer's are read.

A layer's rows are read after the layer below it has ended. Its state may be read before: some architectures look at it
where the graph is built, in the middle of that layer or at the very start. So it is not assumed but looked at, in
graphs that are evaluated as the engine starts, after the end of which layer each layer's memory is read first. On
other graphs of the model, that holds as well: they are made of the same nodes in the same order.
"""

import ctypes
import re
from dataclasses import dataclass, field
from typing import Final

from preread.engine.ggml import Tensor
from preread.errors import EngineError

_MEMORY: Final = re.compile(rb"cache_([kvrs])_l(\d+)$")
_ENDS: Final = (b"l_out-", b"nemotron_h_block_out-")
"""What the last node of a layer is named, before the layer's number."""
_VIEWS: Final = {b"NONE", b"VIEW", b"RESHAPE", b"PERMUTE", b"TRANSPOSE"}
"""Operations that read nothing."""


@dataclass(frozen=True, slots=True)
class Order:
    """When a model's memory is read.

    Attributes:
        end: what the last node of a layer is named, before its number.
        needed: behind the first so many layers (none, one, … all), how many layers' memory has to be in place before
            the graph may go on.
    """

    end: bytes
    needed: tuple[int, ...]


@dataclass(slots=True)
class Graph:
    """What was seen of some graphs. Give `see` every node that is evaluated, and call `begin` before each graph.

    Attributes:
        found: the address of each tensor of the memory, by half ("k", "v", "r" or "s") and layer.
    """

    ggml: ctypes.CDLL
    layers: int
    found: dict[tuple[str, int], int] = field(default_factory=dict)
    _ended: dict[bytes, set[int]] = field(default_factory=dict)
    _last: dict[bytes, int] = field(default_factory=dict)
    _first: dict[tuple[bytes, int], int] = field(default_factory=dict)

    def begin(self) -> None:
        """A graph is going to be evaluated."""
        self._last = {}

    def see(self, address: int) -> None:
        """One of its nodes, before it is computed."""
        tensor = Tensor.from_address(address)
        reads = self.ggml.ggml_op_name(tensor.op) not in _VIEWS
        for source in (tensor.view_src, *tensor.src):
            for root in (source, Tensor.from_address(source).view_src if source else None):
                if root and (match := _MEMORY.match(Tensor.from_address(root).name)):
                    layer = int(match[2])
                    self.found[match[1].decode(), layer] = root
                    if reads:
                        self._read(layer)
        self._end(bytes(tensor.name))

    def order(self) -> Order:
        """When memory is read.

        Raises:
            EngineError: the graphs do not name the end of each layer.
        """
        end = next((end for end in _ENDS if len(self._ended.get(end, ())) == self.layers), None)
        if end is None:
            ended = self._ended.get(_ENDS[0], set())
            first = next(layer for layer in range(self.layers) if layer not in ended)
            raise EngineError(f"the graph of this model does not name the end of layer {first}")
        first_read = {layer: after for (name, layer), after in self._first.items() if name == end}
        needed = [
            max((layer + 1 for layer, after in first_read.items() if after <= ended), default=0)
            for ended in range(self.layers + 1)
        ]
        return Order(end, tuple(needed))

    def _read(self, layer: int) -> None:
        for end in _ENDS:
            key, after = (end, layer), self._last.get(end, 0)
            self._first[key] = min(self._first.get(key, after), after)

    def _end(self, name: bytes) -> None:
        for end in _ENDS:
            if name.startswith(end) and (number := name[len(end) :]).isdigit():
                self._ended.setdefault(end, set()).add(int(number))
                self._last[end] = int(number) + 1
