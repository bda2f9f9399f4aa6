"""Codecs of recurrent states: what one is, the checks that all share, and which there are.

A state is a few large matrices in float32 for each layer, and the same however long its context is: with gated delta
nets or Mamba-2, 20 to 150 MB, more than all KV of a thousand tokens. What a codec writes has a size that follows from
the shape alone until zstd has it, so it is known before anything is allocated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from preread.codec.base import Payload
from preread.codec.chain import Compressor
from preread.codec.planes import Planes
from preread.codec.steps import Steps
from preread.codec.zstd import Zstd
from preread.errors import CorruptData, UsageError
from preread.values import Single, StateBlock, StateShape

LARGEST_BYTES: Final = 1 << 29
"""Of a block in float32. The largest of a whole model that is known is 146 MB."""

_EXPONENT: Final = np.uint32(0x7F800000)


class StateCodec(Protocol):
    """One quality of states. Implementations are immutable and may be used by several threads at once."""

    @property
    def rung(self) -> str:
        """Name among codecs of states, for example "f32"."""

    @property
    def version(self) -> str:
        """Name and version of the byte format, for example "state-f32/1": what a manifest states."""

    def encode(self, block: StateBlock) -> bytes:
        """Write a block.

        Raises:
            UsageError: its arrays do not fit its layers, are too large, or hold values that are not finite.
        """

    def decode(self, payload: Payload, layers: tuple[int, ...], position: int, shape: StateShape) -> StateBlock:
        """Read a block, whose arrays are C-contiguous and finite.

        Raises:
            CorruptData: the payload is no block of exactly this shape.
            UsageError: there is no such block.
        """


class Packer(Protocol):
    """Arrays to bytes of a size that follows from the shape alone, and back."""

    def size_bytes(self, layers: int, shape: StateShape) -> int:
        """Size of what `pack` writes."""

    def pack(self, r: Single, s: Single) -> bytes:
        """Write finite arrays of shape (layers, r_values) and (layers, s_rows, s_row_values)."""

    def unpack(self, data: bytes, layers: int, shape: StateShape) -> tuple[Single, Single]:
        """Read both from `size_bytes(layers, shape)` bytes.

        Raises:
            CorruptData: "range": they do not say finite values.
        """


@dataclass(frozen=True, slots=True)
class StateChain:
    """A `StateCodec` of one packer and one compressor."""

    rung: str
    version: str
    packer: Packer
    compressor: Compressor

    def encode(self, block: StateBlock) -> bytes:
        r, s = _checked(block)
        return self.compressor.compress(self.packer.pack(r, s))

    def decode(self, payload: Payload, layers: tuple[int, ...], position: int, shape: StateShape) -> StateBlock:
        _check_place(layers, position, shape)
        data = self.compressor.decompress(payload, self.packer.size_bytes(len(layers), shape))
        r, s = self.packer.unpack(data, len(layers), shape)
        if not (_finite(r) and _finite(s)):
            raise CorruptData("range", "payload holds values of a state that are not finite")
        return StateBlock(layers, position, r, s)


_LOSSLESS, _USUAL = "f32", "s4"

# A rung of steps is called by the bits that a value of a gated delta net takes in it, about. All are read alike.
# Nothing can be found in symbols but how frequent they are: low levels see repetitions, and take up to a quarter more.
_CODECS: Final[tuple[StateCodec, ...]] = (
    StateChain("f32", "state-f32/1", Planes(), Zstd(level=3)),
    StateChain("s5", "state-steps/1", Steps(1 / 8), Zstd(level=16)),
    StateChain("s4", "state-steps/1", Steps(1 / 4), Zstd(level=16)),
    StateChain("s3", "state-steps/1", Steps(1 / 2), Zstd(level=16)),
    StateChain("s2", "state-steps/1", Steps(1.0), Zstd(level=16)),
)


def state_rungs() -> tuple[str, ...]:
    """Names of all codecs of states, best quality first."""
    return tuple(codec.rung for codec in _CODECS)


def state_codec(rung: str) -> StateCodec:
    """The codec that writes states at a quality.

    Raises:
        UsageError: there is none of this name.
    """
    found = _first(lambda codec: codec.rung == rung)
    if found is None:
        raise UsageError(f"states are not coded as {rung!r}, but as {', '.join(state_rungs())}")
    return found


def state_codec_beside(rung: str) -> StateCodec:
    """The codec of states in which a rung of rows is published: both lose nothing, or both what nobody notices."""
    return state_codec(_LOSSLESS if rung == "lossless" else _USUAL)


def state_codec_by_version(version: str, rung: str) -> StateCodec:
    """A codec that reads the states of what a manifest calls `rung`, written by codec `version`.

    Raises:
        CorruptData: "codec": this release cannot read it; or states that lost something are called lossless.
    """
    found = _first(lambda codec: codec.version == version)
    if found is None:
        known = ", ".join(dict.fromkeys(codec.version for codec in _CODECS))
        raise CorruptData("codec", f"unknown codec of states {version!r}, this preread reads {known}: upgrade it")
    if rung == "lossless" and found.rung != _LOSSLESS:
        raise CorruptData("codec", f"rung {rung!r} has states of codec {version!r}, which loses something")
    return found


def _first(fits: Callable[[StateCodec], bool]) -> StateCodec | None:
    return next((codec for codec in _CODECS if fits(codec)), None)


def _check_place(layers: tuple[int, ...], position: int, shape: StateShape) -> None:
    ordered = all(before < after for before, after in zip((-1, *layers), layers, strict=False))
    sizes = shape.r_values, shape.s_rows, shape.s_row_values
    values = shape.r_values + shape.s_rows * shape.s_row_values
    if not layers or not ordered or position < 1 or min(sizes) < 0 or values < 1:
        raise UsageError(f"no state of layers {layers} behind {position} tokens exists in {shape}")
    if 4 * len(layers) * values > LARGEST_BYTES:
        raise UsageError(f"a state of {4 * len(layers) * values:,} bytes is larger than any that is known")


def _checked(block: StateBlock) -> tuple[Single, Single]:
    r, s = block.r, block.s
    if r.dtype != np.float32 or s.dtype != np.float32 or r.ndim != 2 or s.ndim != 3 or len(r) != len(s):
        raise UsageError(
            "a state must be float32 arrays of shapes (layers, r_values) and (layers, s_rows, s_row_values)"
        )
    if len(r) != len(block.layers):
        raise UsageError(f"states of {len(r)} layers are said to be of {len(block.layers)}")
    _check_place(block.layers, block.position, StateShape(r.shape[1], s.shape[1], s.shape[2]))
    if not (_finite(r) and _finite(s)):
        raise UsageError("a state holds values that are not finite: the model overflowed float32")
    return np.ascontiguousarray(r), np.ascontiguousarray(s)


def _finite(array: Single) -> bool:
    """Whether all values are finite. Works on the bits."""
    return not array.size or bool((np.ascontiguousarray(array).view(np.uint32) & _EXPONENT).max() < _EXPONENT)
