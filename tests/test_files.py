from pathlib import Path

import pytest

from preread import files


def test_a_file_is_replaced_whole_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a"
    files.put_below(path, b"one")
    files.put(path, b"two")
    assert path.read_bytes() == b"two" and path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["a"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        files.put(tmp_path / "a", b"one")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    with pytest.raises(OSError, match="absent"):
        files.put(tmp_path / "absent" / "b", b"one")
