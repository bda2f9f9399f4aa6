"""A context's KV that was taught, as a file. It is checked all the same: it will be published."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from preread.align import archive
from preread.errors import CorruptData
from preread.values import ContextId, Fingerprint, Geometry, KVBlock, Span

FORMAT: Final = "preread-taught"

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Taught:
    """KV of a context that learned from a study.

    Attributes:
        block: of all its tokens and layers.
        context: whose; `studied`: whose questions it was taught with: another context's make it a control.
        small, large: fingerprints of the two models.
        dloss: nats a token by which answers rise that were held out, against exact KV; `dloss_ci`: its 95 % interval.
        exchanges, tokens: how many were held out, and how many tokens their answers have.
    """

    block: KVBlock
    context: ContextId
    studied: ContextId
    small: Fingerprint
    large: Fingerprint
    dloss: float
    dloss_ci: tuple[float, float]
    exchanges: int
    tokens: int


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["preread-taught"]
    version: Literal[1]
    geometry: Geometry
    context: Digest
    studied: Digest
    small: Digest
    large: Digest
    dloss: float
    dloss_ci: tuple[float, float]
    exchanges: Count
    tokens: Count


def dumps(taught: Taught) -> bytes:
    """Write what `loads` accepts."""
    layers, heads, _, dim = taught.block.k.shape
    head = _Head(
        FORMAT, 1, Geometry(layers, heads, dim), taught.context, taught.studied, taught.small, taught.large,
        taught.dloss, taught.dloss_ci, taught.exchanges, taught.tokens,
    )  # fmt: skip
    return archive.dumps(head, {"k": taught.block.k, "v": taught.block.v})


def loads(data: bytes) -> Taught:
    """Read it, and check that it is the KV of a whole context.

    Raises:
        CorruptData: "format" (no such file), "schema" (its head), "shape" (KV of another shape than it says).
    """
    head, arrays = archive.loads(data, _Head, "taught context")
    k, v = arrays.get("k"), arrays.get("v")
    shape = head.geometry
    if k is None or v is None or k.ndim != 4 or k.shape != v.shape or not k.shape[2]:
        raise CorruptData("shape", "taught context lacks its KV")
    expected = (shape.layers, shape.kv_heads, k.shape[2], shape.head_dim)
    if k.shape != expected or any(rows.dtype != np.float16 or not np.isfinite(rows).all() for rows in (k, v)):
        raise CorruptData("shape", f"taught context of shape {k.shape} is not finite float16 KV of shape {expected}")
    block = KVBlock(Span(0, k.shape[2]), Span(0, shape.layers), k, v)
    return Taught(
        block, ContextId(head.context), ContextId(head.studied), Fingerprint(head.small), Fingerprint(head.large),
        head.dloss, head.dloss_ci, head.exchanges, head.tokens,
    )  # fmt: skip
