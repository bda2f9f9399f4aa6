"""Segments on the edge's own disk, so that a restart, or a context that comes back, costs no transfer.

A folder of files named by the digest of their bytes, `ab/abcd…`: only objects that the cloud publishes for every edge,
and nothing that follows from a prompt. It knows files, room and order of use; it must not know contexts or HTTP.

A file appears whole by a rename or not at all, and is checked against its name whenever it is read: so it does not
matter when a process is killed, whether the power fails (nothing is synced), or how many processes share the folder.
Whatever goes wrong here costs the caching, never the object: callers fetch it again.
"""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from preread import files
from preread.errors import UsageError
from preread.values import ObjectId, ObjectRef
from preread.wire.digest import is_id, object_id

_STALE_S = 600.0
"""A file that is still being written after so long belongs to a process that is gone. A wrong guess costs one file."""

_log = logging.getLogger(__name__)


class Held:
    """Segments on disk, at most `room_bytes` of them: those used least recently go first, and protected ones last.

    Guests are here because others asked for them: they go before all that this edge uses itself, and where there is no
    room but what that takes, they are not kept. One that this edge reads is a guest no more; after a restart none is.

    Every method may be called from any thread. `read`, `keep`, `drop` and `scan` wait for the disk; the others do not.
    None of them raises: a folder that cannot be used holds nothing.
    """

    def __init__(self, folder: Path, room_bytes: int) -> None:
        if room_bytes < 1:
            raise UsageError(f"{room_bytes} bytes of disk cannot hold a segment")
        self._folder, self.room_bytes = folder, room_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[ObjectId, int] = OrderedDict()  # used least recently first
        self._used_bytes = self._unseen_bytes = 0
        self._protected: frozenset[ObjectId] = frozenset()
        self._guests: set[ObjectId] = set()
        self._failing = False

    def __contains__(self, id: ObjectId) -> bool:
        """Whether it was there when last looked; reading it tells."""
        return id in self._sizes

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, as far as is known: other processes may share the folder."""
        return self._used_bytes

    def ids(self) -> list[ObjectId]:
        """What is here, used least recently first."""
        with self._lock:
            return list(self._sizes)

    def protect(self, ids: Iterable[ObjectId]) -> None:
        """From now on these are the last to go."""
        self._protected = frozenset(ids)

    def scan(self) -> None:
        """Look what is in the folder; what a killed process left unfinished is removed."""
        found: list[tuple[int, ObjectId, int]] = []
        try:
            for entry in _entries(self._folder):
                status = entry.stat(follow_symlinks=False)
                if is_id(entry.name):
                    found.append((status.st_mtime_ns, ObjectId(entry.name), status.st_size))
                elif entry.name.startswith(files.DRAFT) and abs(time.time() - status.st_mtime) > _STALE_S:
                    os.unlink(entry.path)
        except OSError as error:
            self._say("read", error)
        with self._lock:
            self._sizes = OrderedDict((id, size_bytes) for _, id, size_bytes in sorted(found))
            self._used_bytes, self._unseen_bytes = sum(self._sizes.values()), 0

    def read(self, ref: ObjectRef, *, guest: bool = False, used: bool = True) -> bytes | None:
        """An object's bytes, of the stated size and with the digest that is its name; None if it is not here.

        A damaged one is removed. `guest`: it is read for somebody else. Unless it is `used`, reading changes nothing,
        not even what goes first.
        """
        path = self._path(ref.id)
        try:
            with open(path, "rb") as file:
                data = file.read(ref.size_bytes + 1)
        except OSError as error:
            if used:
                self._forget(ref.id)
            if not isinstance(error, FileNotFoundError):
                self._say("read", error)
            return None
        if len(data) != ref.size_bytes or object_id(data) != ref.id:
            _log.warning("the kept segment %s… is damaged; it will be fetched again", ref.id[:12])
            if used:
                self.drop([ref.id])
            return None
        if not used:
            return data
        with suppress(OSError):
            _stamp(path)
        self._note(ref.id, len(data), guest=guest and ref.id in self._guests)
        return data

    def keep(self, ref: ObjectRef, data: bytes, *, guest: bool = False) -> bool:
        """Put an object here whose digest is right; others make room. Whether it is here now."""
        if ref.kind != "segments" or len(data) != ref.size_bytes or len(data) > self.room_bytes:
            return False
        if ref.id in self._sizes:
            return True
        if self._unseen_bytes > self.room_bytes // 16:
            self.scan()  # what other processes keep here takes room too
        victims = self._victims(len(data), guest=guest)
        if victims is None:
            return False
        self.drop(victims)
        path = self._path(ref.id)
        try:
            files.put_below(path, data)
            _stamp(path)
        except OSError as error:
            self._say("written", error)
            return False
        self._failing = False
        self._note(ref.id, len(data), guest=guest)
        self._unseen_bytes += len(data)
        return True

    def drop(self, ids: Iterable[ObjectId]) -> None:
        """Remove these, as far as they are here."""
        for id in ids:
            try:
                os.unlink(self._path(id))
            except FileNotFoundError:
                pass
            except OSError as error:
                self._say("written", error)
            self._forget(id)

    def _victims(self, wanted_bytes: int, *, guest: bool) -> list[ObjectId] | None:
        """What has to go so that so much more has room; None where a guest would have to wait for all others to go."""
        with self._lock:
            excess_bytes = self._used_bytes + wanted_bytes - self.room_bytes
            victims: list[ObjectId] = []
            for rank in (0,) if guest else (0, 1, 2):
                for id, size_bytes in self._sizes.items():
                    if excess_bytes <= 0:
                        return victims
                    if self._rank(id) == rank:
                        victims.append(id)
                        excess_bytes -= size_bytes
            return None if guest and excess_bytes > 0 else victims

    def _rank(self, id: ObjectId) -> int:
        """0 goes first."""
        return 2 if id in self._protected else 0 if id in self._guests else 1

    def _note(self, id: ObjectId, size_bytes: int, *, guest: bool) -> None:
        with self._lock:
            (self._guests.add if guest else self._guests.discard)(id)
            self._used_bytes += size_bytes - self._sizes.get(id, 0)
            self._sizes[id] = size_bytes
            self._sizes.move_to_end(id)

    def _forget(self, id: ObjectId) -> None:
        with self._lock:
            self._guests.discard(id)
            self._used_bytes -= self._sizes.pop(id, 0)

    def _path(self, id: ObjectId) -> Path:
        return self._folder / id[:2] / id

    def _say(self, done: str, error: OSError) -> None:
        """Once, until something could be written again: a full disk stays full for many segments."""
        if not self._failing:
            reason = error.strerror or type(error).__name__
            _log.warning("segments in %s cannot be %s, which costs only their reuse: %s", self._folder, done, reason)
        self._failing = True


def _stamp(path: str | Path) -> None:
    """Remember that it was used now, more finely than file systems do by themselves: a scan goes by it."""
    now_ns = time.time_ns()
    os.utime(path, ns=(now_ns, now_ns))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files in the folders of two hex digits. Another process may remove any of them meanwhile."""
    try:
        below = [entry.path for entry in os.scandir(folder) if len(entry.name) == 2 and entry.is_dir()]
    except FileNotFoundError:
        return
    for path in below:
        with suppress(FileNotFoundError), os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    entry.stat(follow_symlinks=False)
                    yield entry
