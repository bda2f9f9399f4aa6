"""Mappings as files: numpy's own archive, with a head in JSON. Its operator made it; it is checked all the same.

Nothing in it is ever executed: arrays of objects are refused (numpy's `allow_pickle`).
"""

import io
import zipfile
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from preread.align.mapping import Mapping
from preread.align.ridge import Linear, Single
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint, Geometry, Span

FORMAT: Final = "preread-mapping"
_ARRAYS: Final = ("mean_x", "mean_y", "inward", "outward")


Layer = Annotated[int, msgspec.Meta(ge=0, le=1024)]


@dataclass(frozen=True, slots=True)
class Kept:
    """A mapping, and what it was made of.

    Attributes:
        mapping: from the large model's rows to the small one's.
        small, large: fingerprints of the two models; `geometry`, `large_geometry`: of their KV.
        text: what it was fitted on.
        dloss, kl: nats a token, on windows of the text that it was not fitted on; `tokens`: how many positions.
    """

    mapping: Mapping
    small: Fingerprint
    large: Fingerprint
    geometry: Geometry
    large_geometry: Geometry
    text: str
    dloss: float
    kl: float
    tokens: int


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["preread-mapping"]
    version: Literal[1]
    small: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    large: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    geometry: Geometry
    large_geometry: Geometry
    split: Layer
    known: tuple[Layer, Layer]
    windows: tuple[tuple[Layer, Layer], ...]
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
        kept.large_geometry,
        mapping.split,
        (mapping.known.start, mapping.known.stop),
        tuple((near.start, near.stop) for near in mapping.windows),
        kept.text,
        kept.dloss,
        kept.kl,
        kept.tokens,
    )
    arrays = {"head": np.frombuffer(msgspec.json.encode(head, order="sorted"), np.uint8)}
    for number, linear in enumerate(mapping.linears):
        arrays |= {f"{name}{number}": getattr(linear, name) for name in _ARRAYS}
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the arrays for `allow_pickle`
    return out.getvalue()


def loads(data: bytes) -> Kept:
    """Read a mapping, and check that it maps what it says.

    Raises:
        CorruptData: "format" (no such file), "schema" (its head), "shape" (layers or arrays that do not fit).
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        head = msgspec.json.decode(arrays.pop("head").tobytes(), type=_Head)
    except msgspec.DecodeError as error:
        raise CorruptData("schema", f"mapping's head: {error}") from error
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptData("format", f"this is no mapping: {error}") from error
    try:
        windows = tuple(Span(*near) for near in head.windows)
        linears = tuple(_linear(arrays, number) for number in range(len(windows)))
        mapping = Mapping(head.split, Span(*head.known), windows, linears)
    except (UsageError, KeyError) as error:
        raise CorruptData("shape", f"mapping: {error}") from error
    _check(mapping, head)
    return Kept(
        mapping,
        Fingerprint(head.small),
        Fingerprint(head.large),
        head.geometry,
        head.large_geometry,
        head.text,
        head.dloss,
        head.kl,
        head.tokens,
    )


def _linear(arrays: dict[str, Single], number: int) -> Linear:
    mean_x, mean_y, inward, outward = (arrays[f"{name}{number}"] for name in _ARRAYS)
    fits = inward.ndim == outward.ndim == 2 and inward.shape[1] == len(outward)
    fits = fits and mean_x.shape == (len(inward),) and mean_y.shape == (outward.shape[1],)
    known = all(part.dtype == np.float32 and np.isfinite(part).all() for part in (mean_x, mean_y, inward, outward))
    if not (fits and known):
        raise CorruptData("shape", f"mapping's layer {number} is not made of finite matrices that fit one another")
    return Linear(mean_x, mean_y, inward, outward)


def _check(mapping: Mapping, head: _Head) -> None:
    widths = [2 * shape.kv_heads * shape.head_dim for shape in (head.geometry, head.large_geometry)]
    embeddings: set[int] = set()
    for near, linear in zip(mapping.windows, mapping.linears, strict=True):
        if not 0 <= near.start < near.stop <= head.large_geometry.layers or len(linear.mean_y) != widths[0]:
            raise CorruptData("shape", "mapping reads layers that the large model lacks, or gives rows that do not fit")
        embeddings.add(len(linear.mean_x) - len(near) * widths[1] - len(mapping.known) * widths[0])
    if mapping.layers.stop != head.geometry.layers or len(embeddings) != 1 or min(embeddings) < 0:
        raise CorruptData("shape", "mapping does not map all layers from its split on, or each from something else")
