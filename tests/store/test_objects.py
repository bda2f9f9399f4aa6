"""The store on a folder, in memory, and in a bucket; and what happens when the disk refuses."""

import asyncio
import os
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from preread.cloud.events import Request
from preread.errors import Full, RemoteError, UsageError
from preread.store.objects import Objects, open_store
from preread.testing.cloud import FINGERPRINT, RandomPublisher
from preread.testing.store import StoreContract, objects_of, present, publish, put_profile_of
from preread.values import Kind, ObjectId
from preread.wire import catalogue, pages
from preread.wire.digest import object_id


class TestFolder(StoreContract):
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return str(tmp_path / "new" / "store")


class TestMemory(StoreContract):
    @pytest.fixture
    def address(self) -> str:
        return "memory:"

    def test_objects_outlive_the_process(self, store: Objects, address: str) -> None:
        assert asyncio.run(open_store(address).names()) == []

    def test_the_profile_of_a_model_outlives_the_process(self, store: Objects, address: str) -> None:
        assert asyncio.run(open_store(address).profile_of(FINGERPRINT)) is None


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_leaves_no_object_and_the_catalogue_as_it_was(tiny_disk: Path) -> None:
    store = open_store(str(tiny_disk / "store"))
    entry = publish(store, "manual", "first edition")
    data = os.urandom(2 * 2**20)
    with pytest.raises(RemoteError, match=r"cannot be written: .*No space left.*free space"):
        asyncio.run(store.put("segments", data))
    assert asyncio.run(store.size("segments", object_id(data))) is None
    (tiny_disk / "ballast").write_bytes(b"x" * (os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_frsize))
    with pytest.raises(RemoteError):
        publish(store, "manual", "second edition, which is a good deal longer than the first " * 20)
    assert asyncio.run(store.names()) == [entry]
    assert present(store, objects_of(store, entry)) == objects_of(store, entry)
    (tiny_disk / "ballast").unlink()
    publish(store, "manual", "second edition")


def test_a_full_disk_does_not_keep_a_name_from_being_removed(tiny_disk: Path) -> None:
    store = open_store(str(tiny_disk / "store"))
    publish(store, "manual", "a text that takes some room")
    (tiny_disk / "ballast").write_bytes(b"x" * (os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_frsize))
    assert asyncio.run(store.remove_name("manual"))
    assert asyncio.run(store.names()) == [] and asyncio.run(store.removed()) == ("manual",)


def test_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    open_store(str(tmp_path / "store"))
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert not list((tmp_path / "store").rglob(".probe*"))


@pytest.mark.parametrize("address", ["/dev/null/store", "/proc/store", "carrier-pigeon://bucket/prefix", ""])
def test_store_that_cannot_be_is_refused_when_opened(address: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        open_store(address)


def test_objects_are_healed_by_publishing_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    ref = asyncio.run(store.put("segments", b"as it should be"))
    (tmp_path / "segments" / ref.id[:2] / ref.id).write_bytes(b"torn")
    asyncio.run(store.put("segments", b"as it should be"))
    assert asyncio.run(store.read("segments", ref.id)) == b"as it should be"


def test_a_log_that_is_damaged_is_told_of_and_nothing_is_changed(tmp_path: Path) -> None:
    publish(open_store(str(tmp_path)), "one", "text one")
    last = max((tmp_path / "log").rglob("*.json"))
    whole = last.read_bytes()
    for damaged in (b"", whole[:-9], whole.replace(b'"number":1', b'"number":2')):
        last.write_bytes(damaged)
        store = open_store(str(tmp_path))
        for call in (store.names, store.look, partial(store.remove_name, "one")):
            with pytest.raises(RemoteError, match=r"000000000001\.json cannot be read: .*preread store check"):
                asyncio.run(call())
    last.write_bytes(whole)
    assert [entry.name for entry in asyncio.run(open_store(str(tmp_path)).names())] == ["one"]


def test_damaged_manifest_of_another_name_of_the_context_keeps_everything(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    one = publish(store, "one", "the text")
    two = asyncio.run(RandomPublisher(store)(Request("two", "the text", form="chat"), lambda *_: None)).entry
    assert one.context == two.context and one.manifest != two.manifest
    keys = objects_of(store, one)
    (tmp_path / "manifests" / two.manifest.id[:2] / two.manifest.id).write_bytes(b"{}")
    assert asyncio.run(store.remove_name("one"))
    assert present(store, keys) == keys


def test_damaged_slot_of_a_profile_is_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path))
    put_profile_of(store, FINGERPRINT, b"habits")
    (tmp_path / "fitted" / f"{FINGERPRINT}.json").write_bytes(b'{"bytes":6,"id":"../x"}')
    assert asyncio.run(store.profile_of(FINGERPRINT)) is None
    assert "forgotten" in caplog.text
    ref = put_profile_of(store, FINGERPRINT, b"new habits")
    assert asyncio.run(store.profile_of(FINGERPRINT)) == ref


def test_a_name_that_would_not_fit_into_the_catalogue_is_refused_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    entries = [publish(store, name, f"text of {name}") for name in ("one", "two")]
    monkeypatch.setattr(pages, "MAX_ENTRIES", 2)
    with pytest.raises(Full, match=r"2 contexts.*preread contexts rm"):
        asyncio.run(store.check_room("three"))
    with pytest.raises(Full):
        publish(store, "three", "text of three")
    asyncio.run(store.check_room("two"))
    again = publish(store, "two", "another text")
    assert asyncio.run(store.names()) == asyncio.run(open_store(str(tmp_path)).names()) == [entries[0], again]
    assert asyncio.run(store.remove_name("two"))
    publish(store, "three", "text of three")


def test_a_catalogue_may_be_as_long_as_it_may_be_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    one, two = (publish(store, name, "a text") for name in ("one", "two"))
    whole = sum(len(catalogue.write(entry)) + 1 for entry in (one, two))
    assert asyncio.run(store.remove_name("two"))
    monkeypatch.setattr(pages, "MAX_ENTRIES_BYTES", whole - 1)
    with pytest.raises(Full):
        asyncio.run(store.put_name(two))
    monkeypatch.setattr(pages, "MAX_ENTRIES_BYTES", whole)
    asyncio.run(store.put_name(two))
    assert asyncio.run(store.names()) == [one, two]


def test_removing_a_name_reads_no_other_contexts_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    for name in ("one", "two", "three"):
        publish(store, name, f"text of {name}")
    read: list[str] = []

    async def reads(self: Objects, kind: Kind, id: ObjectId, *_: int) -> bytes | None:
        read.append(id)
        return await Objects.read(self, kind, id)

    store = type("Watched", (Objects,), {"read": reads})(store.blobs)
    (gone,) = [entry for entry in asyncio.run(store.names()) if entry.name == "two"]
    for name in ("twin", "triplet"):
        asyncio.run(store.put_name(msgspec.structs.replace(gone, name=name)))
    read.clear()
    assert asyncio.run(store.remove_name("twin"))
    assert read == [] and present(store, objects_of(store, gone)) == objects_of(store, gone)
    assert asyncio.run(store.remove_name("triplet"))
    read.clear()
    assert asyncio.run(store.remove_name("two"))
    assert read == [gone.manifest.id] and present(store, {("manifests", gone.manifest.id)}) == set()
