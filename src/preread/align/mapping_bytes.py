"""Mappings as files. Their operator made them; they are checked all the same."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from preread.align import archive
from preread.align.mapping import Mapping
from preread.align.ridge import Linear, Single
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint, Geometry

FORMAT: Final = "preread-mapping"
_ARRAYS: Final = ("mean_x", "mean_y", "inward", "outward")

Layer = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Width = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True, slots=True)
class Kept:
    """A mapping, and what it was made of.

    Attributes:
        mapping: from what the large model makes of a text to the small one's KV.
        small, large: fingerprints of the two models; `geometry`: of the small one's KV.
        text: what it was fitted on.
        dloss, kl: nats a token, on windows of the text that it was not fitted on; `tokens`: how many positions.
    """

    mapping: Mapping
    small: Fingerprint
    large: Fingerprint
    geometry: Geometry
    text: str
    dloss: float
    kl: float
    tokens: int


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["preread-mapping"]
    version: Literal[1]
    small: Digest
    large: Digest
    geometry: Geometry
    split: Layer
    reads: tuple[Layer, ...]
    widths: tuple[Width, Width]
    text: str
    dloss: float
    kl: float
    tokens: int


def dumps(kept: Kept) -> bytes:
    """Write a mapping that `loads` accepts."""
    mapping = kept.mapping
    head = _Head(
        FORMAT,
        1,
        kept.small,
        kept.large,
        kept.geometry,
        mapping.split,
        mapping.reads,
        mapping.widths,
        kept.text,
        kept.dloss,
        kept.kl,
        kept.tokens,
    )
    return archive.dumps(head, {name: getattr(mapping.linear, name) for name in _ARRAYS})


def loads(data: bytes) -> Kept:
    """Read a mapping, and check that it maps what it says.

    Raises:
        CorruptData: "format" (no such file), "schema" (its head), "shape" (arrays that do not fit).
    """
    head, arrays = archive.loads(data, _Head, "mapping")
    try:
        mapping = Mapping(head.split, head.reads, head.widths, _linear(arrays))
    except (UsageError, KeyError) as error:
        raise CorruptData("shape", f"mapping: {error}") from error
    shape = head.geometry
    if len(mapping.linear.mean_y) != (shape.layers - head.split) * 2 * shape.kv_heads * shape.head_dim:
        raise CorruptData("shape", "mapping does not map all layers from its split on")
    small, large = Fingerprint(head.small), Fingerprint(head.large)
    return Kept(mapping, small, large, shape, head.text, head.dloss, head.kl, head.tokens)


def _linear(arrays: dict[str, Single]) -> Linear:
    mean_x, mean_y, inward, outward = (arrays[name] for name in _ARRAYS)
    fits = inward.ndim == outward.ndim == 2 and inward.shape[1] == len(outward)
    fits = fits and mean_x.shape == (len(inward),) and mean_y.shape == (outward.shape[1],)
    known = all(part.dtype == np.float32 and np.isfinite(part).all() for part in (mean_x, mean_y, inward, outward))
    if not (fits and known):
        raise CorruptData("shape", "mapping is not made of finite matrices that fit one another")
    return Linear(mean_x, mean_y, inward, outward)
