import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preread.errors import CorruptData, UsageError
from preread.values import Geometry, KVShape, ObjectId, ObjectRef, Span, alike
from preread.wire import manifest as manifests
from preread.wire.digest import object_id
from preread.wire.fields import MAX_PROFILE_BYTES, SizedId
from preread.wire.manifest import Manifest, Quality
from preread.wire.segment import SegmentHeader

ID = "e" * 64
MICRONATS = st.integers(-(10**9), 10**9)
INTERVALS = st.tuples(MICRONATS, MICRONATS).map(lambda ends: (min(ends), max(ends)))
QUALITY = {"dloss_micronats": -7, "kl_micronats": 0, "tokens": 1, "top1_ppm": 999_999}


def changed(manifest: Manifest, change: Callable[[Any], object]) -> bytes:
    """The manifest's JSON after `change` to its tree, in canonical form."""
    tree = json.loads(manifests.dumps(manifest))
    change(tree)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def reason(data: bytes) -> str:
    with pytest.raises(CorruptData) as caught:
        manifests.loads(data)
    return caught.value.reason


def test_golden(vectors: Path) -> None:
    data = (vectors / "manifest.json").read_bytes()
    golden = manifests.loads(data)
    assert manifests.dumps(golden) == data
    assert golden.context == "0d4c777608629dd651429d2da50d38b68de0922a6c2bc8b348bec2c42d78b8c8"
    assert (golden.form, golden.model.name, golden.model.layers) == ("chat", "tiny é", alike(Geometry(2, 1, 8)))
    tokens = (vectors / "tokens.bin").read_bytes()
    assert manifests.tokens_ref(golden) == ObjectRef("tokens", object_id(tokens), len(tokens))
    assert [rung.name for rung in golden.rungs] == ["lossless", "q8", "q4"]
    for rung in golden.rungs:
        frame = (vectors / f"segment-{rung.name}.bin").read_bytes()
        (place,) = manifests.places(golden, rung.name)
        assert place.ref == ObjectRef("segments", object_id(frame), len(frame))


def test_round_trip(manifest: Manifest) -> None:
    assert manifests.loads(manifests.dumps(manifest)) == manifest


@given(
    st.none() | st.builds(SizedId, st.just(ID), st.integers(1, MAX_PROFILE_BYTES)),
    st.none()
    | st.builds(
        Quality,
        MICRONATS,
        st.integers(0, 10**9),
        st.integers(0, 10**6),
        st.integers(1, 2**31 - 1),
        st.none() | INTERVALS,
        st.none() | INTERVALS,
        st.sampled_from(["fit", "context", "inferred"]),
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_with_profile_and_quality(
    manifest: Manifest, profile: SizedId | None, quality: Quality | None
) -> None:
    thin = msgspec.structs.replace(manifest.rungs[1], profile=profile, quality=quality)
    written = msgspec.structs.replace(manifest, rungs=(manifest.rungs[0], thin))
    data = manifests.dumps(written)
    assert manifests.loads(data) == written
    told = json.loads(data)["rungs"]
    assert ("quality" in told[1]) == (quality is not None) and "quality" not in told[0]
    if quality is not None:  # what says no more than former writers did is written as they did
        assert ("kl_interval_micronats" in told[1]["quality"]) == (quality.kl_interval_micronats is not None)
        assert ("measured_on" in told[1]["quality"]) == (quality.measured_on != "fit")
    assert told[0]["profile"] is None and ("profile" in told[1])


def test_profile_ref(manifest: Manifest) -> None:
    thin = msgspec.structs.replace(manifest.rungs[1], profile=SizedId(ObjectId(ID), 9))
    assert manifests.profile_ref(thin) == ObjectRef("profiles", ObjectId(ID), 9)
    assert manifests.profile_ref(manifest.rungs[0]) is None


def test_places_come_in_layer_order(manifest: Manifest) -> None:
    found = manifests.places(manifest, "lossless")
    assert [(place.group, place.chunk) for place in found] == [(g, c) for g in range(2) for c in range(3)]
    assert [place.ref.size_bytes for place in found] == [100, 110, 120, 101, 111, 121]
    assert found[4].ref == ObjectRef("segments", manifest.rungs[0].segments[4].id, 111)
    assert (found[5].tokens, found[5].layers) == (Span(8, 10), Span(1, 3))
    expected = SegmentHeader(manifest.context, "lossless", Span(8, 10), Span(1, 3), KVShape(2, 2, 4, 4))
    assert manifests.header(manifest, "lossless", found[5]) == expected


def test_a_rung_that_it_lacks_is_a_usage_error(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="'q8'; it has: lossless, q4"):
        manifests.places(manifest, "q8")


def test_pairs_are_what_a_manifest_holds(manifest: Manifest) -> None:
    assert manifests.pairs([Span(0, 4), Span(4, 8), Span(8, 10)]) == manifest.chunks


def test_a_bound_has_room_for_a_header_and_the_raw_block(manifest: Manifest) -> None:
    assert manifests.segment_bounds_bytes(manifest)[5] == (80, 80 + 128 + 16 + 4096)


def test_a_newer_version_says_upgrade(manifest: Manifest) -> None:
    with pytest.raises(CorruptData, match="manifest has version 3, this preread reads up to 2: upgrade it"):
        manifests.loads(changed(manifest, lambda tree: tree.update(version=3, rungs="otherwise")))


CHANGES: list[tuple[str, str, Callable[[Any], object]]] = [
    ("format", "format", lambda t: t.update(format="preread-catalogue")),
    ("version 0", "version", lambda t: t.update(version=0)),
    ("extra field", "schema", lambda t: t.update(extra=1)),
    ("missing field", "schema", lambda t: t.pop("origin")),
    ("missing default", "json", lambda t: t["rungs"][0].pop("profile")),
    ("extra in geometry", "json", lambda t: t["model"]["geometry"].update(experts=2)),
    ("context", "schema", lambda t: t.update(context="C" * 64)),
    ("context newline", "schema", lambda t: t.update(context="c" * 64 + "\n")),
    ("form", "schema", lambda t: t.update(form="poem")),
    ("fingerprint", "schema", lambda t: t["model"].update(fingerprint="")),
    ("model name", "schema", lambda t: t["model"].update(name="a\nb")),
    ("model name empty", "schema", lambda t: t["model"].update(name="")),
    ("dtype", "schema", lambda t: t["model"].update(dtype="bf16")),
    ("no layers", "shape", lambda t: t["model"]["geometry"].update(layers=0)),
    ("layers", "shape", lambda t: t["model"]["geometry"].update(layers=1025)),
    ("heads", "shape", lambda t: t["model"]["geometry"].update(kv_heads=1025)),
    ("dimension", "shape", lambda t: t["model"]["geometry"].update(head_dim=4097)),
    ("negative", "shape", lambda t: t["model"]["geometry"].update(head_dim=-4)),
    ("huge", "shape", lambda t: t["model"]["geometry"].update(head_dim=2**70)),
    ("no tokens", "schema", lambda t: t["tokens"].update(count=0)),
    ("tokens", "schema", lambda t: t["tokens"].update(count=2**24 + 1)),
    ("tokens id", "schema", lambda t: t["tokens"].update(id=5)),
    ("tokens bytes", "length", lambda t: t["tokens"].update(bytes=10**6)),
    ("no chunks", "shape", lambda t: t.update(chunks=[])),
    ("gap", "shape", lambda t: t.update(chunks=[[0, 4], [5, 8], [8, 10]])),
    ("overlap", "shape", lambda t: t.update(chunks=[[0, 4], [3, 8], [8, 10]])),
    ("short", "shape", lambda t: t.update(chunks=[[0, 4], [4, 8], [8, 9]])),
    ("late", "shape", lambda t: t.update(chunks=[[1, 4], [4, 8], [8, 10]])),
    ("empty chunk", "shape", lambda t: t.update(chunks=[[0, 10], [10, 10], [10, 10]])),
    ("backwards", "shape", lambda t: t.update(chunks=[[0, 8], [8, 4], [4, 10]])),
    ("triple", "schema", lambda t: t.update(chunks=[[0, 4, 10]])),
    ("negative chunk", "schema", lambda t: t.update(chunks=[[-1, 10]])),
    ("groups", "shape", lambda t: t.update(groups=[[0, 1], [1, 2]])),
    ("no rungs", "rung", lambda t: t.update(rungs=[])),
    ("rung twice", "rung", lambda t: t["rungs"][1].update(name="lossless")),
    ("rung name", "schema", lambda t: t["rungs"][1].update(name="q4 ")),
    ("rung name long", "schema", lambda t: t["rungs"][1].update(name="q" * 17)),
    ("codec", "schema", lambda t: t["rungs"][1].update(codec="")),
    ("profile", "schema", lambda t: t["rungs"][1].update(profile="x")),
    ("profile without size", "schema", lambda t: t["rungs"][1].update(profile=ID)),
    ("profile empty", "schema", lambda t: t["rungs"][1].update(profile={"id": ID, "bytes": 0})),
    ("profile large", "length", lambda t: t["rungs"][1].update(profile={"id": ID, "bytes": 2**26 + 1})),
    ("quality null", "json", lambda t: t["rungs"][1].update(quality=None)),
    ("quality empty", "schema", lambda t: t["rungs"][1].update(quality={})),
    ("quality float", "schema", lambda t: t["rungs"][1].update(quality=QUALITY | {"kl_micronats": 0.5})),
    ("quality negative", "schema", lambda t: t["rungs"][1].update(quality=QUALITY | {"kl_micronats": -1})),
    ("quality share", "schema", lambda t: t["rungs"][1].update(quality=QUALITY | {"top1_ppm": 10**6 + 1})),
    ("quality of nothing", "schema", lambda t: t["rungs"][1].update(quality=QUALITY | {"tokens": 0})),
    ("quality huge", "schema", lambda t: t["rungs"][1].update(quality=QUALITY | {"dloss_micronats": -(10**9) - 1})),
    ("interval", "range", lambda t: t["rungs"][1].update(quality=QUALITY | {"kl_interval_micronats": [2, 1]})),
    ("interval end", "schema", lambda t: t["rungs"][1].update(quality=QUALITY | {"dloss_interval_micronats": [1]})),
    ("measured", "schema", lambda t: t["rungs"][1].update(quality=QUALITY | {"measured_on": "a guess"})),
    ("row", "shape", lambda t: t["rungs"][0]["segments"].pop()),
    ("column", "shape", lambda t: t["rungs"][0]["segments"][2].pop()),
    ("segment id", "schema", lambda t: t["rungs"][0]["segments"][2][1].update(id="../" + ID)),
    ("segment empty", "length", lambda t: t["rungs"][0]["segments"][2][1].update(bytes=80)),
    ("segment zero", "schema", lambda t: t["rungs"][0]["segments"][2][1].update(bytes=0)),
    ("segment large", "length", lambda t: t["rungs"][0]["segments"][2][1].update(bytes=80 + 128 + 16 + 4096 + 1)),
    ("mode", "schema", lambda t: t["origin"].update(mode="dreamt")),
    ("batch", "schema", lambda t: t["origin"].update(batch_tokens=0)),
    ("float", "schema", lambda t: t["origin"].update(batch_tokens=512.0)),
]


@pytest.mark.parametrize(("expected", "change"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_broken(manifest: Manifest, expected: str, change: Callable[[Any], object]) -> None:
    assert reason(changed(manifest, change)) == expected


def test_the_largest_segment_is_allowed(manifest: Manifest) -> None:
    # the last chunk has 2 tokens and the last group 2 layers of 2 × 4 values: 128 raw bytes
    data = changed(manifest, lambda t: t["rungs"][0]["segments"][2][1].update(bytes=80 + 128 + 16 + 4096))
    assert manifests.loads(data).rungs[0].segments[5].size_bytes == 4320


def test_segments_that_no_machine_should_allocate(manifest: Manifest) -> None:
    def change(tree: Any) -> None:
        tree["model"]["geometry"] = {"layers": 3, "kv_heads": 1024, "head_dim": 4096}
        tree["rungs"][0]["segments"][0][1]["bytes"] = 2**28 + 1

    assert reason(changed(manifest, change)) == "schema"


def test_what_could_not_be_read_is_not_written(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="cannot be published"):
        manifests.dumps(msgspec.structs.replace(manifest, chunks=((0, 9),)))


def test_truncated_or_flipped(vectors: Path) -> None:
    data = (vectors / "manifest.json").read_bytes()
    for stop in range(len(data)):
        reason(data[:stop])
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 4
        try:
            assert manifests.dumps(manifests.loads(bytes(broken))) == broken
        except CorruptData:
            continue


@settings(max_examples=60)
@given(st.binary(max_size=100), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=6))
def test_arbitrary_bytes(data: bytes, tree: Any) -> None:
    assert reason(data)
    assert reason(json.dumps({"format": "preread-manifest", "version": 1, "rungs": tree}).encode())
