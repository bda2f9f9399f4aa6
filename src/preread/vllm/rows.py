"""K and V between vLLM's order and preread's. Pure.

vLLM has a row for each token, and rotates channels of K half a head apart, as transformers does. llama.cpp caches
float16, and K of some architectures ("near": LLaMA's) in the order in which its converter to GGUF permutes the weights
of queries and keys: the two halves of a rotated pair lie side by side.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from preread.errors import EngineError
from preread.values import Half

Single = npt.NDArray[np.float32]

_LARGEST: Final = 65504.0
"""Of float16."""


def to_cache(k: Single, v: Single, *, near: bool) -> tuple[Half, Half]:
    """Rows (tokens, kv_heads, head_dim) as blocks have them: (kv_heads, tokens, head_dim), float16.

    Raises:
        EngineError: a value is not finite, or too large for float16.
    """
    for what, rows in (("key", k), ("value", v)):
        if not np.isfinite(rows).all() or np.abs(rows).max(initial=0) > _LARGEST:
            raise EngineError(f"a {what} of this model is not finite in float16: its KV cannot be published")
    ordered = np.stack(np.split(k, 2, axis=-1), axis=-1).reshape(k.shape) if near else k
    return _by_head(ordered.astype(np.float16)), _by_head(v.astype(np.float16))


def from_cache(k: Half, v: Half, *, near: bool) -> tuple[Half, Half]:
    """The inverse of `to_cache`, in float16."""
    ordered = np.concatenate([k[..., 0::2], k[..., 1::2]], axis=-1) if near else k
    return _by_head(ordered), _by_head(v)


def _by_head(rows: Half) -> Half:
    return np.ascontiguousarray(rows.transpose(1, 0, 2))
