"""What was acknowledged outlives a power cut: in which order bytes and names reach the disk."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preread.errors import RemoteError
from preread.store.objects import Objects, open_store
from preread.testing.store import objects_of, present, publish


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the disk is told, in order: ("sync", path) and ("name", path)."""
    told: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def watched_sync(handle: int) -> None:
        fsync(handle)
        told.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))

    def watched_link(draft: str, file: Path) -> None:
        told.append(("name", str(file)))
        link(draft, file)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "link", watched_link)
    return told


def files_of(store: Objects, root: Path, text: str) -> list[str]:
    entry = publish(store, "manual", text)
    return [str(root / kind / id[:2] / id) for kind, id in objects_of(store, entry)]


def test_a_name_is_put_when_all_that_it_leads_to_is_on_the_disk(tmp_path: Path, journal: list[tuple[str, str]]) -> None:
    root = tmp_path / "store"
    files = files_of(open_store(str(root)), root, "a text of some length")
    (put,) = [place for place, (what, _) in enumerate(journal) if what == "name"]
    before, after = journal[:put], journal[put + 1 :]
    assert {path for _, path in before} >= {*files, *(str(Path(file).parent) for file in files)}
    assert {path for _, path in before} >= {str(root), str(root / "segments"), str(root / "manifests")}
    assert ".new-" in before[-1][1] and ("sync", str(root / "log" / "000000000")) in after
    assert {("sync", str(root / "log")), ("sync", str(root))} <= set(after)


def test_each_object_is_synced_once_for_a_name(tmp_path: Path, journal: list[tuple[str, str]]) -> None:
    store = open_store(str(tmp_path))
    files = files_of(store, tmp_path, "a text")
    assert [journal.count(("sync", file)) for file in files] == [1] * len(files)
    journal.clear()
    publish(store, "another", "b")
    assert not {path for _, path in journal} & set(files)


def test_an_object_that_is_whole_is_not_written_anew_and_yet_synced(
    tmp_path: Path, journal: list[tuple[str, str]]
) -> None:
    """An attempt that was given up may have left it, with the kernel only; another name may lead to it."""
    files = files_of(open_store(str(tmp_path)), tmp_path, "a text")
    inodes = [os.stat(file).st_ino for file in files]
    journal.clear()
    files_of(open_store(str(tmp_path)), tmp_path, "a text")
    assert [os.stat(file).st_ino for file in files] == inodes
    assert {path for _, path in journal} >= set(files)


def test_a_removed_name_is_gone_from_the_disk_before_its_objects_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    entry = publish(store, "manual", "a text")
    manifest = tmp_path / "manifests" / entry.manifest.id[:2] / entry.manifest.id
    synced: list[tuple[str, int, bool]] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        fsync(handle)
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), len(list(changes.glob("*.json"))), manifest.exists()))

    changes = tmp_path / "log" / "000000000"
    before = len(list(changes.glob("*.json")))
    monkeypatch.setattr(os, "fsync", watched)
    assert asyncio.run(store.remove_name("manual"))
    assert (str(changes), before + 1, True) in synced and not manifest.exists()


def test_a_disk_that_does_not_take_it_fails_the_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    entry = publish(store, "manual", "first edition")

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(RemoteError, match=r"cannot be written: Input/output error"):
            publish(store, "manual", "second edition")
    assert asyncio.run(store.names()) == asyncio.run(open_store(str(tmp_path)).names()) == [entry]
    assert not list(tmp_path.rglob(".new-*"))
    second = publish(store, "manual", "second edition")
    assert asyncio.run(open_store(str(tmp_path)).names()) == [second]


PUBLISH = """
import asyncio, sys
from preread.store.objects import open_store
from preread.testing.store import publish
store = open_store(sys.argv[1])
for number in range(10**6):
    publish(store, f"context {number % 5}", f"edition {number} of a text")
    print(number, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 12])
def test_what_was_acknowledged_is_whole_after_a_kill(tmp_path: Path, acknowledged: int) -> None:
    """At whatever moment after so many; some of these replace others."""
    command = [sys.executable, "-c", PUBLISH, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(acknowledged):
            last = int(process.stdout.readline())
        process.kill()
        last = max([last, *map(int, process.stdout.read().split())])
    store = open_store(str(tmp_path))
    entries = {entry.name: entry for entry in asyncio.run(store.names())}
    assert entries.keys() >= {f"context {number % 5}" for number in range(last + 1)}
    for entry in entries.values():
        assert present(store, objects_of(store, entry)) == objects_of(store, entry)
