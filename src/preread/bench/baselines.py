"""What others do to a KV cache, as codecs of the same seam, so that they are measured through real bytes as well.

KIVI (Liu et al., arXiv 2402.02750): groups of 64, K along tokens for each channel, V along channels for each token, and
no entropy coding. Its authors also keep up to 128 recent tokens exact; here only those beyond the last 32 whole ones
are, since on short contexts the rest would cost it more bytes than it spares loss.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from preread.codec.base import Payload, block_shape, check_block
from preread.errors import CorruptData
from preread.values import Geometry, Half, KVBlock, KVShape, Span

Single = npt.NDArray[np.float32]

KIVI_BITS = (4, 3, 2)
_GROUP, _EXACT = 64, 32


@dataclass(frozen=True, slots=True)
class Kivi:
    """A `Codec` of `bits` a value, and half a bit for each group's minimum and step."""

    bits: int

    @property
    def rung(self) -> str:
        return f"kivi-{self.bits}"

    @property
    def version(self) -> str:
        return f"{self.rung}/1"

    def encode(self, block: KVBlock) -> bytes:
        check_block(block)
        cut = len(block.tokens) // _EXACT * _EXACT
        parts = [block.k[:, :, cut:].tobytes(), block.v[:, :, cut:].tobytes()]
        for half in (block.k[:, :, :cut].transpose(0, 1, 3, 2), block.v[:, :, :cut]):
            rows = half.reshape(prod(half.shape[:3]), half.shape[3]).astype(np.float32)
            parts += [self._pack(rows[:, start : start + _GROUP]) for start in range(0, rows.shape[1], _GROUP)]
        return b"".join(parts)

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry | KVShape) -> KVBlock:
        *shape, _, dim = _, _, count, _, _ = block_shape(tokens, layers, geometry)
        cut, at = count // _EXACT * _EXACT, 0
        k, v = np.empty((*shape, dim), np.float16), np.empty((*shape, dim), np.float16)
        for half in (k, v):
            exact = half[:, :, cut:]
            exact[...] = np.frombuffer(payload, np.float16, exact.size, at).reshape(exact.shape)
            at += 2 * exact.size
        for half, row in ((k[:, :, :cut].transpose(0, 1, 3, 2), cut), (v[:, :, :cut], dim)):
            rows = np.empty((prod(half.shape[:3]), row), np.float16)
            for start in range(0, row, _GROUP):
                at = self._unpack(payload, at, rows[:, start : start + _GROUP])
            half[...] = rows.reshape(half.shape)
        if at != len(payload):
            raise CorruptData("length", f"payload has {len(payload)} bytes, its block has {at}")
        return KVBlock(tokens, layers, k, v)

    def _pack(self, groups: Single) -> bytes:
        """One group to a row."""
        low, most = groups.min(axis=1), 2**self.bits - 1
        step = ((groups.max(axis=1) - low) / most).astype(np.float16)
        divisor = np.where(step > 0, step, np.float16(1)).astype(np.float32)
        codes = np.clip(np.rint((groups - low[:, None]) / divisor[:, None]), 0, most).astype(np.uint8)
        bits = np.unpackbits(codes.reshape(-1, 1), axis=1)[:, 8 - self.bits :]
        scales: bytes = low.astype(np.float16).tobytes() + step.tobytes()
        return scales + np.packbits(bits).tobytes()

    def _unpack(self, payload: Payload, at: int, out: Half) -> int:
        """Fill `out`, one group to a row, from offset `at`; the offset after it."""
        count = len(out)
        low, step = np.frombuffer(payload, np.float16, 2 * count, at).reshape(2, count, 1).astype(np.float32)
        at += 4 * count
        size_bytes = -(-out.size * self.bits // 8)
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, size_bytes, at), count=out.size * self.bits)
        codes = np.packbits(bits.reshape(-1, self.bits), axis=1).reshape(out.shape) >> (8 - self.bits)
        out[...] = low + step * codes
        return at + size_bytes
