"""Guides as files. Their operator made them; they are checked all the same."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from preread.align import archive
from preread.align.guide import NAMES, Guide, Weights
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint, Geometry

FORMAT: Final = "preread-guide"

Layer = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What guided KV changes, on documents that nothing was learnt from; nats a token of what follows them.

    Attributes:
        dloss: against exact KV; `dloss_ci`: its 95 % interval over documents.
        gain: what the control's loss is above the guide's, `gain_ci`: its interval. The control is learnt from the
            same lessons in the same way, but reads what the large model makes of another document.
        gap: what the small model's own loss is above the large one's; None: they have other tokenizers.
        tokens: how many were predicted.
    """

    dloss: float
    dloss_ci: tuple[float, float]
    gain: float
    gain_ci: tuple[float, float]
    gap: float | None
    tokens: Count


@dataclass(frozen=True, slots=True)
class KeptGuide:
    """A guide, and what it was made of.

    Attributes:
        small, large: fingerprints of the two models; `geometry`: of the small one's KV.
        text: what it was learnt from, in `lessons` lessons.
        outcome: on documents of the text held out.
        control: it is no guide, but one's control.
    """

    guide: Guide
    small: Fingerprint
    large: Fingerprint
    geometry: Geometry
    text: str
    lessons: int
    outcome: Outcome
    control: bool = False


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["preread-guide"]
    version: Literal[1]
    small: Digest
    large: Digest
    geometry: Geometry
    first: Layer
    reads: tuple[Layer, ...]
    text: str
    lessons: Count
    outcome: Outcome
    control: bool


def dumps(kept: KeptGuide) -> bytes:
    """Write a guide that `loads` accepts."""
    guide = kept.guide
    head = _Head(
        FORMAT, 1, kept.small, kept.large, kept.geometry, guide.first, guide.reads, kept.text, kept.lessons,
        kept.outcome, kept.control,
    )  # fmt: skip
    return archive.dumps(head, {name: getattr(guide.weights, name) for name in NAMES})


def loads(data: bytes) -> KeptGuide:
    """Read a guide, and check that it guides what it says.

    Raises:
        CorruptData: "format" (no such file), "schema" (its head), "shape" (weights that do not fit).
    """
    head, arrays = archive.loads(data, _Head, "guide")
    try:
        weights = [arrays[name] for name in NAMES]
        if not all(part.dtype == np.float32 and np.isfinite(part).all() for part in weights):
            raise UsageError("weights are no finite numbers")
        guide = Guide(head.first, head.reads, Weights(*weights))
    except (UsageError, KeyError) as error:
        raise CorruptData("shape", f"guide: {error}") from error
    shape = head.geometry
    channels = 2 * shape.kv_heads * shape.head_dim
    if (guide.layers, guide.weights.bias.shape[1]) != (shape.layers - head.first, channels):
        raise CorruptData("shape", "guide does not change all layers from its first on")
    if guide.weights.gates.shape[1] != 2 * shape.kv_heads:
        raise CorruptData("shape", "guide has other heads than the model")
    return KeptGuide(
        guide, Fingerprint(head.small), Fingerprint(head.large), shape, head.text, head.lessons, head.outcome,
        head.control,
    )  # fmt: skip
