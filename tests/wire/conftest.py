from pathlib import Path

import pytest

from preread.values import ContextId, Fingerprint, Geometry, ObjectId
from preread.wire.fields import SizedId
from preread.wire.manifest import Manifest, Model, Origin, Rung, Tokens


@pytest.fixture
def vectors() -> Path:
    """Files written once by the first release; a byte that changes here is a new version of the format."""
    return Path(__file__).parents[1] / "vectors"


@pytest.fixture
def manifest() -> Manifest:
    """Three chunks, two groups, two rungs; the segment at [chunk][group] of the first rung has 100 + 10 c + g bytes."""

    def rung(name: str, size_bytes: int) -> Rung:
        rows = [[(f"{c}{g}", size_bytes + 10 * c + g) for g in range(2)] for c in range(3)]
        cells = tuple(tuple(SizedId(ObjectId(mark * 32), size) for mark, size in row) for row in rows)
        return Rung(name, f"{name}/1", cells)

    return Manifest(
        context=ContextId("c" * 64),
        form="text",
        model=Model("tiny", Fingerprint("f" * 64), Geometry(3, 2, 4)),
        tokens=Tokens(10, ObjectId("a" * 64), 40),
        chunks=((0, 4), (4, 8), (8, 10)),
        groups=((0, 1), (1, 3)),
        rungs=(rung("lossless", 100), rung("q4", 81)),
        origin=Origin("llama.cpp", "preread", 512),
    )
