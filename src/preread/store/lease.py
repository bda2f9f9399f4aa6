"""Who may write to a store: many at once where its service has conditional writes, otherwise one.

Releases of preread before the log of names (`names.py`) took `lease.json` for themselves, and a lock (flock) on a
folder, since two that published and removed at once would have taken each other's objects away. They must not write
beside those that use the log. So `Older` finds them out, and keeps them out: in a folder with the same lock, shared,
and with a file where they look for a folder; in a bucket with a lease that nobody ever gives up.

Where a bucket's service has no conditional writes, `Lease` is still what keeps the second away: it runs out unless it
is renewed. Clocks must agree within some seconds, and of two that take it in the same instant both may believe to have
it: without conditional writes nobody can tell.
"""

import asyncio
import errno
import fcntl
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import ObjectStore

from preread.errors import RemoteError, Unavailable, UsageError
from preread.store import durable

LEASE_S: Final = 60.0
_RENEW_S: Final = 15.0
_KEY: Final = "lease.json"
_NEWER: Final = "newer"
_NAMES: Final = "names"
_FENCE: Final = b"""The names of this store are in log/ since a newer preread has published to it.
This file keeps older releases out, which would not see them.
"""
CANNOT_LOCK: Final = {errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_log = logging.getLogger(__name__)


class Holder(msgspec.Struct, frozen=True):
    """Who holds a store.

    Attributes:
        owner: a random number, new for each start.
        host, pid: where to look for it.
        place: the boot and the PID namespace that `pid` is of.
        until: when the lease runs out, in seconds since 1970.
    """

    owner: str
    host: str
    pid: int
    place: str
    until: float = 0.0


_FREE: Final = Holder(_NEWER, "a newer preread, which has upgraded this store", 0, _NEWER, 2.0**32)
"""Nobody's lease, which releases before the log of names take for somebody's."""


class Older:
    """Releases before the log of names: are they here, and how they are kept out. For stores that many write to."""

    def __init__(self, backend: ObjectStore, where: str, folder: Path | None) -> None:
        self._backend, self._where, self._folder = backend, where, folder

    @asynccontextmanager
    async def kept_out(self) -> AsyncGenerator[None, None]:
        """No older release writes while this is open.

        Raises:
            UsageError: one does.
        """
        if self._folder is None:
            await asyncio.to_thread(self._refuse)
            yield
            return
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in CANNOT_LOCK:
                    raise self._there() from error
            yield
        finally:
            os.close(handle)

    async def shut_out(self) -> None:
        """From now on, older releases refuse this store. What they published is where it was, or in `names.old`.

        Raises:
            UsageError: one writes to it now.
            RemoteError: the store cannot be written.
        """
        await asyncio.to_thread(self._refuse)
        try:
            await asyncio.to_thread(self._shut if self._folder is None else self._fence)
        except (BaseError, OSError) as error:
            raise RemoteError(f"store {self._where} cannot be kept from older releases: {error}") from error

    def _refuse(self) -> None:
        found = _holder(self._backend, self._where)[0]
        gone = found is None or found.owner == _NEWER or self._folder is not None
        if found is not None and not gone and not _over(found, _me(), time.time()):
            raise self._there()

    def _there(self) -> UsageError:
        found = _holder(self._backend, self._where)[0]
        who = "another process" if found is None else f"process {found.pid} on {found.host}"
        return UsageError(
            f"store {self._where} is held by {who}, which is of an older preread, that has a store for itself: stop it "
            "first, or use another --store"
        )

    def _shut(self) -> None:
        obstore.put(self._backend, _KEY, msgspec.json.encode(_FREE))

    def _fence(self) -> None:
        assert self._folder is not None
        names = self._folder / _NAMES
        if names.is_dir():
            with suppress(FileNotFoundError, IsADirectoryError):  # another process has done so just now
                names.rename(self._folder / f"{_NAMES}.old")
        durable.replace(names, _FENCE)


class Lease:
    """The right to change a store's names, while `held`: for buckets whose service has no conditional writes."""

    def __init__(self, backend: ObjectStore, where: str) -> None:
        self._backend, self._where = backend, where
        self._me = _me()
        self._until_s = -math.inf

    def check(self) -> None:
        """Do nothing if it is held.

        Raises:
            Unavailable: it ran out since the store could not be written, or another cloud has the store now.
        """
        if time.monotonic() >= self._until_s:
            raise Unavailable(
                f"this cloud holds store {self._where} no more: its lease could not be renewed, or another cloud took "
                "over; see its log, and start it again when it is alone with its store"
            )

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Hold the store for as long as the context is open.

        Raises:
            UsageError: another process holds it.
            RemoteError: the store cannot be read or written.
        """
        await asyncio.to_thread(self._take)
        renewing = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            self._until_s = -math.inf
            await asyncio.to_thread(self._give_up)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await asyncio.to_thread(self._renew)
            except RemoteError as error:
                _log.warning("the lease could not be renewed yet: %s", error)
            except UsageError as error:
                self._until_s = -math.inf
                _log.error("nothing is published or removed here any more: %s", error)
                return

    def _take(self) -> None:
        found, tag = self._read()
        if found is not None and found.owner != _NEWER and not _over(found, self._me, time.time()):
            raise self._taken()
        self._put(tag)

    def _renew(self) -> None:
        found, tag = self._read()
        if found is not None and found.owner != self._me.owner:
            raise self._taken()
        self._put(tag)

    def _give_up(self) -> None:
        """Leave the store to the next, but to no older release."""
        with suppress(RemoteError, BaseError, OSError):
            found, _ = self._read()
            if found is not None and found.owner == self._me.owner:
                obstore.put(self._backend, _KEY, msgspec.json.encode(_FREE))

    def _read(self) -> tuple[Holder | None, str | None]:
        return _holder(self._backend, self._where)

    def _put(self, tag: str | None) -> None:
        """Write the lease if the object still has this tag, or is still absent, as far as the service looks at that.

        Raises:
            UsageError: somebody else wrote it meanwhile.
        """
        now_s, mine = time.monotonic(), msgspec.structs.replace(self._me, until=time.time() + LEASE_S)
        data = msgspec.json.encode(mine)
        try:
            try:
                obstore.put(self._backend, _KEY, data, mode="create" if tag is None else {"e_tag": tag})
            except (NotSupportedError, NotImplementedError):
                obstore.put(self._backend, _KEY, data)
        except (AlreadyExistsError, PreconditionError) as error:
            raise self._taken() from error
        except (BaseError, OSError) as error:
            raise RemoteError(f"the lease of store {self._where} cannot be written: {error}") from error
        self._until_s = now_s + LEASE_S

    def _taken(self) -> UsageError:
        found, _ = self._read()
        who = "another process" if found is None else f"process {found.pid} on {found.host}"
        later = (
            "" if found is None else f"; where it was killed, try again in {max(1, round(found.until - time.time()))} s"
        )
        return UsageError(
            f"store {self._where} is held by {who}: its service has no conditional writes, so only one cloud at a time "
            f"may publish to it or remove from it; stop that one, or use another --store{later}"
        )


def _me() -> Holder:
    return Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), _place())


def _holder(backend: ObjectStore, where: str) -> tuple[Holder | None, str | None]:
    """Whom the store names, if that can be understood, and the tag of the object, if there is one."""
    try:
        got = obstore.get(backend, _KEY)
        data, tag = bytes(got.bytes()), got.meta["e_tag"]
    except FileNotFoundError:
        return None, None
    except (BaseError, OSError) as error:
        raise RemoteError(f"the lease of store {where} cannot be read: {error}") from error
    try:
        return msgspec.json.decode(data, type=Holder), tag
    except (msgspec.DecodeError, ValueError):
        return None, tag


def _over(found: Holder, me: Holder, now: float) -> bool:
    """Whether a lease has ended: by the clock, or since its process has, which can be told in the same place."""
    return found.until <= now or (found.place == me.place and not _runs(found.pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _place() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return secrets.token_hex(8)
