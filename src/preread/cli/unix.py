"""Listening on a unix socket: a file whose mode says who may connect, unix(7)."""

import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from preread import locks
from preread.errors import UsageError


@contextmanager
def bound(path: Path, mode: int) -> Iterator[socket.socket]:
    """Take a path before the slow work begins; nobody can connect to it yet. At the end it is free again.

    As long as this lasts, `PATH.lock` is held beside it. What a process left that is gone is replaced.

    Args:
        path: of the socket; its folder has to be there.
        mode: of the file: who may write to it may connect.

    Raises:
        UsageError: another server has it, something else is there, or it cannot be made.
    """
    path = path.expanduser().absolute()
    with _alone(path), socket.socket(socket.AF_UNIX) as sock:
        try:
            _clear(path)
            sock.bind(str(path))
            path.chmod(mode)
        except OSError as error:
            raise _not_bound(path, error) from error
        try:
            yield sock
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One server at a path. A socket that is bound and not listened on yet looks like one whose process is gone."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.held(path.with_name(path.name + ".lock")))
        except BlockingIOError as error:
            raise _taken(path) from error
        except OSError as error:
            raise _not_bound(path, error) from error
        yield


def _clear(path: Path) -> None:
    """Remove what a dead process left. Only a socket that refuses connections is that."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} is there, and is no socket: move it away, or choose another path with --uds")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one whose queue is full is listened on
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise _taken(path)


def _taken(path: Path) -> UsageError:
    return UsageError(f"the socket {path} is taken: stop what listens there, or choose another with --uds")


def _not_bound(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot listen on the socket {path}: {error.strerror or error}; check --uds")
