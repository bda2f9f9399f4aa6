"""Lock files that one process holds at a time, flock(2), and that are gone afterwards, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold a lock file, which is made where it is missing and removed at the end.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be made, or locked.
    """
    file = _locked(lock)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # while it is held: who opened it meanwhile sees that it is gone
        os.close(file)


def _locked(lock: Path) -> int:
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                return file
        except FileNotFoundError:
            pass
        except OSError:
            os.close(file)
            raise
        os.close(file)  # it was somebody's who has just ended
