"""Slot files of a llama-server: the tokens of one sequence, and their KV as the server's cache has it.

Their form differs between releases and settings, so it is learnt from files that this very server has saved, of tokens
that are known: `learn`. What it has to be in any case, little-endian:

    8 bytes (magic and version), u32 words, and so many words: the token ids among some others
    u32 streams, u32 cells (those of slot 0), per cell: i32 position, u32 sequences (1), i32 sequence
    u32 V transposed, u32 layers, and words that are zero
    per layer: i32 type (1: f16), u64 row bytes, a row of K for each cell
    V not transposed: the same again; transposed: per layer i32 type, u32 value bytes, u32 rows, and a row per channel
    a zero word for each further stream

(llama.cpp, `state_seq_save_file` and `llama_kv_cache::state_write`.) Pure: arrays and bytes in, arrays out.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.codec.base import finite
from preread.errors import CorruptData
from preread.plan.match import Tokens
from preread.values import Geometry, Half, KVBlock, Span

Bytes = npt.NDArray[np.uint8]
Words = tuple[int | None, ...]
"""Words beside the token ids. None: how many tokens there are."""

_F16: Final = 1
_MOST_WORDS: Final = 16
_MOST_STREAMS: Final = 256
_ROWS: Final = struct.Struct("<iQ")
_CHANNELS: Final = struct.Struct("<iII")


@dataclass(frozen=True, slots=True)
class Form:
    """How one server writes slot files.

    Attributes:
        geometry: of its cache.
        magic: the first eight bytes.
        before, after: words in front of the token ids, and behind them.
        streams: parts of its cache, of which one has a sequence's cells.
        transposed: V has a row for each channel, as without flash attention.
        zeros: words between the number of layers and the first layer: how rows are rotated, which they must not be.
    """

    geometry: Geometry
    magic: bytes
    before: Words
    after: Words
    streams: int
    transposed: bool
    zeros: int

    @property
    def row_bytes(self) -> int:
        """Of K, or V, of one token in one layer."""
        return 2 * self.geometry.kv_heads * self.geometry.head_dim

    def size_bytes(self, count: int) -> int:
        """Of a file of so many tokens."""
        return self._v_at(count, self.geometry.layers) + 4 * (self.streams - 1)

    def _head_bytes(self, count: int) -> int:
        """Up to the first layer's K."""
        words = 1 + len(self.before) + count + len(self.after) + 2 + 3 * count + 2 + self.zeros
        return len(self.magic) + 4 * words

    def _k_at(self, count: int, layer: int) -> int:
        return self._head_bytes(count) + layer * (_ROWS.size + self.row_bytes * count)

    def _v_at(self, count: int, layer: int) -> int:
        return self._k_at(count, self.geometry.layers + layer)  # both kinds of heads have the same size

    def frame(self, tokens: Tokens, file: Bytes) -> None:
        """Write everything but the rows into `file` (size_bytes,), which is zero."""
        count, layers = len(tokens), self.geometry.layers
        words = [count if word is None else word for word in (*self.before, *self.after)]
        told = np.array(words, np.int64)
        head = np.concatenate([told[: len(self.before)], tokens.astype(np.int64), told[len(self.before) :]])
        cells = np.stack([np.arange(count), np.ones(count), np.zeros(count)], axis=1).astype(np.int64).ravel()
        rest = np.array([self.streams, count], np.int64)
        last = np.array([self.transposed, layers, *([0] * self.zeros)], np.int64)
        all_words = np.concatenate([np.array([len(head)]), head, rest, cells, last]).astype("<i4")
        file[: len(self.magic)] = np.frombuffer(self.magic, np.uint8)
        file[len(self.magic) : self._head_bytes(count)] = all_words.view(np.uint8)
        row_bytes = self.row_bytes
        for layer in range(layers):
            _ROWS.pack_into(file.data, self._k_at(count, layer), _F16, row_bytes)
            if self.transposed:
                _CHANNELS.pack_into(file.data, self._v_at(count, layer), _F16, 2, row_bytes // 2)
            else:
                _ROWS.pack_into(file.data, self._v_at(count, layer), _F16, row_bytes)

    def put(self, file: Bytes, count: int, block: KVBlock) -> None:
        """Write rows into the frame of a file of `count` tokens. Thread-safe for different rows.

        Raises:
            CorruptData: "shape": they are not of such a file; "values": some are not finite.
        """
        shape = self.geometry
        expected = (len(block.layers), shape.kv_heads, len(block.tokens), shape.head_dim)
        inside = 0 <= block.layers.start and block.layers.stop <= shape.layers and block.tokens.stop <= count
        if block.k.shape != expected or block.v.shape != expected or not inside:
            raise CorruptData("shape", f"a KV block of shape {block.k.shape} does not fit the expected {expected}")
        if not (finite(block.k) and finite(block.v)):
            raise CorruptData("values", "a KV block has numbers that are not finite")
        span = slice(block.tokens.start, block.tokens.stop)
        for i, (k, v) in enumerate(self._views(file, count, block.layers)):
            k[:, span] = block.k[i]
            v[:, span] = block.v[i]

    def rows(self, file: Bytes, count: int, tokens: Span, layers: Span) -> KVBlock:
        """Some rows of a file of `count` tokens, copied."""
        span = slice(tokens.start, tokens.stop)
        views = [(k[:, span], v[:, span]) for k, v in self._views(file, count, layers)]
        return KVBlock(tokens, layers, np.stack([k for k, _ in views]), np.stack([v for _, v in views]))

    def _views(self, file: Bytes, count: int, layers: Span) -> Iterator[tuple[Half, Half]]:
        """K and V (kv_heads, tokens, head_dim) of some layers, where they lie in the file."""
        heads, width, size = self.geometry.kv_heads, self.geometry.head_dim, self.row_bytes * count
        for layer in range(layers.start, layers.stop):
            k_at, v_at = self._k_at(count, layer) + _ROWS.size, self._v_at(count, layer) + _ROWS.size
            k, v = file[k_at : k_at + size].view(np.float16), file[v_at : v_at + size].view(np.float16)
            by_token = v.reshape(heads, width, count).transpose(0, 2, 1)
            if not self.transposed:
                by_token = v.reshape(count, heads, width).transpose(1, 0, 2)
            yield k.reshape(count, heads, width).transpose(1, 0, 2), by_token


def learn(saved: Sequence[tuple[Bytes, Tokens]], geometry: Geometry) -> Form:
    """The form of files that a server has saved of slot 0.

    Args:
        saved: each file whole, and the token ids that it is of; of different numbers, so that what follows from the
            number is told from what only looks like it.
        geometry: of the model.

    Raises:
        CorruptData: why the files are not understood to the last byte.
    """
    forms = {_form(file, tokens, geometry) for file, tokens in saved}
    if len(forms) != 1 or len({len(tokens) for _, tokens in saved}) < 2:
        raise CorruptData("form", "slot files of different numbers of tokens do not follow one form")
    return forms.pop()


def _form(file: Bytes, tokens: Tokens, geometry: Geometry) -> Form:
    """The form of one file.

    Raises:
        CorruptData: "length", "tokens", "form", "cells", "shape" or "type": what it has is something else.
    """
    count = len(tokens)
    words = file[: len(file) // 4 * 4].view("<i4")
    if len(words) < 3 or not 0 < count <= words[2] <= count + 2 * _MOST_WORDS or len(words) < 3 + int(words[2]):
        raise CorruptData("length", "a slot file does not have the tokens that were computed")
    packed = words[3 : 3 + int(words[2])]
    found = [at for at in range(len(packed) - count + 1) if np.array_equal(packed[at : at + count], tokens)]
    if len(found) != 1 or max(found[0], len(packed) - count - found[0]) > _MOST_WORDS:
        raise CorruptData("tokens", "a slot file does not have the tokens that were computed")
    before, after = _told(packed[: found[0]], count), _told(packed[found[0] + count :], count)
    rest = words[3 + len(packed) :]
    if len(rest) < 4 + 3 * count or not 1 <= rest[0] <= _MOST_STREAMS or rest[1] != count:
        raise CorruptData("form", "a slot file does not have a cell for each token in the first part of its cache")
    cells = rest[2 : 2 + 3 * count].reshape(count, 3)
    if (cells[:, 0] != np.arange(count)).any() or (cells[:, 1] != 1).any() or (cells[:, 2] != 0).any():
        raise CorruptData("cells", "the server's cells hold more than a position and a sequence")
    transposed, layers = (int(word) for word in rest[2 + 3 * count : 4 + 3 * count])
    if transposed not in (0, 1) or layers != geometry.layers:
        raise CorruptData("shape", f"the server's cache has {layers} layers, and this model {geometry.layers}")
    zeros = _zeros(rest[4 + 3 * count :], 2 * geometry.kv_heads * geometry.head_dim)
    form = Form(geometry, bytes(file[:8]), before, after, int(rest[0]), bool(transposed), zeros)
    _check(form, file, tokens)
    return form


def _told(words: npt.NDArray[np.int32], count: int) -> Words:
    return tuple(None if word == count else int(word) for word in words.tolist())


def _zeros(words: npt.NDArray[np.int32], row_bytes: int) -> int:
    """How many zero words lie in front of the first layer of f16 rows.

    Raises:
        CorruptData: "type": something else lies there.
    """
    for number in range(min(_MOST_WORDS, len(words) - 3)):
        if words[number : number + 3].tolist() == [_F16, row_bytes, 0]:
            return number
        if words[number]:
            break
    raise CorruptData(
        "type",
        f"the server does not keep {row_bytes} bytes of f16 a token and layer: it runs another model, or with cache "
        "types (-ctk, -ctv) other than f16, which cannot be written yet",
    )


def _check(form: Form, file: Bytes, tokens: Tokens) -> None:
    """Raises CorruptData where the form does not give the whole file again, byte for byte."""
    count, layers = len(tokens), Span(0, form.geometry.layers)
    if len(file) != form.size_bytes(count):
        raise CorruptData("length", f"a slot file has {len(file)} bytes, not the {form.size_bytes(count)} expected")
    again = np.zeros_like(file)
    form.frame(tokens, again)
    form.put(again, count, form.rows(file, count, Span(0, count), layers))
    if not np.array_equal(again, file):
        raise CorruptData("form", "a slot file has parts that are not understood")
