"""Files that outlive a power cut: what was written is on the disk, and so are the folders that name it.

A file is durable when its bytes are, and its name in its folder, and that folder's in its own (fsync(2)).
"""

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_DRAFT: Final = ".new-"
_STALE_S: Final = 3600.0
"""A draft that is so old belongs to a process that is gone."""
_NO_LINKS: Final = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_AT_ONCE: Final = 8
"""A journal is written once for all who wait for it: eight at a time took a twentieth of the time of one by one."""


def settle(root: Path, keys: Iterable[str]) -> None:
    """Make files below `root`, whose bytes are with the kernel, durable. Those that are gone meanwhile are left out.

    Raises:
        OSError: the disk failed.
    """
    files = [Path(key) for key in keys]
    folders = {folder for file in files for folder in file.parents}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for part in (files, folders):
            list(pool.map(_sync, [root / path for path in part]))


def replace(file: Path, data: bytes) -> None:
    """Write a file durably: after a power cut it holds `data`, or what it held before.

    Raises:
        OSError: there is no room, or the disk failed.
    """
    made = _made_for(file)
    with _drafted(file, data) as draft:
        os.replace(draft, file)
    _sync_all(made)


def create(file: Path, data: bytes, room: Path | None = None) -> bool:
    """Write a file durably that is not there yet: it appears whole. Whether it was not there.

    Where the disk is full, `room` is removed, if there is such a file.

    Raises:
        OSError: there is no room, or the disk failed.
    """
    made = _made_for(file)
    with _drafted(file, data, room) as draft:
        try:
            os.link(draft, file)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not _renamed(draft, file):
                return False
    _sync_all(made)
    return True


def set_room_aside(file: Path, size_bytes: int) -> None:
    """Have a file that takes room, as long as there is some, so that there is some when nothing else is left."""
    if file.exists():
        return
    try:
        replace(file, bytes(size_bytes))
    except OSError:
        return  # the next time, when something was removed


def touch(file: Path) -> None:
    """Say that a file was written now, as far as it is there: it is about to be relied on."""
    try:
        os.utime(file)
    except FileNotFoundError:
        return


def _made_for(file: Path) -> list[Path]:
    """Make the folder of a file; the folders that name it, and those that were made, which are to be synced."""
    folders = [file.parent]
    while not folders[-1].exists():
        folders.append(folders[-1].parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    return folders


def _sync_all(folders: Iterable[Path]) -> None:
    for folder in folders:
        _sync(folder)


@contextmanager
def _drafted(file: Path, data: bytes, room: Path | None = None) -> Iterator[str]:
    """A file beside `file` with these bytes on the disk, which is gone afterwards, unless it was given another name."""
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=_DRAFT)
    os.close(handle)
    try:
        try:
            _write(draft, data)
        except OSError as error:
            if room is None or error.errno not in _FULL or not room.exists():
                raise
            room.unlink()
            _write(draft, data)
        yield draft
    finally:
        Path(draft).unlink(missing_ok=True)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _renamed(draft: str, file: Path) -> bool:
    """Rename unless `file` is there, on a disk without links: all who do so hold a lock on the folder meanwhile."""
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if file.exists():
            return False
        os.replace(draft, file)
        return True
    finally:
        os.close(folder)


def remove(file: Path) -> None:
    """Remove a file, if it is there, so that it does not come back with a power cut.

    Raises:
        OSError: the disk failed.
    """
    file.unlink(missing_ok=True)
    _sync(file.parent)


def sweep(root: Path) -> None:
    """Remove what writing left in `root` and its folders when a process was killed, but not what may be new."""
    for draft in (*root.glob(f"{_DRAFT}*"), *root.glob(f"*/{_DRAFT}*"), *root.glob(f"*/*/{_DRAFT}*")):
        try:
            if time.time() - draft.stat().st_mtime > _STALE_S:
                draft.unlink()
        except FileNotFoundError:
            continue


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
