"""The slot files that preread puts into a server's --slot-save-path: whole, private, few enough, and gone at the end.

Names are drawn at random and nothing of them comes from outside. It knows files and room; it must not know what is in
them, or which server reads them.
"""

import logging
import os
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from preread import locks
from preread.attach.slot_file import Bytes
from preread.errors import EngineError, UsageError
from preread.values import ContextId

Key = tuple[ContextId, str]
"""A context, and the rung that its KV came in."""

_BEGINS: Final = "preread-"
_DRAFT: Final = ".part"
_LOCK: Final = ".preread-attach"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draft:
    """A file that is being written: the name that it will have, and its bytes."""

    name: str
    file: Bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """A slot file: its name, of how many tokens it is, and its size."""

    name: str
    tokens: int
    size_bytes: int


class Folder:
    """Slot files by context and rung, at most `room_bytes` of them: those used longest ago go first.

    Use it in a `with` statement, which takes the folder, removes what a killed process left there, and at the end all
    that was written.
    """

    def __init__(self, path: Path, room_bytes: int) -> None:
        self._path, self.room_bytes = path, room_bytes
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._taken = ExitStack()

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            UsageError: it is not there, cannot be written, or another process has it.
        """
        try:
            self._taken.enter_context(locks.held(self._path / _LOCK))
        except BlockingIOError as error:
            raise UsageError(
                f"another preread attach uses {self._path}: give each server a --slots of its own"
            ) from error
        except OSError as error:
            raise UsageError(
                f"--slots {self._path} cannot be used: {error.strerror}; name the folder of llama-server's "
                "--slot-save-path, which must be there and be writable"
            ) from error
        self._sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sweep()
        self._kept.clear()
        self._taken.close()

    @property
    def used_bytes(self) -> int:
        """Of the files that are kept."""
        kept = [*self._kept.values()]  # at once: drafts are begun in threads, while files are found beside
        return sum(one.size_bytes for one in kept)

    def new_name(self) -> str:
        """A name that no other file has, and that nobody can guess."""
        return f"{_BEGINS}{secrets.token_hex(16)}.bin"

    def read(self, name: str, most_bytes: int) -> Bytes:
        """A file that the server has saved under a name from `new_name`.

        Raises:
            UsageError: it is not there: the server writes elsewhere, or as somebody whose files cannot be read.
            EngineError: it has more than `most_bytes`.
        """
        path = self._path / name
        try:
            if path.stat().st_size > most_bytes:
                raise EngineError(f"the server saved {path.stat().st_size} bytes for a short text, over {most_bytes}")
            return np.fromfile(path, np.uint8)
        except OSError as error:
            raise UsageError(
                f"what the server saved is not in --slots {self._path} ({error.strerror}): name the folder of its "
                "--slot-save-path, and run preread attach as the server's user"
            ) from error

    @contextmanager
    def draft(self, size_bytes: int) -> Iterator[Draft]:
        """A new file of zeros, mapped into memory. It is gone when the context ends, unless it was kept.

        Raises:
            EngineError: there is no room for it, here or on the disk.
        """
        if size_bytes > self.room_bytes:
            raise EngineError(
                f"a slot file of {size_bytes >> 20} MiB is more than --slots-room {self.room_bytes >> 20} allows"
            )
        while self._kept and self.used_bytes + size_bytes > self.room_bytes:
            self.forget(next(iter(self._kept)))
        name = self.new_name()
        path = self._path / (name + _DRAFT)
        try:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(file, 0, size_bytes)  # writing into a map of a full disk would end the process
                finally:
                    os.close(file)
                mapped = np.memmap(path, np.uint8, "r+")
            except OSError as error:
                why = f"a slot file of {size_bytes >> 20} MiB cannot be written: {error.strerror}"
                raise EngineError(why) from error
            yield Draft(name, mapped)
        finally:
            with suppress(OSError):
                path.unlink()

    def keep(self, key: Key, draft: Draft, tokens: int) -> Kept:
        """A draft is whole: put it in place, for `key`.

        Raises:
            EngineError: it is gone.
        """
        path = self._path / draft.name
        try:
            os.replace(path.with_name(draft.name + _DRAFT), path)
        except OSError as error:
            raise EngineError(f"a slot file cannot be put in place: {error.strerror}") from error
        self.forget(key)
        self._kept[key] = kept = Kept(draft.name, tokens, len(draft.file))
        return kept

    def __contains__(self, key: Key) -> bool:
        """Whether anything is kept for `key`. Who only asks that does not use it."""
        return key in self._kept

    def find(self, key: Key) -> Kept | None:
        """What is kept for `key`, which is used by that."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def forget(self, key: Key) -> None:
        """Remove what is kept for `key`, if anything is."""
        if (kept := self._kept.pop(key, None)) is not None:
            self.drop(kept.name)

    def clear(self) -> None:
        """Remove all that is kept."""
        for key in [*self._kept]:
            self.forget(key)

    def holds(self, name: str) -> bool:
        """Whether a file of this name is there."""
        return (self._path / name).exists()

    def drop(self, name: str) -> None:
        """Remove a file."""
        with suppress(OSError):
            (self._path / name).unlink()

    def _sweep(self) -> None:
        """Remove all files of this kind: whoever holds the lock is the only one who has any."""
        try:
            for entry in os.scandir(self._path):
                if entry.name.startswith(_BEGINS) and entry.name.endswith((".bin", ".bin" + _DRAFT)):
                    os.unlink(entry.path)
        except OSError as error:
            _log.warning("slot files in %s cannot be removed: %s", self._path, error.strerror)
