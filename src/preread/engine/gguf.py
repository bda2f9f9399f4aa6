"""What a GGUF file says of itself before its weights begin. Pure: bytes in, a header out.

GGUF (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3: a magic, a version, two counts, typed key-value pairs,
the tensors' names, shapes, types and offsets, and then their data, which is not looked at. Long arrays, such as a
tokenizer's, are counted and passed over.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from preread.errors import CorruptData

MAX_HEADER_BYTES: Final = 2**26
"""A vocabulary of 262,144 tokens and its merges take some 16 MB."""

_MOST_PAIRS: Final = 2**14
_MOST_TENSORS: Final = 2**17
_MOST_NAME_BYTES: Final = 2**10
_MOST_TEXT_BYTES: Final = 2**20
_LONGEST_ARRAY: Final = 1024
"""Arrays with a value for each layer are read; longer ones are a tokenizer's."""

_NUMBERS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LENGTH: Final = struct.Struct("<Q")

Number = int | float | bool


@dataclass(frozen=True, slots=True)
class Long:
    """An array that was passed over, of so many items."""

    count: int


Value = Number | str | tuple[Number, ...] | Long


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its shape, fastest axis first, its type by ggml's number, and where its data begins.

    `offset_bytes` counts from the header's `data_start`.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that comes before the weights.

    Attributes:
        metadata: keys and values.
        tensors: in the file's order.
        data_start: at which byte of the file the tensors' data begins.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_start: int

    def number(self, key: str, default: int = 0) -> int:
        """A whole number of the metadata.

        Raises:
            CorruptData: "gguf": it is there and is none.
        """
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise CorruptData("gguf", f"{key} is {_shown(value)}, not a number of things")
        return int(value)

    def numbers(self, key: str, count: int, default: int = 0) -> tuple[int, ...]:
        """A whole number for each of `count` layers, whether the file has one for all or a list.

        Raises:
            CorruptData: "gguf": it is there and is neither.
        """
        value = self.metadata.get(key)
        if not isinstance(value, tuple):
            return (self.number(key, default),) * count
        if len(value) < count or not all(isinstance(one, int) and 0 <= one < 2**31 for one in value):
            raise CorruptData("gguf", f"{key} is {_shown(value)}, not a number for each of {count} layers")
        return tuple(int(one) for one in value[:count])

    def text(self, key: str) -> str:
        """A text of the metadata; "" where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""


class Unfinished(CorruptData):
    """The bytes end before the header does.

    Attributes:
        needed_bytes: it has more than so many.
    """

    def __init__(self, needed_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        super().__init__("length", f"a GGUF header of more than {needed_bytes} bytes ends too early")


def parse(data: bytes | memoryview) -> Header:
    """Read a header from a file's first bytes.

    Raises:
        Unfinished: there are too few of them.
        CorruptData: "magic", "version", or "gguf" (a count, name, type or shape that no sound file has).
    """
    reader = _Reader(memoryview(data))
    if bytes(reader.take(4)) != b"GGUF":
        raise CorruptData("magic", "this is not a GGUF file")
    version = reader.number("<I")
    if version not in (2, 3):
        raise CorruptData("version", f"GGUF of version {version} is not known: versions 2 and 3 are")
    tensor_count, pair_count = reader.number("<Q"), reader.number("<Q")
    if tensor_count > _MOST_TENSORS or pair_count > _MOST_PAIRS:
        raise CorruptData("gguf", f"header counts {tensor_count} tensors and {pair_count} pairs")
    metadata: dict[str, Value] = {}
    for _ in range(pair_count):
        key = reader.name()
        metadata[key] = reader.value(key)
    tensors = tuple(reader.tensor() for _ in range(tensor_count))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise CorruptData("gguf", f"general.alignment is {_shown(alignment)}")
    return Header(MappingProxyType(metadata), tensors, -(-reader.place // alignment) * alignment)


class _Reader:
    """Goes through bytes once, and looks before each step whether they are there."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.place = data, 0

    def take(self, size_bytes: int) -> memoryview:
        stop = self.place + size_bytes
        if stop > MAX_HEADER_BYTES:
            raise CorruptData("gguf", f"header has more than {MAX_HEADER_BYTES} bytes")
        if stop > len(self._data):
            raise Unfinished(len(self._data))
        piece, self.place = self._data[self.place : stop], stop
        return piece

    def number(self, form: str) -> int:
        (found,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(found)

    def name(self) -> str:
        return self._text(_MOST_NAME_BYTES)

    def value(self, key: str) -> Value:
        kind = self.number("<I")
        if kind == _STRING:
            return self._text(_MOST_TEXT_BYTES)
        if kind == _ARRAY:
            return self._array(key)
        form = self._form(kind, key)
        found: Number = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def tensor(self) -> Tensor:
        name, axes = self.name(), self.number("<I")
        if not 1 <= axes <= 4:
            raise CorruptData("gguf", f"tensor {name!r} has {axes} axes")
        shape = struct.unpack(f"<{axes}Q", self.take(8 * axes))
        kind, offset_bytes = struct.unpack("<IQ", self.take(12))
        return Tensor(name, shape, kind, offset_bytes)

    def _array(self, key: str) -> Value:
        kind, count = self.number("<I"), self.number("<Q")
        if count > MAX_HEADER_BYTES:
            raise CorruptData("gguf", f"{key} counts {count} items")
        if kind == _STRING:
            self._pass_texts(count)
            return Long(count)
        form = self._form(kind, key)
        piece = self.take(count * struct.calcsize(form))
        return struct.unpack(f"<{count}{form[1]}", piece) if count <= _LONGEST_ARRAY else Long(count)

    def _pass_texts(self, count: int) -> None:
        """A vocabulary has hundreds of thousands, so nothing but their lengths is looked at, and bounds at the end."""
        length, data, place = _LENGTH.unpack_from, self._data, self.place
        last = len(data) - _LENGTH.size
        for _ in range(count):
            if place > last:
                place += _LENGTH.size
                break
            place += _LENGTH.size + length(data, place)[0]
        self.take(place - self.place)

    def _form(self, kind: int, key: str) -> str:
        if (form := _NUMBERS.get(kind)) is None:
            raise CorruptData("gguf", f"{key} is of type {kind}, which no value has")
        return form

    def _text(self, most_bytes: int) -> str:
        size_bytes = self.number("<Q")
        if size_bytes > most_bytes:
            raise CorruptData("gguf", f"a text of {size_bytes} bytes is longer than the {most_bytes} it may have")
        return bytes(self.take(size_bytes)).decode(errors="replace")


def _shown(value: Value) -> str:
    return repr(value)[:80]
