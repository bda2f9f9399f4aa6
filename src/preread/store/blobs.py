"""Bytes under keys, in a folder, a bucket or memory, through obstore: an address is only an address.

It knows writing whole, in which order, and whether others may write too; it must not know what is written. Objects may
be written in any order. Pointers lead to objects: one is written when all objects before it are, and in a folder these
are on the disk then, as the pointer is when its call returns. A pointer that is created is there once: of two writers
one is told that it was there already. That is all that writers agree by; where a bucket's service does not do so, only
one may write (`lease.py`).
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from preread.errors import RemoteError, UsageError
from preread.store import durable
from preread.store.lease import Lease, Older

_PROBE: Final = ".probe"
_MOST_AT_ONCE: Final = 1000
"""So many objects are deleted by one request, which is what services take."""
_ADVICE: Final = {"written": "check its free space and permissions", "read": "check that it is still there"}
_ROOM: Final = "room"
_ROOM_BYTES: Final = 2**18
T = TypeVar("T")
_Done = Literal["written", "read"]


@dataclass(frozen=True, slots=True)
class Found:
    """What is under a key: how many bytes, and since when, by the clock of who keeps them."""

    key: str
    size_bytes: int
    at: datetime


def open_blobs(url_or_path: str) -> "Blobs":
    """Open a store, as `preread.store.objects.open_store` says.

    Raises:
        UsageError: it is not an address of a store, or it cannot be written.
    """
    if not url_or_path.strip():
        raise UsageError("store '' cannot be written: it is no address; name a folder or s3://BUCKET/PREFIX")
    try:
        folder = None
        if "://" in url_or_path or url_or_path == "memory:":
            backend = from_url(url_or_path)
        else:
            folder = Path(url_or_path).expanduser().absolute()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            backend = LocalStore(folder)
        probe = _probe()  # its own: others may open the same store at this moment
        obstore.put(backend, probe, b"can be written")
        obstore.delete(backend, probe)
    except (BaseError, OSError, ValueError) as error:
        raise UsageError(
            f"store {url_or_path} cannot be written: {_cause(error)}; choose another, or check its permissions"
        ) from error
    return Blobs(backend, url_or_path, folder)


class Blobs:
    """Bytes under keys. Every method raises RemoteError where the store itself fails.

    Attributes:
        where: the address, for messages.
        folder: where it is on this machine's disk; None: elsewhere.
    """

    def __init__(self, backend: ObjectStore, where: str, folder: Path | None = None) -> None:
        self._backend, self.where, self.folder = backend, where, folder
        self._lease: Lease | None = None
        self._unsettled: set[str] = set()

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Write to this store, with others that do, or alone where the service has no conditional writes.

        Raises:
            UsageError: an older preread writes to it, or another process where only one may.
        """
        self._lease = None
        if await self._creates_once():
            async with Older(self._backend, self.where, self.folder).kept_out():
                if self.folder is not None:
                    await asyncio.to_thread(durable.sweep, self.folder)
                yield
            return
        self._lease = Lease(self._backend, self.where)
        async with self._lease.held():
            yield

    async def check(self) -> None:
        """See whether anything could be read now. In a folder that is gone, every key would be absent."""
        if self.folder is not None:
            await self._guard("read", asyncio.to_thread(self.folder.stat))
        await self.size(_PROBE)

    async def shut_older_out(self) -> None:
        """From now on, older releases of preread refuse this store.

        Raises:
            UsageError: one writes to it now.
        """
        if self._lease is None:  # which older releases heed, and which is left so that they do
            await Older(self._backend, self.where, self.folder).shut_out()

    async def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Bytes from `start` (inclusive) to `stop` (exclusive), which must be some that are there; None if absent."""
        if start is None and stop is None:
            return await self._found(self._whole(key))
        if stop is None:
            stop = await self.size(key)
        if stop is None:
            return None
        part = await self._found(obstore.get_range_async(self._backend, key, start=start or 0, end=stop))
        return None if part is None else bytes(part)

    async def size(self, key: str) -> int | None:
        """How many bytes there are; None if absent."""
        head = await self._found(obstore.head_async(self._backend, key))
        return None if head is None else head["size"]

    async def changed(self, key: str) -> datetime | None:
        """When it was written; None if absent."""
        head = await self._found(obstore.head_async(self._backend, key))
        return None if head is None else head["last_modified"]

    async def signed(self, key: str, for_s: int) -> str:
        """An address under which anybody can read this key for so long.

        Raises:
            UsageError: this is no bucket, or its service does not sign.
        """
        if not isinstance(self._backend, S3Store | GCSStore | AzureStore):
            raise UsageError(f"store {self.where} is no bucket whose service signs addresses")
        call = obstore.sign_async(self._backend, "GET", key, timedelta(seconds=for_s))
        return await self._guard("read", call)

    async def now(self) -> datetime:
        """The time, by the clock of who keeps this store."""
        key = _probe()
        await self.put_note(key, b"what is the time?")
        at = await self.changed(key)
        await self._delete([key])
        if at is None:
            raise RemoteError(f"store {self.where} lacks what was just put there: look at its service")
        return at

    async def put_object(self, key: str, data: bytes) -> None:
        """Write bytes that a key stands for for ever, whole or not at all; what is damaged is healed."""
        if self.folder is not None:
            self._unsettled.add(key)
            # what is whole is left: a power cut may take what was written last, and other pointers may lead to it
            if await self.size(key) == len(data) and await self.read(key) == data:
                await asyncio.to_thread(durable.touch, self.folder / key)
                return
        await self._guard("written", obstore.put_async(self._backend, key, data, use_multipart=False))

    async def put_note(self, key: str, data: bytes) -> None:
        """Write what nothing relies on, whole or not at all: a power cut may take it. Whoever holds the store."""
        await self._guard("written", obstore.put_async(self._backend, key, data, use_multipart=False))

    async def create_note(self, key: str, data: bytes) -> bool:
        """Write a note where nothing is under the key yet, and tell whether that was so: one of many succeeds.

        Where the service has no conditional writes, several may.
        """
        try:
            await obstore.put_async(self._backend, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except (NotSupportedError, NotImplementedError):
            await self.put_note(key, data)
        except (BaseError, OSError) as error:
            self._fail("written", error)
        return True

    def keep(self, key: str) -> None:
        """What is under the key already is going to be relied on: the next pointer waits until it is on the disk."""
        if self.folder is not None:
            self._unsettled.add(key)

    async def put_pointer(self, key: str, data: bytes) -> None:
        """Write what leads to objects, after them. What was under the key stays if that fails.

        Raises:
            Unavailable: the store is not held any more.
        """
        self._check_held()
        if self.folder is None:
            await self._guard("written", obstore.put_async(self._backend, key, data, use_multipart=False))
            return
        await self._settle()
        await self._guard("written", asyncio.to_thread(durable.replace, self.folder / key, data))

    async def create_pointer(self, key: str, data: bytes, *, urgent: bool = False) -> bool:
        """As `put_pointer`, unless there is something under the key: whether there was not, and this is there now.

        Where it is `urgent`, a full disk does not keep it from being written: what frees room needs some first.

        Raises:
            Unavailable: the store is not held any more.
        """
        self._check_held()
        if self.folder is not None:
            await self._settle()
            file, room = self.folder / key, self.folder / _ROOM
            created = asyncio.to_thread(durable.create, file, data, room if urgent else None)
            done = await self._guard("written", created)
            await asyncio.to_thread(durable.set_room_aside, room, _ROOM_BYTES)
            return done
        try:
            await obstore.put_async(self._backend, key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except (BaseError, OSError) as error:
            self._fail("written", error)
        return True

    async def _settle(self) -> None:
        assert self.folder is not None
        objects = set(self._unsettled)
        await self._guard("written", asyncio.to_thread(durable.settle, self.folder, objects))
        self._unsettled -= objects

    async def delete_pointer(self, key: str) -> None:
        """Forget what leads to objects, before them.

        Raises:
            Unavailable: the store is not held any more.
        """
        self._check_held()
        if self.folder is None:
            await self._delete([key])
        else:
            await self._guard("written", asyncio.to_thread(durable.remove, self.folder / key))

    async def delete_objects(self, keys: Sequence[str]) -> None:
        """Forget objects that no pointer leads to, as far as they are there."""
        for start in range(0, len(keys), _MOST_AT_ONCE):
            await self._delete(keys[start : start + _MOST_AT_ONCE])

    async def _delete(self, keys: Sequence[str]) -> None:
        """Azure's service and a folder say what was not there, which another may have deleted, or a try before this.

        What comes after that may not have been reached.
        """
        try:
            await obstore.delete_async(self._backend, keys)
        except FileNotFoundError:
            for key in keys if len(keys) > 1 else ():
                await self._delete([key])
        except (BaseError, OSError) as error:
            self._fail("written", error)

    async def below(self, folder: str) -> list[str]:
        """The folders in a folder, sorted."""
        found = await self._guard("read", obstore.list_with_delimiter_async(self._backend, folder))
        return sorted(found["common_prefixes"])

    async def all_in(self, folder: str) -> list[Found]:
        """All that is under keys below a folder."""
        found = await self._guard("read", obstore.list(self._backend, folder).collect_async())
        return [Found(meta["path"], meta["size"], meta["last_modified"]) for meta in found]

    async def keys_in(self, folder: str) -> list[str]:
        """Keys of JSON below a folder."""
        return [found.key for found in await self.all_in(folder) if found.key.endswith(".json")]

    async def _creates_once(self) -> bool:
        """Whether of two who create what is under a key one is refused: some services do not know how."""
        if self.folder is not None:
            return True
        key = _probe()
        try:
            await self.create_pointer(key, b"one")
            return not await self.create_pointer(key, b"two")
        finally:
            await self._delete([key])

    def _check_held(self) -> None:
        if self._lease is not None:
            self._lease.check()

    async def _whole(self, key: str) -> bytes:
        return bytes(await (await obstore.get_async(self._backend, key)).bytes_async())

    async def _found(self, call: Awaitable[T]) -> T | None:
        try:
            return await call
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            self._fail("read", error)

    async def _guard(self, done: _Done, call: Awaitable[T]) -> T:
        try:
            return await call
        except (BaseError, OSError) as error:
            self._fail(done, error)

    def _fail(self, done: _Done, error: Exception) -> NoReturn:
        raise RemoteError(f"store {self.where} cannot be {done}: {_cause(error)}; {_ADVICE[done]}") from error


def _probe() -> str:
    return f"{_PROBE}-{secrets.token_hex(8)}"


def _cause(error: Exception) -> str:
    """The first line of what obstore says; the lines below are for its developers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0].strip() or type(error).__name__
