"""A file of each kind that `preread fits` knows, small and of models that do not exist; and of one that does."""

from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np

from preread.align import guide_bytes, mapping_bytes
from preread.align.guide import Guide, Weights
from preread.align.guide_bytes import KeptGuide, Outcome
from preread.align.mapping import Mapping
from preread.align.mapping_bytes import Kept
from preread.align.ridge import Linear
from preread.codec import profile_bytes
from preread.engine.llamacpp import LlamaCpp
from preread.fit import decisions, family
from preread.fit.calibration import Calibration, Scale
from preread.fit.family import HALF, LOSSLESS, Change, Gate
from preread.testing.profile import plain_profile
from preread.values import Fingerprint, Geometry
from preread.wire.fits import FitKind

SMALL: Final = Fingerprint("a" * 64)
LARGE: Final = Fingerprint("b" * 64)
SHAPE: Final = Geometry(layers=3, kv_heads=1, head_dim=4)
CHANNELS: Final = 2 * SHAPE.kv_heads * SHAPE.head_dim


def _zeros(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.zeros(shape, np.float32)


_linear: Final = Linear(_zeros(5 + 2 * 4), _zeros(2 * CHANNELS), _zeros(5 + 2 * 4, 2), _zeros(2, 2 * CHANNELS))
MAPPING: Final = Kept(Mapping(1, (7,), (4, 5), _linear), SMALL, LARGE, SHAPE, "a text", 0.012, 0.034, 512)
_weights: Final = Weights(_zeros(6), _zeros(6, 2), _zeros(2, 2, CHANNELS), _zeros(2, CHANNELS), _zeros(2, 2))
_outcome: Final = Outcome(-0.03, (-0.05, -0.01), 0.02, (0.01, 0.03), 0.4, 600)
GUIDE: Final = KeptGuide(Guide(1, (3, 8), _weights), SMALL, LARGE, SHAPE, "a text", 400, _outcome)
_changes: Final = (Change(LOSSLESS, -0.02, -0.03, -0.01, 508), Change(HALF, -0.01, -0.02, 0.004, 508))
GATE: Final = Gate("preread family 1", SMALL, LARGE, "c" * 64, "a text", 2.9, 2.6, _changes)

FILES: Final[dict[FitKind, bytes]] = {
    "codec": profile_bytes.dumps(plain_profile(SMALL, SHAPE, 4, {"b4": (0.05, 0.0015)})),
    "map": mapping_bytes.dumps(MAPPING),
    "guide": guide_bytes.dumps(GUIDE),
    "decisions": decisions.dumps(Calibration({"choice": Scale(1.9)}, 120), SMALL),
    "family": family.dumps(GATE),
}


def of_model(path: Path) -> dict[FitKind, bytes]:
    """A file of each kind but a mapping for a model that is its own large one, which nobody had to fit.

    The guide changes nothing, and says that it was worth what the gate before publishing wants to hear.
    """
    with closing(LlamaCpp.open(path, window_tokens=256)) as engine:
        shape, of = engine.spec.geometry, engine.spec.fingerprint
        width = engine.embeddings(np.zeros(1, np.int32)).shape[1]
    layers, heads, channels = shape.layers, 2 * shape.kv_heads, 2 * shape.kv_heads * shape.head_dim
    weights = Weights(
        _zeros(width),
        _zeros(width, 3),
        _zeros(layers, 3, channels),
        _zeros(layers, channels),
        _zeros(layers, heads) + 1,
    )
    guide = KeptGuide(Guide(0, (layers // 2,), weights), of, of, shape, "a text", 400, _outcome)
    return {
        "codec": profile_bytes.dumps(plain_profile(of, shape, width, {"b4": (0.02, 0.0001)})),
        "guide": guide_bytes.dumps(guide),
        "decisions": decisions.dumps(Calibration({"choice": Scale(1.9)}, 120), of),
    }
