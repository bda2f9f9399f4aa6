"""The record of how far a publication has come: read exactly as written, and never taken for that of another one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData, UsageError
from preread.values import ContextId, Fingerprint, Geometry, ObjectId, ObjectRef, Span, alike
from preread.wire import draft as drafts
from preread.wire.draft import Draft, RungCodec, Work
from preread.wire.fields import MAX_SEGMENT_BYTES, SizedId
from preread.wire.manifest import Model, Origin, all_parts, rows_of

ids = st.text("0123456789abcdef", min_size=64, max_size=64).map(ObjectId)
cells = st.builds(SizedId, ids, st.integers(1, MAX_SEGMENT_BYTES))
CHUNKS, GROUPS = ((0, 128), (128, 256), (256, 300)), rows_of([Span(0, 2), Span(2, 3)])
WORK = Work(
    context=ContextId("c" * 64),
    form="chat",
    model=Model("tiny é", Fingerprint("f" * 64), alike(Geometry(3, 2, 4))),
    token_count=300,
    chunks=CHUNKS,
    groups=GROUPS,
    parts=all_parts(GROUPS, CHUNKS),
    rungs=(RungCodec("lossless", "lossless/1"), RungCodec("b4", "fitted/1", ObjectId("a" * 64), "b2")),
    origin=Origin("llama.cpp", "preread", 512),
)
rows = st.lists(st.tuples(*[st.tuples(cells, cells)] * 2), max_size=3).map(tuple)
made = st.builds(Draft, st.just(drafts.digest(WORK)), st.just(WORK.context), rows, st.none() | cells)


def reason(data: bytes, work: Work = WORK) -> str:
    with pytest.raises(CorruptData) as caught:
        drafts.loads(data, work)
    return caught.value.reason


def test_golden() -> None:
    data = (Path(__file__).parents[1] / "vectors" / "draft.json").read_bytes()
    golden = drafts.loads(data, WORK)
    assert drafts.dumps(golden) == data
    assert (
        golden.work == "4119a84f90ae2a25d9e50669498e44597696851061f7e27eb5204a799b2de78a"
        and len(golden.rows) == 1
        and golden.manifest is None
    )
    assert drafts.segments(golden)[1] == ObjectRef("segments", ObjectId("2" * 64), 202)


@given(made)
def test_round_trip(draft: Draft) -> None:
    data = drafts.dumps(draft)
    assert drafts.loads(data, WORK) == drafts.read(data) == draft
    assert [ref.size_bytes for ref in drafts.segments(draft)] == [
        cell.size_bytes for row in draft.rows for rung in row for cell in rung
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"context": ContextId("d" * 64)},
        {"form": "text"},
        {"model": Model("tiny", Fingerprint("f" * 64), alike(Geometry(3, 2, 4)))},
        {"token_count": 299},
        {"chunks": ((0, 128), (128, 300))},
        {"groups": rows_of([Span(0, 1), Span(1, 3)])},
        {"rungs": WORK.rungs[:1]},
        {"rungs": (WORK.rungs[0], RungCodec("b4", "fitted/1", ObjectId("b" * 64), "b2"))},
        {"rungs": (RungCodec("lossless", "lossless/2"), WORK.rungs[1])},
        {"origin": Origin("llama.cpp", "preread", 256)},
        {"origin": Origin("llama.cpp 2", "preread", 512)},
    ],
)
def test_whatever_changes_what_is_made_has_a_record_of_its_own(change: dict[str, object]) -> None:
    other = msgspec.structs.replace(WORK, **change)
    assert drafts.digest(other) != drafts.digest(WORK)
    assert reason(drafts.dumps(Draft(drafts.digest(WORK), WORK.context)), other) == "digest"


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("format", lambda tree: tree.update(format="preread-manifest")),
        ("version", lambda tree: tree.update(version=2)),
        ("schema", lambda tree: tree.update(more=1)),
        ("schema", lambda tree: tree.update(work="no digest")),
        ("schema", lambda tree: tree.update(rows=[[[{"bytes": 0, "id": "a" * 64}] * 2] * 2])),
        ("shape", lambda tree: tree.update(rows=[[[]] * 2])),
        ("shape", lambda tree: tree.update(rows=[[[{"bytes": 1, "id": "a" * 64}] * 2]])),
        ("shape", lambda tree: tree.update(rows=[[[{"bytes": 1, "id": "a" * 64}] * 2] * 2] * 4)),
    ],
)
def test_broken(expected: str, change: Callable[[Any], object]) -> None:
    tree = json.loads(drafts.dumps(Draft(drafts.digest(WORK), WORK.context)))
    change(tree)
    assert reason(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()) == expected


def test_a_record_that_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drafts.dumps(Draft(drafts.digest(WORK), WORK.context))
    monkeypatch.setattr(drafts, "MAX_DRAFT_BYTES", len(data) - 1)
    assert reason(data) == "length"
    with pytest.raises(UsageError, match="at most"):
        drafts.dumps(Draft(drafts.digest(WORK), WORK.context))


@given(st.binary(max_size=300), st.integers(0, 10**6), st.integers(1, 255))
def test_arbitrary_and_flipped_bytes_are_refused_or_read_as_they_are(noise: bytes, at: int, flip: int) -> None:
    good = bytearray(drafts.dumps(Draft(drafts.digest(WORK), WORK.context)))
    good[at % len(good)] ^= flip
    for data in (noise, bytes(good), bytes(good[: at % len(good)])):
        try:
            assert drafts.dumps(drafts.read(data)) == data
        except CorruptData:
            pass
