"""Slot files: whole, private, few enough, and gone at the end."""

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.attach.folder import Folder
from preread.errors import EngineError, UsageError
from preread.values import ContextId

A, B, C = ((ContextId(letter * 64), "lossless") for letter in "abc")


def _kept(folder: Folder, key: tuple[ContextId, str], size_bytes: int) -> str:
    with folder.draft(size_bytes) as draft:
        draft.file[:] = 7
        return folder.keep(key, draft, tokens=size_bytes).name


def _files(path: Path) -> set[str]:
    return {file.name for file in path.iterdir() if file.name.startswith("preread-")}


def test_a_file_appears_whole_for_its_owner_only_and_goes_at_the_end(tmp_path: Path) -> None:
    with Folder(tmp_path, 1000) as folder:
        with folder.draft(100) as draft:
            assert not folder.holds(draft.name)
            draft.file[:] = 7
            kept = folder.keep(A, draft, tokens=5)
        assert folder.holds(kept.name) and folder.find(A) == kept
        assert (tmp_path / kept.name).read_bytes() == bytes([7]) * 100
        assert stat.S_IMODE((tmp_path / kept.name).stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    with Folder(tmp_path, 250) as folder:
        _kept(folder, A, 100)
        _kept(folder, B, 100)
        folder.find(A)
        assert B in folder  # who looks whether it is there does not use it
        _kept(folder, C, 100)
        assert folder.find(B) is None and folder.find(A) is not None and folder.find(C) is not None
        assert folder.used_bytes == 200 and len(_files(tmp_path)) == 2


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 120)), max_size=12))
def test_there_is_never_more_than_the_room(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[tuple[ContextId, str], int]]
) -> None:
    path = tmp_path_factory.mktemp("slots")
    with Folder(path, 120) as folder:
        for key, size_bytes in puts:
            _kept(folder, key, size_bytes)
            assert sum((path / name).stat().st_size for name in _files(path)) == folder.used_bytes <= 120


def test_what_is_larger_than_the_room_is_refused(tmp_path: Path) -> None:
    with Folder(tmp_path, 100) as folder, pytest.raises(EngineError, match="--slots-room"), folder.draft(101):
        pass


def test_a_draft_that_is_not_kept_leaves_nothing(tmp_path: Path) -> None:
    with Folder(tmp_path, 100) as folder:
        with folder.draft(50):
            assert len(_files(tmp_path)) == 1
        assert not _files(tmp_path) and folder.used_bytes == 0


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left, other = tmp_path / f"preread-{'0' * 32}.bin.part", tmp_path / "conversation.bin"
    left.touch()
    other.touch()
    with Folder(tmp_path, 100):
        assert not left.exists()
    assert other.exists()


def test_a_folder_is_one_process_own(tmp_path: Path) -> None:
    with Folder(tmp_path, 100), pytest.raises(UsageError, match="another preread attach"), Folder(tmp_path, 100):
        pass
    with Folder(tmp_path, 100):
        pass


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--slot-save-path"), Folder(tmp_path / "none", 100):
        pass


def test_what_the_server_saved_is_bounded_and_has_to_be_in_the_folder(tmp_path: Path) -> None:
    with Folder(tmp_path, 100) as folder:
        name = folder.new_name()
        with pytest.raises(UsageError, match="as the server's user"):
            folder.read(name, 10)
        (tmp_path / name).write_bytes(bytes(11))
        with pytest.raises(EngineError, match="over 10"):
            folder.read(name, 10)
        assert len(folder.read(name, 11)) == 11
