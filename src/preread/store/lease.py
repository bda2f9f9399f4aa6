"""One cloud for one store: two that publish and remove at once would take each other's objects away.

Whoever changes names holds `lease.json` in the store, which says who that is. In a folder a lock on that (flock) ends
with its process, so that a cloud that was killed can start again at once. In a bucket the lease runs out unless it is
renewed, and is put only if nobody else did meanwhile; clocks must agree within some seconds.
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
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import ObjectStore

from preread.errors import RemoteError, Unavailable, UsageError

LEASE_S: Final = 60.0
_RENEW_S: Final = 15.0
_KEY: Final = "lease.json"
_CANNOT_LOCK: Final = {errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
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


class Lease:
    """The right to change a store's names, while `held`."""

    def __init__(self, backend: ObjectStore, where: str, folder: Path | None) -> None:
        self._backend, self._where, self._folder = backend, where, folder
        self._me = Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), _place())
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
        with self._locked() as locked:
            await asyncio.to_thread(self._take, locked)
            renewing = asyncio.create_task(self._go_on(locked))
            try:
                yield
            finally:
                renewing.cancel()
                await asyncio.wait([renewing])
                self._until_s = -math.inf
                await asyncio.to_thread(self._give_up)

    async def _go_on(self, locked: bool) -> None:
        while not locked:
            await asyncio.sleep(_RENEW_S)
            try:
                await asyncio.to_thread(self._renew)
            except RemoteError as error:
                _log.warning("the lease could not be renewed yet: %s", error)
            except UsageError as error:
                self._until_s = -math.inf
                _log.error("nothing is published or removed here any more: %s", error)
                return

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Lock the folder, and tell whether that is so: there may be none, or it may be on a disk that has no locks."""
        if self._folder is None:
            yield False
            return
        folder, locked = os.open(self._folder, os.O_RDONLY), True
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                os.close(folder)
                raise self._taken() from error
            locked = False
        try:
            yield locked
        finally:
            os.close(folder)

    def _take(self, locked: bool) -> None:
        found, tag = self._read()
        if found is not None and not locked and not _over(found, self._me, time.time()):
            raise self._taken()
        self._put(tag)
        self._until_s = math.inf if locked else self._until_s

    def _renew(self) -> None:
        found, tag = self._read()
        if found is not None and found.owner != self._me.owner:
            raise self._taken()
        self._put(tag)

    def _give_up(self) -> None:
        with suppress(RemoteError, BaseError, OSError):
            found, _ = self._read()
            if found is not None and found.owner == self._me.owner:
                obstore.delete(self._backend, _KEY)

    def _read(self) -> tuple[Holder | None, str | None]:
        """Whom the store names, if that can be understood, and the tag of the object, if there is one."""
        try:
            got = obstore.get(self._backend, _KEY)
            data, tag = bytes(got.bytes()), got.meta["e_tag"]
        except FileNotFoundError:
            return None, None
        except (BaseError, OSError) as error:
            raise RemoteError(f"the lease of store {self._where} cannot be read: {error}") from error
        try:
            return msgspec.json.decode(data, type=Holder), tag
        except (msgspec.DecodeError, ValueError):
            return None, tag

    def _put(self, tag: str | None) -> None:
        """Write the lease if the object still has this tag, or is still absent.

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
        later = ""
        if found is not None and self._folder is None:
            later = f"; where it was killed, try again in {max(1, round(found.until - time.time()))} s"
        return UsageError(
            f"store {self._where} is held by {who}: only one cloud at a time may publish to it or remove from it; stop "
            f"that one, or use another --store{later}"
        )


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
