"""Records of publications in a store, and objects of earlier ones that are published again."""

import asyncio
from pathlib import Path

import pytest

from preread.store import durable
from preread.store.objects import Objects, open_store
from preread.values import ObjectId, ObjectRef
from preread.wire.digest import object_id

WORK = ObjectId("a" * 64)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return open_store(str(tmp_path) if request.param == "folder" else "memory:")


def test_a_record_is_read_as_it_was_noted_last(store: Objects) -> None:
    async def main() -> None:
        assert await store.drafts.read(WORK) is None
        for data in (b"one", b"two"):
            await store.drafts.note(WORK, data)
            assert await store.drafts.read(WORK) == data
        await store.drafts.finish(WORK, b"whole")
        assert await store.drafts.read(WORK) == b"whole"
        assert await store.names() == []

    asyncio.run(main())


def test_only_what_is_whole_is_kept(store: Objects, tmp_path: Path) -> None:
    async def main() -> None:
        ref = await store.put("segments", b"a segment")
        assert await store.keep(ref) == b"a segment"
        assert await store.keep(ObjectRef("segments", ref.id, 8)) is None
        assert await store.keep(ObjectRef("segments", object_id(b"another"), 7)) is None

    asyncio.run(main())


def test_what_a_former_process_stored_is_on_the_disk_before_the_record_says_that_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        kept = await open_store(str(tmp_path)).put("segments", b"written before the kill")
        left = await open_store(str(tmp_path)).put("segments", b"of somebody else")
        settled = set[str]()
        monkeypatch.setattr(durable, "settle", lambda folder, keys: settled.update(keys))
        store = open_store(str(tmp_path))
        await store.drafts.note(WORK, b"one chunk")
        assert await store.keep(kept) and not settled
        await store.drafts.finish(WORK, b"whole")
        assert settled == {f"segments/{kept.id[:2]}/{kept.id}"} and left.id not in str(settled)

    asyncio.run(main())


def test_a_damaged_object_is_not_kept(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(str(tmp_path))
        ref = await store.put("segments", b"a segment")
        (tmp_path / "segments" / ref.id[:2] / ref.id).write_bytes(b"a Segment")
        assert await store.keep(ref) is None

    asyncio.run(main())
