"""How each layer of a model rotates K: read off the graph that llama.cpp computes, which is all that counts.

What a file's header says of it (bases, scaling, factors, layers without any) llama.cpp reads by rules of each
architecture. The graph has the outcome: what is written into `cache_k_l<layer>` comes from a ROPE node, whose
parameters and factors say by which angles (ggml, `ggml_compute_forward_rope_flt`).
"""

import ctypes
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from preread.codec.rope import Rope, Ropes, Single
from preread.engine.ggml import CACHED_KEY, Tensor
from preread.engine.gguf import Header
from preread.values import Geometry

_NEOX, _MROPE, _VISION = 2, 8, 24  # GGML_ROPE_TYPE_…
_PASSED: Final = frozenset(
    {b"VIEW", b"RESHAPE", b"PERMUTE", b"TRANSPOSE", b"CONT", b"CPY", b"SCALE", b"NORM", b"RMS_NORM", b"L2_NORM", b"MUL"}
)
"""What may come between rotation and cache: nothing that mixes channels of a head with others."""
_FARTHEST: Final = 16
_LONG_FACTORS: Final = "rope_factors_long.weight"


@dataclass(frozen=True, slots=True)
class Parameters:
    """Those of a ROPE node, as ggml has them."""

    channels: int
    mode: int
    original_tokens: int
    base: float
    scale: float
    extrapolation: float
    fast: float
    slow: float
    first_channel: int


def find_ropes(ggml: ctypes.CDLL, observe: Callable[[Callable[[int], None]], None], geometry: Geometry) -> Ropes:
    """How each layer rotates K. One whose rotation cannot be told is taken for one without: it is coded as it is.

    Args:
        observe: runs a small decode and calls its argument with the address of every node.
        geometry: of the cache.
    """
    found: dict[int, tuple[Parameters, Single]] = {}

    def see(address: int) -> None:
        tensor = Tensor.from_address(address)
        if (layer := _written(ggml, tensor)) is not None and (node := _rotating(ggml, tensor.src[0])) is not None:
            found[layer] = _parameters(node), _factors(ggml, node)

    observe(see)
    near = any(of.mode == 0 for of, _ in found.values())
    ropes: dict[bytes, Rope] = {}
    return tuple(_shared(ropes, _rope(found.get(layer), geometry, near=near)) for layer in range(geometry.layers))


def for_short_contexts(header: Header, cells: int) -> bool:
    """Whether K in a cache of so many cells is rotated by factors that a model has for short contexts only.

    llama.cpp takes those for long ones where a cache has more cells than the model was first trained for, however short
    what is in it (long-rope; Ding et al., arXiv 2402.13753): the same tokens' KV is another one then.
    """
    name = header.text("general.architecture")
    trained = header.number(f"{name}.context_length")
    original = header.number(f"{name}.rope.scaling.original_context_length", trained)
    return any(tensor.name == _LONG_FACTORS for tensor in header.tensors) and cells <= original


def frequencies(of: Parameters, factors: Single) -> Single:
    """Radians a token of each pair of channels, (channels / 2,).

    Args:
        of: with YaRN (Peng et al., arXiv 2309.00071) slow pairs turn `scale` times as far, fast ones as they did.
        factors: by which each pair's frequency is divided; empty: by nothing.
    """
    pair = np.arange(of.channels // 2)
    turned = of.base ** (-2.0 * pair / of.channels)
    if len(factors):
        turned = turned / factors[: len(pair)]
    slowed = of.scale * turned
    if of.extrapolation:
        low, high = (_pair_of(of, rotations) for rotations in (of.fast, of.slow))
        low, high = max(0.0, math.floor(low)), min(of.channels - 1.0, math.ceil(high))
        kept = (1 - np.clip((pair - low) / max(0.001, high - low), 0, 1)) * of.extrapolation
        slowed = slowed * (1 - kept) + turned * kept
    return slowed.astype(np.float32)


def _pair_of(of: Parameters, rotations: float) -> float:
    """The pair that turns so often within the tokens that the model was first trained for (YaRN's eq. 17)."""
    turns = of.original_tokens / (rotations * 2 * math.pi)
    return of.channels * math.log(max(turns, 1e-9)) / (2 * math.log(of.base))


def _written(ggml: ctypes.CDLL, tensor: Tensor) -> int | None:
    """The layer into whose K a node writes rows."""
    if ggml.ggml_op_name(tensor.op) != b"SET_ROWS" or not tensor.view_src:
        return None
    match = CACHED_KEY.match(Tensor.from_address(tensor.view_src).name)
    return int(match[1]) if match else None


def _rotating(ggml: ctypes.CDLL, address: int | None) -> Tensor | None:
    """The ROPE node that rows come from."""
    for _ in range(_FARTHEST):
        if not address:
            return None
        tensor = Tensor.from_address(address)
        name = ggml.ggml_op_name(tensor.op)
        if name == b"ROPE":
            return tensor
        if name not in _PASSED:
            return None
        address = tensor.src[0]
    return None


def _parameters(node: Tensor) -> Parameters:
    raw = bytes(node.op_params)
    _, channels, mode, _, original = struct.unpack_from("<5i", raw)
    base, scale, extrapolation, _, fast, slow = struct.unpack_from("<6f", raw, 20)
    (first,) = struct.unpack_from("<i", raw, 60)
    return Parameters(channels, mode, original, base, scale, extrapolation, fast, slow, first)


def _factors(ggml: ctypes.CDLL, node: Tensor) -> Single:
    """By which each pair's frequency is divided."""
    address = node.src[2]
    if not address:
        return np.empty(0, np.float32)
    factors = np.empty(ggml.ggml_nbytes(address) // 4, np.float32)
    ggml.ggml_backend_tensor_get(address, factors.ctypes.data, 0, factors.nbytes)
    return factors


def _rope(found: tuple[Parameters, Single] | None, geometry: Geometry, *, near: bool) -> Rope:
    none = Rope(near, np.empty(0, np.float32))
    if found is None:
        return none
    of, factors = found
    # Text is at the same position on all axes of M-RoPE, so that it is NEOX's rotation.
    known = of.mode in (0, _NEOX) or (of.mode & _MROPE and of.mode != _VISION)
    if not known or of.first_channel or not 0 < of.channels <= geometry.head_dim or of.base <= 1:
        return none
    if len(factors) and (len(factors) < of.channels // 2 or not (np.isfinite(factors) & (factors != 0)).all()):
        return none
    turned = frequencies(of, factors)
    return Rope(near, turned) if np.isfinite(turned).all() else none


def _shared(known: dict[bytes, Rope], rope: Rope) -> Rope:
    return known.setdefault(rope.frequencies.tobytes(), rope)
