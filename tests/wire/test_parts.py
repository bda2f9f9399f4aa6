"""Contexts that are no rectangle: manifests of version 2, whose parts are rows of some layers and states of others."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.errors import CorruptData, UsageError
from preread.values import (
    ContextId,
    Fingerprint,
    Geometry,
    KVShape,
    Layer,
    ObjectId,
    RowShape,
    Span,
    StateShape,
    alike,
    geometry_of,
)
from preread.wire import draft as drafts
from preread.wire import manifest as manifests
from preread.wire import parts, segment
from preread.wire.digest import context_id, object_id
from preread.wire.fields import SizedId
from preread.wire.manifest import Group, Manifest, Model, Origin, Rung, Tokens

ROWS, WIDE, LATENT = RowShape(2, 4, 4), RowShape(1, 8, 4), RowShape(1, 12, 0)
STATE = StateShape(6, 2, 5)
LAYERS = (
    Layer(state=STATE),
    Layer(state=STATE),
    Layer(ROWS),
    Layer(),  # it has nothing but a feed-forward part, or reads another's
    Layer(ROWS),
    Layer(WIDE, 3),
    Layer(WIDE, 5, STATE),
    Layer(LATENT),
)
CHUNKS = ((0, 4), (4, 8), (8, 10))
GROUPS = (
    Group("states", (0, 7)),
    Group("rows", (2, 5)),
    Group("rows", (5, 7)),
    Group("rows", (7, 8)),
)
PARTS = ((0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2))
"""With a state in the middle, and without rows of the first chunk where windows of 3 and 5 tokens do not reach it."""


def some(count: int, size_bytes: int = 100) -> tuple[SizedId, ...]:
    return tuple(SizedId(ObjectId(f"{at:064x}"), size_bytes + at) for at in range(count))


MANIFEST = Manifest(
    context=ContextId("c" * 64),
    form="text",
    model=Model("odd", Fingerprint("f" * 64), LAYERS),
    tokens=Tokens(10, ObjectId("a" * 64), 40),
    chunks=CHUNKS,
    groups=GROUPS,
    parts=PARTS,
    rungs=(
        Rung("lossless", "lossless/1", some(len(PARTS)), states="state-lossless/1"),
        Rung("q4", "q4/1", some(len(PARTS), 90), base="lossless", states="state-q8/1"),
    ),
    origin=Origin("llama.cpp", "preread", 512),
)


def changed(change: Callable[[Any], object], manifest: Manifest = MANIFEST) -> bytes:
    tree = json.loads(manifests.dumps(manifest))
    change(tree)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def reason(data: bytes) -> str:
    with pytest.raises(CorruptData) as caught:
        manifests.loads(data)
    return caught.value.reason


def test_it_comes_back_as_it_was_written() -> None:
    data = manifests.dumps(MANIFEST)
    assert json.loads(data)["version"] == 2
    assert manifests.loads(data) == MANIFEST and MANIFEST.model.geometry is None


def test_places_are_parts_in_order_with_shapes_and_numbers() -> None:
    found = manifests.places(MANIFEST, "q4")
    assert [(place.group, place.chunk) for place in found] == list(PARTS)
    states, rows, latent = found[0], found[2], found[9]
    assert (states.shape, states.numbers, states.tokens) == (STATE, (0, 1, 6), Span(4, 8))
    assert states.base is None, "states stand alone"
    assert (rows.shape, rows.numbers, rows.layers) == (KVShape(2, 2, 4, 4), (2, 4), Span(2, 5))
    assert rows.base is not None and rows.base.size_bytes == 102
    assert latent.shape == KVShape(1, 1, 12, 0)


def test_headers_say_what_a_part_is() -> None:
    found = manifests.places(MANIFEST, "lossless")
    states, gapped, wide = (manifests.header(MANIFEST, "lossless", found[at]) for at in (1, 2, 5))
    assert (states.tokens, states.size_bytes) == (Span(0, 10), 88), "states are behind all tokens before them"
    assert (gapped.tokens, gapped.size_bytes, wide.size_bytes) == (Span(0, 4), 88, 88)


def test_layers_are_open_as_far_as_everything_before_is_in_place() -> None:
    assert [manifests.open_layers(MANIFEST, groups) for groups in range(5)] == [0, 2, 5, 7, 8]


@pytest.mark.parametrize("layers", [LAYERS, (Layer(ROWS, 4), Layer(ROWS)), (Layer(ROWS, None, STATE),)])
def test_only_alike_layers_have_a_geometry(layers: tuple[Layer, ...]) -> None:
    same = [layer.rows for layer in layers] == [ROWS] * len(layers) and not any(layer.state for layer in layers)
    assert (geometry_of(layers) is not None) == same
    assert geometry_of(alike(Geometry(5, 2, 4))) == Geometry(5, 2, 4) and geometry_of(()) is None


def test_what_version_1_says_is_not_said_by_version_2(manifest: Manifest) -> None:
    data = manifests.dumps(manifest)
    assert json.loads(data)["version"] == 1
    windowed = msgspec.structs.replace(manifest.model, layers=(Layer(ROWS, 4),) * 3)
    other = manifests.dumps(msgspec.structs.replace(manifest, model=windowed))
    assert json.loads(other)["version"] == 2

    def without_windows(tree: Any) -> None:
        for layer in tree["model"]["layers"]:
            del layer["rows"]["window"]

    assert reason(changed(without_windows, msgspec.structs.replace(manifest, model=windowed))) == "shape"


def test_all_parts_are_rows_everywhere_and_states_at_the_end() -> None:
    listed = manifests.all_parts(GROUPS, CHUNKS)
    assert [part for part in listed if part[0] == 0] == [(0, 2)] and len(listed) == 1 + 3 * 3
    assert [parts.first_needed(LAYERS, group, CHUNKS) for group in GROUPS] == [2, 0, 1, 0]
    assert parts.lacking(LAYERS, GROUPS, CHUNKS, PARTS) == 0
    lacks = [parts.lacking(LAYERS, GROUPS, CHUNKS, PARTS[:at] + PARTS[at + 1 :]) for at in range(len(PARTS))]
    assert lacks == [0] + [1] * (len(PARTS) - 1), "but for the state in the middle"


def test_rows_that_no_window_reaches_are_not_needed() -> None:
    layers, groups = (Layer(WIDE, 3),), (Group("rows", (0, 1)),)
    assert parts.first_needed(layers, groups[0], CHUNKS) == 2, "behind 10 tokens it looks at 8 and 9"
    assert parts.first_needed((Layer(WIDE, 4),), groups[0], CHUNKS) == 1


@pytest.mark.parametrize(
    "groups", [(GROUPS[1], GROUPS[0], *GROUPS[2:]), GROUPS[:-1], GROUPS[1:], (*GROUPS[:2], Group("rows", (4, 5)))]
)
def test_groups_are_in_order_and_all_there(groups: tuple[Group, ...]) -> None:
    with pytest.raises(CorruptData) as caught:
        parts.check_groups(LAYERS, groups)
    assert caught.value.reason == "shape"


def without(tree: Any, part: list[int]) -> None:
    """Leave a part out, and all of its segments."""
    at = tree["parts"].index(part)
    for of in (tree["parts"], *(rung["segments"] for rung in tree["rungs"])):
        del of[at]


def test_a_state_in_the_middle_may_be_missing() -> None:
    assert len(manifests.loads(changed(lambda tree: without(tree, [0, 1]))).parts) == len(PARTS) - 1


LAYER, GROUP, RUNG = (lambda t: t["model"]["layers"]), (lambda t: t["groups"]), (lambda t: t["rungs"][0])
CHANGES: list[tuple[str, str, Callable[[Any], object]]] = [
    ("version 1", "json", lambda t: t.update(version=1)),
    ("no layers", "schema", lambda t: t["model"].update(layers=[])),
    ("layers", "schema", lambda t: t["model"].update(layers=[{}] * 1025)),
    ("nothing", "shape", lambda t: t["model"].update(layers=[{}] * 8)),
    ("null rows", "json", lambda t: LAYER(t)[0].update(rows=None)),
    ("null window", "json", lambda t: LAYER(t)[2]["rows"].update(window=None)),
    ("heads", "schema", lambda t: LAYER(t)[2]["rows"].update(kv_heads=0)),
    ("heads huge", "schema", lambda t: LAYER(t)[2]["rows"].update(kv_heads=1025)),
    ("width", "schema", lambda t: LAYER(t)[2]["rows"].update(k_dim=4097)),
    ("no K", "schema", lambda t: LAYER(t)[2]["rows"].update(k_dim=0)),
    ("window", "schema", lambda t: LAYER(t)[5]["rows"].update(window=0)),
    ("state", "schema", lambda t: LAYER(t)[0]["state"].update(r=2**26 + 1)),
    ("state negative", "schema", lambda t: LAYER(t)[0]["state"].update(row=-1)),
    ("state huge", "shape", lambda t: [LAYER(t)[at]["state"].update(rows=2**26, row=2**26) for at in (0, 1, 6)]),
    ("state half", "shape", lambda t: [LAYER(t)[at]["state"].update(rows=0) for at in (0, 1, 6)]),
    ("state of nothing", "shape", lambda t: [LAYER(t)[at]["state"].update(r=0, rows=0, row=0) for at in (0, 1, 6)]),
    ("unlike in a group", "shape", lambda t: LAYER(t)[2]["rows"].update(kv_heads=1)),
    ("unlike states", "shape", lambda t: LAYER(t)[1]["state"].update(r=5)),
    ("kind", "schema", lambda t: GROUP(t)[0].update(kind="weights")),
    ("group order", "shape", lambda t: GROUP(t).reverse()),
    ("group twice", "shape", lambda t: GROUP(t).insert(0, GROUP(t)[0])),
    ("group missing", "shape", lambda t: GROUP(t).pop()),
    ("group of nothing", "shape", lambda t: GROUP(t)[1].update(layers=[3, 4])),
    ("group wide", "shape", lambda t: GROUP(t)[0].update(layers=[0, 8])),
    ("group begins late", "shape", lambda t: GROUP(t)[1].update(layers=[1, 5])),
    ("group backwards", "shape", lambda t: GROUP(t)[0].update(layers=[7, 1])),
    ("group huge", "shape", lambda t: GROUP(t)[0].update(layers=[0, 2**60])),
    ("part order", "shape", lambda t: t["parts"].reverse()),
    ("no parts", "shape", lambda t: t.update(parts=[])),
    ("part twice", "shape", lambda t: t["parts"].insert(0, [0, 1])),
    ("part of no group", "shape", lambda t: t["parts"].append([4, 0])),
    ("part of no chunk", "shape", lambda t: t["parts"].append([3, 3])),
    ("part negative", "schema", lambda t: t["parts"].insert(0, [-1, 0])),
    ("state missing", "shape", lambda t: without(t, [0, 2])),
    ("window rows missing", "shape", lambda t: without(t, [2, 1])),
    ("rows missing", "shape", lambda t: without(t, [1, 0])),
    ("segment missing", "shape", lambda t: RUNG(t)["segments"].pop()),
    ("segment too many", "shape", lambda t: RUNG(t)["segments"].append(RUNG(t)["segments"][0])),
    ("segments by chunk", "schema", lambda t: RUNG(t).update(segments=[RUNG(t)["segments"]])),
    ("segment empty", "length", lambda t: RUNG(t)["segments"][0].update(bytes=88)),
    ("state large", "length", lambda t: RUNG(t)["segments"][0].update(bytes=88 + 192 + 24 + 4096 + 1)),
    ("rows large", "length", lambda t: RUNG(t)["segments"][4].update(bytes=88 + 128 + 16 + 4096 + 1)),
    ("states codec missing", "shape", lambda t: RUNG(t).pop("states")),
    ("states codec null", "json", lambda t: RUNG(t).update(states=None)),
    ("states codec", "schema", lambda t: RUNG(t).update(states="")),
    ("geometry", "schema", lambda t: t["model"].update(geometry={"layers": 8, "kv_heads": 2, "head_dim": 4})),
    ("base of a base", "rung", lambda t: t["rungs"][0].update(base="q4")),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "change"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_broken(expected: str, change: Callable[[Any], object]) -> None:
    assert reason(changed(change)) in (expected, "schema" if expected == "json" else expected)


def test_the_largest_segments_are_allowed() -> None:
    def change(tree: Any) -> None:
        RUNG(tree)["segments"][0]["bytes"] = 88 + 192 + 24 + 4096  # 3 layers of 6 + 10 float32
        RUNG(tree)["segments"][4]["bytes"] = 88 + 128 + 16 + 4096  # 2 tokens of 2 layers of 2 × 8 float16

    assert manifests.loads(changed(change)).rungs[0].segments[0].size_bytes == 4400


def test_states_without_a_codec_are_not_written() -> None:
    with pytest.raises(UsageError, match="cannot be published"):
        rung = msgspec.structs.replace(MANIFEST.rungs[0], states=None)
        manifests.dumps(msgspec.structs.replace(MANIFEST, rungs=(rung,)))


def test_a_record_notes_what_a_chunk_has() -> None:
    work = drafts.work(MANIFEST)
    assert [work.groups_at(chunk) for chunk in range(3)] == [[1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    noted = drafts.rows(MANIFEST)
    assert [[len(cells) for cells in row] for row in noted] == [[2, 2], [4, 4], [4, 4]]
    assert all(drafts.flat(work, noted, at) == rung.segments for at, rung in enumerate(MANIFEST.rungs))
    draft = drafts.Draft(drafts.digest(work), work.context, noted)
    assert drafts.loads(drafts.dumps(draft), work) == draft
    fewer = msgspec.structs.replace(draft, rows=(noted[1],))
    with pytest.raises(CorruptData, match="segment for each"):
        drafts.loads(drafts.dumps(fewer), work)
    assert drafts.digest(work) != drafts.digest(msgspec.structs.replace(work, parts=PARTS[1:]))


def test_more_groups_and_chunks_than_memory_has_room_for_are_refused_at_once(manifest: Manifest) -> None:
    chunks = [[at, at + 1] for at in range(2000)]

    def many(tree: Any) -> None:
        tree["tokens"].update(count=2000)
        tree.update(chunks=chunks, groups=[{"kind": "rows", "layers": [at, at + 1]} for at in range(1024)])
        tree["model"]["layers"] = [{"rows": {"kv_heads": 1, "k_dim": 8, "v_dim": 4}}] * 1024

    def many_in_version_1(tree: Any) -> None:
        tree["tokens"].update(count=2000)
        tree.update(chunks=chunks, groups=[[at, at + 1] for at in range(1024)], rungs=[])
        tree["model"]["geometry"].update(layers=1024)

    for data, expected in ((changed(many), "shape"), (changed(many_in_version_1, manifest), "rung")):
        tracemalloc.start()
        assert reason(data) == expected
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most_bytes < 2**25, "2,048,000 cells, of 16 bytes at least"


@st.composite
def drawn(draw: Any) -> Manifest:
    """A sound manifest of layers of any kind, in groups and chunks of any size."""
    kept = st.builds(
        Layer,
        st.none() | st.sampled_from([ROWS, WIDE, LATENT]),
        st.none(),
        st.none() | st.just(STATE),
    )
    layers = draw(st.lists(kept, min_size=1, max_size=8).filter(lambda all: any(one.rows or one.state for one in all)))
    layers = [Layer(one.rows, draw(st.none() | st.integers(2, 40)) if one.rows else None, one.state) for one in layers]
    borders = sorted(draw(st.sets(st.integers(1, 29), max_size=4)))
    chunks = tuple(zip([0, *borders], [*borders, 30], strict=True))
    groups = []
    for kind in ("rows", "states"):
        run: list[int] = []
        for number, layer in enumerate(layers):
            own = layer.rows if kind == "rows" else layer.state
            if own is None:
                continue
            if run and ((layers[run[0]].rows != own and kind == "rows") or draw(st.booleans())):
                groups.append(Group(kind, (run[0], run[-1] + 1)))
                run = []
            run.append(number)
        groups += [Group(kind, (run[0], run[-1] + 1))] if run else []
    groups.sort(key=lambda group: (group.layers[0], group.kind))
    cells = [(group, chunk) for group in range(len(groups)) for chunk in range(len(chunks))]
    firsts = [parts.first_needed(layers, group, chunks) for group in groups]
    listed = tuple((group, chunk) for group, chunk in cells if chunk >= firsts[group] or draw(st.booleans()))
    states = "s/1" if any(group.kind == "states" for group in groups) else None
    model = Model("drawn", Fingerprint("0" * 64), tuple(layers))
    rungs = (Rung("lossless", "lossless/1", some(len(listed)), states=states),)
    ref = Tokens(30, ObjectId("a" * 64), 40)
    origin = Origin("e", "s", 1)
    return Manifest(ContextId("1" * 64), "chat", model, ref, chunks, tuple(groups), listed, rungs, origin)


@settings(max_examples=150, deadline=None)
@given(drawn())
def test_any_sound_manifest_comes_back_and_its_places_tile_it(manifest: Manifest) -> None:
    assert manifests.loads(manifests.dumps(manifest)) == manifest
    found = manifests.places(manifest, "lossless")
    at_end = {(place.numbers, type(place.shape)) for place in found if place.tokens.stop == 30}
    kept = sorted(number for numbers, kind in at_end if kind is KVShape for number in numbers)
    assert kept == [number for number, layer in enumerate(manifest.model.layers) if layer.rows]
    opened = [manifests.open_layers(manifest, groups) for groups in range(len(manifest.groups) + 1)]
    assert opened == sorted(opened) and opened[-1] == len(manifest.model.layers)
    for place in found:
        header = manifests.header(manifest, "lossless", place)
        assert segment.unpack(segment.pack(header, b"x"), header) == b"x"


def test_truncated_or_flipped(vectors: Path) -> None:
    data = (vectors / "manifest-2.json").read_bytes()
    for stop in range(len(data)):
        reason(data[:stop])
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 4
        try:
            assert manifests.dumps(manifests.loads(bytes(broken))) == broken
        except CorruptData:
            continue


def test_golden(vectors: Path) -> None:
    data = (vectors / "manifest-2.json").read_bytes()
    golden = manifests.loads(data)
    assert manifests.dumps(golden) == data
    assert golden.model.layers == (Layer(state=StateShape(6, 2, 4)), Layer(RowShape(1, 8, 4), 4), Layer())
    assert (golden.groups, golden.parts) == ((Group("states", (0, 1)), Group("rows", (1, 2))), ((0, 0), (1, 0)))
    fingerprint, ids = golden.model.fingerprint, [1, 2, 3, 5, 8, 13, 21, 2147483647]
    assert golden.context == context_id(fingerprint, ids)
    states, rows = manifests.places(golden, "lossless")
    for place, name in ((states, "segment-states.bin"), (rows, "segment-rows.bin")):
        frame = (vectors / name).read_bytes()
        assert (place.ref.id, place.ref.size_bytes) == (object_id(frame), len(frame))
        header = manifests.header(golden, "lossless", place)
        assert segment.pack(header, bytes(segment.unpack(frame, header))) == frame


STATES = segment.SegmentHeader(ContextId("0123456789abcdef" * 4), "q8", Span(0, 512), Span(4, 8), StateShape(9, 2, 64))
WIDE_ROWS = segment.SegmentHeader(STATES.context, "q8", Span(0, 512), Span(4, 8), KVShape(4, 2, 64, 32))


@pytest.mark.parametrize("header", [STATES, WIDE_ROWS])
def test_every_bit_of_a_header_is_checked(header: segment.SegmentHeader) -> None:
    frame = segment.pack(header, b"payload")
    assert len(frame) == 88 + 7
    for place in range(88):
        for bit in range(8):
            broken = bytearray(frame)
            broken[place] ^= 1 << bit
            with pytest.raises(CorruptData):
                segment.unpack(bytes(broken), header)
    for stop in range(len(frame)):
        with pytest.raises(CorruptData):
            segment.unpack(frame[:stop], header)


def test_states_are_not_taken_for_rows() -> None:
    with pytest.raises(CorruptData) as caught:
        segment.unpack(segment.pack(WIDE_ROWS, b"payload"), STATES)
    assert caught.value.reason == "shape"
    with pytest.raises(UsageError):
        segment.pack(segment.SegmentHeader(*[STATES.context, "q8", Span(0, 1), Span(0, 1), StateShape(0, 0, 0)]), b"x")
