"""The cloud's store: immutable objects named by their content, and the few mutable names of published contexts.

A folder, a bucket or memory, through obstore, so that an address is only an address. It knows keys, atomic writes and
which objects a manifest refers to; it must not know codecs, engines or HTTP.

    segments/ab/abcd…   tokens/ab/abcd…   manifests/ab/abcd…   profiles/ab/abcd…
    names/<digest of the name>.json   removed.json   fitted/<fingerprint>.json

A name's file is a catalogue of that one entry, and `removed.json` is one of names that were removed: so edges can tell
what somebody took back from what a store has lost. The key of a name is a digest since names may have 128 letters of
any script, which percent-encoded would be longer than file names can be. A file under `fitted` says with which profile
contexts of that model are published; it is the cloud's own, and not served. Objects are written before the name that
leads to them: whatever is under a name is whole, and what an aborted publication leaves is found and kept by the next
attempt. Names are read once, since only one process changes them (see `lease.py`).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from preread.errors import CorruptData, Full, RemoteError, UsageError
from preread.store import durable
from preread.store.lease import Lease
from preread.values import ContextId, Fingerprint, Kind, ObjectId, ObjectRef
from preread.wire import canonical, catalogue, manifest
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.digest import object_id
from preread.wire.fields import MAX_PROFILE_BYTES, SizedId
from preread.wire.pages import Listing, room_for

_PROBE: Final = "names/.probe"
_REMOVED: Final = "removed.json"
_SLOT_BYTES: Final = 256
_AT_ONCE: Final = 64
"""Names are read so many at a time: a bucket takes milliseconds for each."""
_ADVICE: Final = {"written": "check its free space and permissions", "read": "check that it is still there"}
_log = logging.getLogger(__name__)
T = TypeVar("T")
Key = tuple[Kind, ObjectId]
_Done = Literal["written", "read"]
_LARGEST_ENTRY_BYTES: Final = 2300
"""A name of 128 and a model's of 256 characters in UTF-8, and the rest."""


@dataclass(frozen=True, slots=True)
class _Named:
    """A published context, and its line of the catalogue."""

    entry: Entry
    written: bytes


def open_store(url_or_path: str) -> "Objects":
    """Open a store: a folder (made if absent, for its owner only), `s3://bucket/prefix`, or `memory:`.

    Credentials and endpoints of buckets come from the environment, as their own tools read it (AWS_…).

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
        obstore.put(backend, _PROBE, b"can be written")
        obstore.delete(backend, _PROBE)
    except (BaseError, OSError, ValueError) as error:
        raise UsageError(
            f"store {url_or_path} cannot be written: {_cause(error)}; choose another, or check its permissions"
        ) from error
    return Objects(backend, url_or_path, folder)


class Objects:
    """Objects and names in one store. Publishing and removing names is for one process (see `held`), one at a time.

    In a folder a name is put when all that it leads to is on the disk, and on the disk itself when `put_name` returns.
    Every method raises RemoteError where the store itself fails.
    """

    def __init__(self, backend: ObjectStore, where: str, folder: Path | None = None) -> None:
        self._backend, self._where, self._folder = backend, where, folder
        self._lease: Lease | None = None
        self._unsettled: set[str] = set()
        self._index: dict[str, _Named] = {}
        self._illegible: set[str] = set()
        self._removed: tuple[str, ...] = ()
        self._listing: Listing | None = None
        self._reading, self._names_are_read = asyncio.Lock(), False

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Keep other processes that do the same from this store. When that is lost, names can be changed no more.

        Raises:
            UsageError: another process holds it.
        """
        self._lease = Lease(self._backend, self._where, self._folder)
        async with self._lease.held():
            if self._folder is not None:
                await asyncio.to_thread(durable.sweep, self._folder)
            yield

    async def put(self, kind: Kind, data: bytes) -> ObjectRef:
        """Store an object, whole or not at all. One that is already there and damaged is healed."""
        ref = ObjectRef(kind, object_id(data), len(data))
        key = _key(kind, ref.id)
        if self._folder is None:
            await self._guard("written", obstore.put_async(self._backend, key, data, use_multipart=False))
        else:
            # what is whole is left: a power cut may take what was written last, and other names may lead to it
            if await self.size(kind, ref.id) != len(data) or await self._read(key) != data:
                await self._guard("written", obstore.put_async(self._backend, key, data, use_multipart=False))
            self._unsettled.add(key)
        return ref

    async def read(self, kind: Kind, id: ObjectId, start: int | None = None, stop: int | None = None) -> bytes | None:
        """An object's bytes from `start` (inclusive) to `stop` (exclusive), as the store has them; None if absent.

        A range must lie within the object, and not be empty.
        """
        key = _key(kind, id)
        if start is None and stop is None:
            return await self._read(key)
        if stop is None:
            stop = await self.size(kind, id)
        if stop is None:
            return None
        try:
            return bytes(await obstore.get_range_async(self._backend, key, start=start or 0, end=stop))
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            self._fail("read", error)

    async def size(self, kind: Kind, id: ObjectId) -> int | None:
        """An object's size in bytes; None if absent."""
        try:
            return (await obstore.head_async(self._backend, _key(kind, id)))["size"]
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            self._fail("read", error)

    async def check_room(self, name: str) -> None:
        """Refuse early what `put_name` might refuse in the end.

        Raises:
            Full: there are as many contexts as a catalogue holds.
        """
        await self._refuse_unless_room(name, b"x" * _LARGEST_ENTRY_BYTES)

    async def put_name(self, entry: Entry) -> None:
        """Publish under a name, as the last step; objects that only the name's former manifest needed are removed.

        Raises:
            Full: the catalogue would not fit into its bounds; what is published stays as it is.
        """
        written, key = catalogue.write(entry), _name_key(entry.name)
        await self._refuse_unless_room(entry.name, written)
        await self._write(key, catalogue.dumps(Catalogue((entry,))))
        former = self._index.get(key)
        self._index[key], self._listing = _Named(entry, written), None
        self._illegible.discard(key)
        if former is not None and former.entry.manifest.id != entry.manifest.id:
            await self._sweep(former.entry)

    async def listing(self) -> Listing:
        """Every published context, as a catalogue is served. A name whose file cannot be understood is left out."""
        await self._read_names()
        if self._listing is None:
            written = {named.entry.name: named.written for named in self._index.values()}
            self._listing = Listing(written, self._not_published(self._removed))
        return self._listing

    async def names(self) -> list[Entry]:
        """The same, sorted by name."""
        await self._read_names()
        return sorted([named.entry for named in self._index.values()], key=lambda entry: entry.name)

    async def remove_name(self, name: str) -> bool:
        """Forget a name, and all objects that no other name needs; whether there was such a name."""
        await self._read_names()
        key = _name_key(name)
        if key not in self._index and key not in self._illegible:
            return False
        told = await self._note_removed(name)
        await self._delete_name(key)
        self._illegible.discard(key)
        gone, self._listing = self._index.pop(key, None), None
        if gone is not None:
            await self._sweep(gone.entry)
        if not told and not await self._note_removed(name):
            raise RemoteError(f"store {self._where}: {name!r} is gone, but edges cannot be told so: free some space")
        return True

    async def removed(self) -> tuple[str, ...]:
        """Names that were removed and not published since, the last one last; the last `MOST_REMOVED` of them."""
        await self._read_names()
        return self._not_published(self._removed)

    def _not_published(self, names: tuple[str, ...]) -> tuple[str, ...]:
        published = self._index.keys() | self._illegible
        return tuple(name for name in names if _name_key(name) not in published)

    async def _note_removed(self, name: str) -> bool:
        """Remember a removal; False where there is no room for it, as there will be when its objects are gone."""
        names = (*(one for one in self._not_published(self._removed) if one != name), name)[-catalogue.MOST_REMOVED :]
        try:
            await self._write(_REMOVED, catalogue.dumps(Catalogue(removed=names)))
        except RemoteError as error:
            _log.warning("the removal of %r is not noted yet: %s", name, error)
            return False
        self._removed, self._listing = names, None
        return True

    async def _read_names(self) -> None:
        async with self._reading:
            if self._names_are_read:
                return
            keys = await self._keys_in("names")
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                for key, entry in zip(some, await asyncio.gather(*map(self._entry, some)), strict=True):
                    if entry is None:
                        self._illegible.add(key)
                    else:
                        self._index[key] = _Named(entry, canonical.dumps(entry))
            self._removed = await self._read_removed()
            self._names_are_read = True

    async def _read_removed(self) -> tuple[str, ...]:
        data = await self._read(_REMOVED)
        if data is None:
            return ()
        try:
            return catalogue.loads(data).removed
        except CorruptData as error:
            _log.warning("store %s: which names were removed is forgotten: %s", self._where, error)
            return ()

    async def _refuse_unless_room(self, name: str, written: bytes) -> None:
        await self._read_names()
        others = [named.written for key, named in self._index.items() if key != _name_key(name)]
        if not room_for(written, others):
            raise Full(
                f"this cloud has {len(self._index)} contexts, which is all that its catalogue holds: remove one with "
                "`preread contexts rm NAME`, or start another cloud on a store of its own"
            )

    async def profile_of(self, fingerprint: Fingerprint) -> ObjectRef | None:
        """The profile that contexts of this model are published with; None if there is none, or its slot is broken."""
        data = await self._read(_slot_key(fingerprint))
        if data is None:
            return None
        try:
            slot = canonical.loads(data, SizedId, _SLOT_BYTES)
        except CorruptData as error:
            _log.warning("store %s: the profile of model %s… is forgotten: %s", self._where, fingerprint[:12], error)
            return None
        return ObjectRef("profiles", slot.id, slot.size_bytes)

    async def put_profile_of(self, fingerprint: Fingerprint, ref: ObjectRef) -> None:
        """Remember a stored profile for this model; the former one is removed unless a published context needs it.

        Raises:
            UsageError: `ref` is not that of a profile.
        """
        if ref.kind != "profiles" or not 0 < ref.size_bytes <= MAX_PROFILE_BYTES:
            raise UsageError(f"{ref} is no profile of 1 to {MAX_PROFILE_BYTES} bytes")
        former = await self.profile_of(fingerprint)
        await self._write(_slot_key(fingerprint), canonical.dumps(SizedId(ref.id, ref.size_bytes)))
        if former is not None and former.id != ref.id:
            await self._remove_unneeded({("profiles", former.id)}, f"the former profile of model {fingerprint[:12]}…")

    async def _sweep(self, gone: Entry) -> None:
        """Remove what `gone` referred to and nothing else does."""
        what = f"objects of {gone.name!r}"
        try:
            doomed = await self._needs(gone)
        except CorruptData as error:
            _log.warning("store %s: %s stay, since %s", self._where, what, error)
            return
        await self._remove_unneeded(doomed, what, gone.context)

    async def _remove_unneeded(self, doomed: set[Key], what: str, context: ContextId | None = None) -> None:
        """Remove those of `doomed` that no name leads to, nor the slot of a profile. The illegible keeps everything.

        Segments name the `context` that they are of, so that only its own names can need them; but for a profile that
        is no model's any more every manifest is read.
        """
        others = [named.entry for named in self._index.values()]
        doomed -= {key for entry in others for key in (("manifests", entry.manifest.id), ("tokens", entry.tokens.id))}
        if any(kind == "profiles" for kind, _ in doomed):
            doomed -= await self._slots()
        any_context = any(kind == "profiles" for kind, _ in doomed)
        try:
            if self._illegible:
                raise CorruptData("name", "a name's file cannot be understood")
            # one document may have thousands of names
            for entry in {entry.manifest.id: entry for entry in others}.values():
                if doomed and (any_context or entry.context == context):
                    doomed -= await self._needs(entry)
        except CorruptData as error:
            _log.warning("store %s: %s stay, since %s", self._where, what, error)
            return
        present = [key for key in doomed if await self.size(*key) is not None]
        if present:
            await self._guard("written", obstore.delete_async(self._backend, [_key(*key) for key in present]))

    async def _slots(self) -> set[Key]:
        """The profiles that models are published with."""
        names = [key.rpartition("/")[2].removesuffix(".json") for key in await self._keys_in("fitted")]
        refs = [await self.profile_of(Fingerprint(name)) for name in names]
        return {("profiles", ref.id) for ref in refs if ref is not None}

    async def _needs(self, entry: Entry) -> set[Key]:
        """All objects that an entry leads to."""
        data = await self.read("manifests", entry.manifest.id)
        if data is None:
            raise CorruptData("length", f"the manifest of {entry.name!r} is missing")
        rungs = manifest.loads(data).rungs
        segments: set[Key] = {("segments", cell.id) for rung in rungs for row in rung.segments for cell in row}
        profiles: set[Key] = {("profiles", rung.profile.id) for rung in rungs if rung.profile is not None}
        return segments | profiles | {("manifests", entry.manifest.id), ("tokens", entry.tokens.id)}

    async def _keys_in(self, folder: str) -> list[str]:
        found = await self._guard("read", obstore.list(self._backend, folder).collect_async())
        return [meta["path"] for meta in found if meta["path"].endswith(".json")]

    async def _entry(self, key: str) -> Entry | None:
        data = await self._read(key)
        if data is None:
            return None
        try:
            (entry,) = catalogue.loads(data).contexts
        except (CorruptData, ValueError) as error:
            _log.warning("store %s: %s is left out of the catalogue: %s", self._where, key, error)
            return None
        return entry

    async def _read(self, key: str) -> bytes | None:
        try:
            return bytes(await (await obstore.get_async(self._backend, key)).bytes_async())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            self._fail("read", error)

    async def _write(self, key: str, data: bytes) -> None:
        """Write what leads to objects, after them."""
        if self._lease is not None:
            self._lease.check()
        if self._folder is None:
            await self._guard("written", obstore.put_async(self._backend, key, data, use_multipart=False))
            return
        objects = set(self._unsettled)
        await self._guard("written", asyncio.to_thread(durable.settle, self._folder, objects))
        self._unsettled -= objects
        await self._guard("written", asyncio.to_thread(durable.replace, self._folder / key, data))

    async def _delete_name(self, key: str) -> None:
        if self._lease is not None:
            self._lease.check()
        if self._folder is None:
            await self._guard("written", obstore.delete_async(self._backend, key))
        else:
            await self._guard("written", asyncio.to_thread(durable.remove, self._folder / key))

    async def _guard(self, done: _Done, call: Awaitable[T]) -> T:
        try:
            return await call
        except (BaseError, OSError) as error:
            self._fail(done, error)

    def _fail(self, done: _Done, error: Exception) -> NoReturn:
        raise RemoteError(f"store {self._where} cannot be {done}: {_cause(error)}; {_ADVICE[done]}") from error


def _key(kind: Kind, id: ObjectId) -> str:
    return f"{kind}/{id[:2]}/{id}"


def _name_key(name: str) -> str:
    return f"names/{object_id(name.encode())}.json"


def _slot_key(fingerprint: Fingerprint) -> str:
    return f"fitted/{fingerprint}.json"


def _cause(error: Exception) -> str:
    """The first line of what obstore says; the lines below are for its developers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0].strip() or type(error).__name__
