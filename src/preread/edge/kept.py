"""The folder in which an edge keeps what it knows of published contexts, for a start without a cloud.

It is this module's own, below the one that somebody named, and only files of names that it writes are ever removed. It
knows files and sizes; what they mean is in `contexts.py`.
"""

import hashlib
import logging
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import platformdirs

from preread import files
from preread.errors import CorruptData
from preread.values import ObjectRef
from preread.wire.digest import is_id, object_id

_STALE_S: Final = 600.0
_log = logging.getLogger(__name__)


def usual_folder(cloud: str | None) -> Path:
    """Where what a cloud publishes is kept by default: each has a folder of its own, whoever keeps it."""
    digest = hashlib.blake2b((cloud or "none").encode(), digest_size=8).hexdigest()
    return platformdirs.user_cache_path("preread") / "edge" / digest


class Kept:
    """Small files by name, and objects by id. Every method waits for the disk.

    Args:
        folder: made when it is needed; nobody else writes there but other edges of the same model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """A file that `write` has written; None if there is none.

        Raises:
            CorruptData: "length": it is longer than it may be.
            OSError: it cannot be read.
        """
        try:
            with open(self._folder / name, "rb") as file:
                data = file.read(most_bytes + 1)
        except FileNotFoundError:
            return None
        if len(data) > most_bytes:
            raise CorruptData("length", f"{self._folder / name} is longer than {most_bytes} bytes")
        return data

    def object(self, ref: ObjectRef) -> bytes | None:
        """An object's bytes, of the stated size and digest; None if it is not here, or damaged."""
        try:
            data = self.read(ref.id, ref.size_bytes)
        except (CorruptData, OSError) as error:
            _log.warning("the kept %s object %s… cannot be used: %s", ref.kind, ref.id[:12], error)
            return None
        if data is None:
            return None
        if len(data) != ref.size_bytes or object_id(data) != ref.id:
            _log.warning("the kept %s object %s… is damaged and will be fetched again", ref.kind, ref.id[:12])
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all. A full disk costs only what would have been kept."""
        try:
            files.put_below(self._folder / name, data)
        except OSError as error:
            _log.warning("the catalogue cannot be kept in %s: %s", self._folder, error)

    def forget_objects(self, but: Collection[str]) -> None:
        """Remove all other objects, and what a killed process left unfinished."""
        with suppress(OSError), os.scandir(self._folder) as found:
            for entry in found:
                superfluous = is_id(entry.name) and entry.name not in but
                with suppress(OSError):
                    if superfluous or (entry.name.startswith(files.DRAFT) and _stale(entry)):
                        os.unlink(entry.path)


def _stale(entry: os.DirEntry[str]) -> bool:
    return abs(time.time() - entry.stat(follow_symlinks=False).st_mtime) > _STALE_S
