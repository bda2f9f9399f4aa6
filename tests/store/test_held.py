"""Segments on disk: whole or not at all, checked, bounded, found again, and never in the way of anything."""

import errno
import logging
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import UsageError
from preread.store.held import Held
from preread.values import ObjectId, ObjectRef
from preread.wire.digest import object_id


def segment(number: int, size_bytes: int = 100) -> tuple[ObjectRef, bytes]:
    data = number.to_bytes(4, "big") * (size_bytes // 4)
    return ObjectRef("segments", object_id(data), len(data)), data


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_kept_is_found_again_after_a_restart(tmp_path: Path) -> None:
    first, (ref, data) = Held(tmp_path, 1000), segment(1)
    assert first.read(ref) is None and ref.id not in first
    assert first.keep(ref, data) and ref.id in first and first.read(ref) == data
    second = Held(tmp_path, 1000)
    assert ref.id not in second
    second.scan()
    assert ref.id in second and second.used_bytes == 100 and second.read(ref) == data
    assert [path.name for path in files(tmp_path)] == [ref.id]


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100, b"x" * 5000])
def test_a_damaged_one_is_removed(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    held, (ref, data) = Held(tmp_path, 1000), segment(1)
    held.keep(ref, data)
    files(tmp_path)[0].write_bytes(damage)
    assert held.read(ref) is None and ref.id not in held and held.used_bytes == 0
    assert files(tmp_path) == [] and "damaged" in caplog.text
    assert held.keep(ref, data) and held.read(ref) == data


def test_only_segments_are_kept(tmp_path: Path) -> None:
    held, (ref, data) = Held(tmp_path, 1000), segment(1)
    assert not held.keep(ObjectRef("tokens", ref.id, 100), data)
    assert not held.keep(ObjectRef("segments", ref.id, 99), data)
    assert not held.keep(*segment(2, 2000))
    assert files(tmp_path) == []
    with pytest.raises(UsageError):
        Held(tmp_path, 0)


def test_least_recently_used_goes_first_and_protected_last(tmp_path: Path) -> None:
    held = Held(tmp_path, 300)
    refs = [segment(number) for number in range(5)]
    for ref, data in refs[:3]:
        held.keep(ref, data)
    held.read(refs[0][0])
    held.keep(*refs[3])
    assert held.ids() == [refs[number][0].id for number in (2, 0, 3)]
    held.protect([refs[2][0].id])
    held.keep(*refs[4])
    assert held.ids() == [refs[number][0].id for number in (2, 3, 4)]
    held.protect(ref.id for ref, _ in refs)
    held.keep(*refs[0])
    assert refs[2][0].id not in held and held.used_bytes == 300


def test_order_of_use_outlives_a_restart(tmp_path: Path) -> None:
    held, refs = Held(tmp_path, 300), [segment(number) for number in range(3)]
    for age, (ref, data) in enumerate(refs):
        held.keep(ref, data)
        os.utime(tmp_path / ref.id[:2] / ref.id, (1000 + age, 1000 + age))
    held.read(refs[0][0])
    again = Held(tmp_path, 300)
    again.scan()
    assert again.ids() == [refs[number][0].id for number in (1, 2, 0)]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["keep", "read", "drop", "scan", "protect"])), max_size=40)
)
def test_never_over_its_room_and_never_wrong(steps: list[tuple[int, str]]) -> None:
    sizes = [4 * (number * 7 % 11 + 1) for number in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        held = Held(Path(folder), 100)
        for number, step in steps:
            ref, data = segment(number, sizes[number])
            if step == "keep":
                assert held.keep(ref, data) and held.read(ref) == data
            elif step == "read":
                assert held.read(ref) == (data if ref.id in held else None)
            elif step == "drop":
                held.drop([ref.id])
                assert ref.id not in held
            elif step == "protect":
                held.protect([ref.id])
            else:
                held.scan()
            there = {path.name: path.stat().st_size for path in files(Path(folder))}
            assert sum(there.values()) == held.used_bytes <= 100 and set(there) == set(held.ids())


def test_full_disk_costs_only_the_keeping_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    held = Held(tmp_path, 1000)
    held.keep(*segment(0))
    with monkeypatch.context() as patched:
        patched.setattr("preread.store.held.os.replace", full)
        assert [held.keep(*segment(number)) for number in (1, 2, 3)] == [False] * 3
    assert caplog.text.count("No space left on device") == 1
    assert len(files(tmp_path)) == 1 and held.used_bytes == 100
    assert held.keep(*segment(1))


def test_folder_that_cannot_be_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    held, (ref, data) = Held(tmp_path / "file" / "held", 1000), segment(1)
    held.scan()
    assert not held.keep(ref, data) and held.read(ref) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_leftovers_of_a_killed_process_are_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    held, (ref, data) = Held(tmp_path, 1000), segment(1)
    held.keep(ref, data)
    folder = tmp_path / ref.id[:2]
    for name, written_s in ((".new-old", 1000), (".new-young", None)):
        (folder / name).write_bytes(b"half")
        if written_s:
            os.utime(folder / name, (written_s, written_s))
    held.scan()
    assert sorted(path.name for path in folder.iterdir()) == [".new-young", ref.id]
    assert held.ids() == [ref.id]


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    one, two = Held(tmp_path, 1000), Held(tmp_path, 1000)
    ref, data = segment(1)
    one.keep(ref, data)
    assert two.read(ref) == data and ref.id in two
    two.drop([ref.id])
    assert one.read(ref) is None and ref.id not in one
    for number in range(30):
        (one, two)[number % 2].keep(*segment(number))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1200


def _write_for_ever(folder: Path, started: Any) -> None:
    held = Held(folder, 1 << 20)
    for number in range(10**9):
        held.keep(*segment(number, 50_000))
        started.set()


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What is there under a name is whole."""
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        started = context.Event()
        process = context.Process(target=_write_for_ever, args=(tmp_path, started))
        process.start()
        assert started.wait(30)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    held = Held(tmp_path, 1 << 20)
    held.scan()
    assert held.ids()
    for id in held.ids():
        assert held.read(ObjectRef("segments", ObjectId(id), 50_000)) is not None


def test_a_guest_never_takes_the_place_of_what_is_used_here(tmp_path: Path) -> None:
    held = Held(tmp_path, 1000)
    own = [segment(number) for number in range(8)]
    for ref, data in own:
        held.keep(ref, data)
    guests = [segment(number) for number in range(100, 104)]
    assert [held.keep(ref, data, guest=True) for ref, data in guests] == [True] * 4
    assert all(ref.id in held for ref, _ in [*own, *guests[2:]]) and not any(ref.id in held for ref, _ in guests[:2])
    assert not held.keep(*segment(200, 400), guest=True), "it would take more than guests have"
    assert all(ref.id in held for ref, _ in [*own, *guests[2:]])


def test_guests_go_before_what_was_used_longer_ago_unless_they_are_read_here(tmp_path: Path) -> None:
    held = Held(tmp_path, 1000)
    (old, old_data), (read, read_data), (served, served_data) = (segment(number) for number in range(3))
    held.keep(old, old_data)
    held.keep(read, read_data, guest=True)
    held.keep(served, served_data, guest=True)
    assert held.read(served, guest=True) and held.read(read)
    for number in range(10, 18):
        held.keep(*segment(number))
    assert (old.id in held, read.id in held, served.id in held) == (True, True, False)
