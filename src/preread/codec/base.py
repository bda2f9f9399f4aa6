"""What a codec is, and the checks on blocks that all codecs share. It must not know any one codec."""

from typing import Protocol

import numpy as np

from preread.errors import UsageError
from preread.values import Geometry, Half, KVBlock, KVShape, Span

Payload = bytes | memoryview
"""What an encoder wrote; a view into a received frame will do for reading."""

Shape = tuple[int, int, int, int, int]
"""(layers, kv_heads, tokens, k_dim, v_dim) of K and V."""

_EXPONENT = np.uint16(0x7C00)
_NO_SIGN = np.uint16(0x7FFF)


class Codec(Protocol):
    """One rung of the quality ladder. Implementations are immutable and may be used by several threads at once."""

    @property
    def rung(self) -> str:
        """Name in the ladder, for example "q4"."""

    @property
    def version(self) -> str:
        """Name and version of the byte format, for example "q4/1": what a manifest states."""

    def encode(self, block: KVBlock) -> bytes:
        """Write a block.

        Raises:
            UsageError: the block's arrays do not fit its spans, or hold values that are not finite.
        """

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry | KVShape) -> KVBlock:
        """Read a block, whose arrays are C-contiguous and finite; allocates a small multiple of the block's own size.

        Args:
            payload: what was encoded.
            tokens, layers: the block's.
            geometry: the block's shape, or that of the model where all layers are alike.

        Raises:
            CorruptData: the payload is not a block of exactly this shape.
            UsageError: the spans are empty or not within the geometry.
        """


def block_shape(tokens: Span, layers: Span, geometry: Geometry | KVShape) -> Shape:
    """Shape of K and of V of a block.

    Raises:
        UsageError: a span is empty, or not within the model.
    """
    most = geometry.layers if isinstance(geometry, Geometry) else layers.stop
    if not (0 <= tokens.start < tokens.stop and 0 <= layers.start < layers.stop <= most):
        raise UsageError(f"no block of {tokens} and {layers} exists in {geometry}")
    if isinstance(geometry, Geometry):
        return len(layers), geometry.kv_heads, len(tokens), geometry.head_dim, geometry.head_dim
    if not 1 <= geometry.layers <= len(layers):
        raise UsageError(f"no block of {layers} exists in {geometry}")
    return geometry.layers, geometry.kv_heads, len(tokens), geometry.k_dim, geometry.v_dim


def check_block(block: KVBlock) -> None:
    """Refuse a block that no codec can write.

    Raises:
        UsageError: K and V are not float16 arrays whose shape fits the spans and is the same but for their last axis,
            or not all finite.
    """
    k, v = block.k, block.v
    if k.dtype != np.float16 or v.dtype != np.float16 or k.ndim != 4 or k.shape[:3] != v.shape[:3] or k.size == 0:
        raise UsageError("K and V must be float16 arrays of one shape (layers, kv_heads, tokens, head_dim)")
    if k.shape[0] > len(block.layers) or k.shape[2] != len(block.tokens):
        raise UsageError(f"K has shape {k.shape}, which does not fit {block.layers} and {block.tokens}")
    if not (finite(k) and finite(v)):
        raise UsageError("the KV cache holds values that are not finite: the model overflowed float16")


def finite(array: Half) -> bool:
    """Whether all values are finite. Works on the bits, which is several times faster than float16 arithmetic."""
    return bool((array.view(np.uint16) & _NO_SIGN).max(initial=0) < _EXPONENT)
