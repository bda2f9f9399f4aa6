"""Files that outlive a power cut: what was written is on the disk, and so are the folders that name it.

A file is durable when its bytes are, and its name in its folder, and that folder's in its own (fsync(2)).
"""

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_DRAFT: Final = ".new-"
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
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=_DRAFT)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(draft, file)
    except OSError:
        os.unlink(draft)
        raise
    _sync(file.parent)


def remove(file: Path) -> None:
    """Remove a file, if it is there, so that it does not come back with a power cut.

    Raises:
        OSError: the disk failed.
    """
    file.unlink(missing_ok=True)
    _sync(file.parent)


def sweep(root: Path) -> None:
    """Remove what `replace` left in `root` and its folders when its process was killed; nobody may be writing now."""
    for draft in (*root.glob(f"{_DRAFT}*"), *root.glob(f"*/{_DRAFT}*")):
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
