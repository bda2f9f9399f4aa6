"""What a manifest must say before anything is fetched by it: the model is the edge's own, all it looks at is there."""

import msgspec
import pytest

from preread.edge.known import manifest_of
from preread.edge.published import OwnModel
from preread.errors import CorruptData
from preread.values import ContextId, Fingerprint, Layer, ObjectId, RowShape, StateShape
from preread.wire import manifest as manifests
from preread.wire.catalogue import Entry
from preread.wire.fields import SizedId
from preread.wire.manifest import Group, Manifest, Model, Origin, Rung, Tokens

ROWS, STATE = RowShape(2, 4, 4), StateShape(6, 2, 5)
OWN = (Layer(ROWS, 3), Layer(ROWS), Layer(state=STATE))
CHUNKS = ((0, 4), (4, 8), (8, 10))
GROUPS = (Group("rows", (0, 1)), Group("rows", (1, 2)), Group("states", (2, 3)))
PARTS = ((0, 2), (1, 0), (1, 1), (1, 2), (2, 2))
"""Of the first layer only what its window still sees."""


def published(layers: tuple[Layer, ...] = OWN, parts: tuple[tuple[int, int], ...] = PARTS) -> Manifest:
    segments = tuple(SizedId(ObjectId(f"{at:064x}"), 100) for at in range(len(parts)))
    return Manifest(
        context=ContextId("c" * 64),
        form="text",
        model=Model("odd", Fingerprint("f" * 64), layers),
        tokens=Tokens(10, ObjectId("a" * 64), 40),
        chunks=CHUNKS,
        groups=GROUPS[: len(layers)],
        parts=parts,
        rungs=(Rung("lossless", "lossless/1", segments, states="state-f32/1" if len(layers) > 2 else None),),
        origin=Origin("llama.cpp", "preread", 512),
    )


def read(manifest: Manifest, **listed_as: object) -> Manifest:
    """As a catalogue leads to it, which lists it with these fields changed."""
    entry = Entry(
        name="odd",
        context=manifest.context,
        fingerprint=manifest.model.fingerprint,
        vocabulary=Fingerprint("0" * 64),
        form="text",
        model="odd",
        token_count=10,
        tokens=SizedId(ObjectId("a" * 64), 40),
        manifest=SizedId(ObjectId("b" * 64), 100),
    )
    entry = msgspec.structs.replace(entry, **listed_as)
    return manifest_of(entry, manifests.dumps(manifest), OwnModel(entry.fingerprint, entry.vocabulary, OWN, 100))


def test_what_the_model_looks_at_is_enough() -> None:
    assert read(published()) == published()


def test_windows_that_the_model_does_not_have_leave_nothing_out() -> None:
    """Rows that are not there would be read as zeros: a wrong answer, which is worse than none."""
    narrow = (Layer(ROWS, 3), Layer(ROWS, 3), Layer(state=STATE))
    with pytest.raises(CorruptData, match="lacks rows that this model looks at"):
        read(published(narrow, ((0, 2), (1, 2), (2, 2))))
    assert read(published(narrow)), "what it says of windows does not matter where all is there"


@pytest.mark.parametrize(
    "layers",
    [
        (Layer(ROWS, 3), Layer(RowShape(4, 2, 4)), Layer(state=STATE)),
        (Layer(ROWS, 3), Layer(ROWS), Layer(state=StateShape(6, 5, 2))),
        (Layer(ROWS, 3), Layer(ROWS)),
    ],
)
def test_layers_are_the_models_own(layers: tuple[Layer, ...]) -> None:
    """Rows and states of another shape have as many values, and would be taken for its own."""
    with pytest.raises(CorruptData) as caught:
        read(published(layers, PARTS if len(layers) > 2 else PARTS[:-1]))
    assert caught.value.reason == "shape"


def test_manifests_of_others_are_refused() -> None:
    for change in ({"context": "d" * 64}, {"token_count": 9}, {"fingerprint": "e" * 64}):
        with pytest.raises(CorruptData, match="another context"):
            read(published(), **change)
