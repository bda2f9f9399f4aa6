from pathlib import Path

import pytest

from preread.values import ContextId, Fingerprint, Geometry, ObjectId, Span, alike
from preread.wire.fields import SizedId
from preread.wire.manifest import Manifest, Model, Origin, Rung, Tokens, all_parts, rows_of


@pytest.fixture
def vectors() -> Path:
    """Files written once by the first release; a byte that changes here is a new version of the format."""
    return Path(__file__).parents[1] / "vectors"


@pytest.fixture
def manifest() -> Manifest:
    """Three chunks, two groups, two rungs; the segment at [chunk][group] of the first rung has 100 + 10 c + g bytes."""

    def rung(name: str, size_bytes: int) -> Rung:
        cells = [(f"{c}{g}", size_bytes + 10 * c + g) for g in range(2) for c in range(3)]
        return Rung(name, f"{name}/1", tuple(SizedId(ObjectId(mark * 32), size) for mark, size in cells))

    chunks, groups = ((0, 4), (4, 8), (8, 10)), rows_of([Span(0, 1), Span(1, 3)])

    return Manifest(
        context=ContextId("c" * 64),
        form="text",
        model=Model("tiny", Fingerprint("f" * 64), alike(Geometry(3, 2, 4))),
        tokens=Tokens(10, ObjectId("a" * 64), 40),
        chunks=chunks,
        groups=groups,
        parts=all_parts(groups, chunks),
        rungs=(rung("lossless", 100), rung("q4", 81)),
        origin=Origin("llama.cpp", "preread", 512),
    )
