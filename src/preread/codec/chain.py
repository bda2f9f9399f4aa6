"""A codec made of stages: a packer makes bytes of arrays, a compressor makes fewer bytes of bytes.

A stage in front, arrays to arrays (un-rotation, a change of basis), joins here once a codec has one. The chain knows
the order of stages and who checks what; it must not know what any stage does.
"""

from dataclasses import dataclass
from typing import Protocol

from preread.codec.base import Payload, Shape, block_shape, check_block
from preread.values import Geometry, Half, KVBlock, KVShape, Span


class Packer(Protocol):
    """Arrays to bytes of a size that follows from the shape alone, and back."""

    def size_bytes(self, shape: Shape) -> int:
        """Size of what `pack` writes for K and V of this shape."""

    def pack(self, k: Half, v: Half) -> bytes:
        """Write two finite float16 arrays (layers, kv_heads, tokens, head_dim), which may differ in head_dim."""

    def unpack(self, data: bytes, shape: Shape) -> tuple[Half, Half]:
        """Read K and V from `size_bytes(shape)` bytes.

        Raises:
            CorruptData: "range": they do not say finite values.
        """


class Compressor(Protocol):
    """Bytes to fewer bytes, and back."""

    def compress(self, data: bytes) -> bytes:
        """Write `data`."""

    def decompress(self, payload: Payload, size_bytes: int) -> bytes:
        """Read exactly `size_bytes` bytes and allocate no more than that.

        Raises:
            CorruptData: the payload does not hold exactly that.
        """


@dataclass(frozen=True, slots=True)
class Chain:
    """A `Codec` of one packer and one compressor."""

    rung: str
    version: str
    packer: Packer
    compressor: Compressor

    def encode(self, block: KVBlock) -> bytes:
        check_block(block)
        return self.compressor.compress(self.packer.pack(block.k, block.v))

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry | KVShape) -> KVBlock:
        shape = block_shape(tokens, layers, geometry)
        data = self.compressor.decompress(payload, self.packer.size_bytes(shape))
        k, v = self.packer.unpack(data, shape)
        return KVBlock(tokens, layers, k, v)
