"""The cloud's store: immutable objects named by their content, and the few mutable names of published contexts.

It knows keys, what is written before what, and which objects a manifest refers to; it must not know codecs, engines,
HTTP, or where bytes are kept (`blobs.py`).

    segments/ab/abcd…   tokens/ab/abcd…   manifests/ab/abcd…   profiles/ab/abcd…   fits/ab/abcd…
    names/<digest of the name>.json   removed.json   fitted/<fingerprint>.json   fits/<id>.json   drafts/<digest>.json

A name's file is a catalogue of that one entry, and `removed.json` is one of names that were removed: so edges can tell
what somebody took back from what a store has lost. The key of a name is a digest since names may have 128 letters of
any script, which percent-encoded would be longer than file names can be. A file under `fitted` says with which profile
contexts of that model are published, and one under `fits` is a list of that one fit: see `wire/fits.py`. One under
`drafts` says how far a publication has come: see `drafts.py`, what it names may be missing. Objects are written before
the name that leads to them: whatever is under a name is whole, and what an aborted publication leaves is found and kept
by the next attempt. Names are read once, since only one process changes them (see `lease.py`).
"""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from preread.errors import CorruptData, Full, RemoteError, UsageError
from preread.store.blobs import Blobs, open_blobs
from preread.store.claims import Claims
from preread.store.drafts import Drafts
from preread.values import ContextId, Fingerprint, Kind, ObjectId, ObjectRef
from preread.wire import canonical, catalogue, fits, manifest
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.digest import object_id
from preread.wire.fields import MAX_PROFILE_BYTES, SizedId
from preread.wire.fits import Fit, Fits
from preread.wire.pages import Listing, room_for

_REMOVED: Final = "removed.json"
_SLOT_BYTES: Final = 256
_AT_ONCE: Final = 64
"""Names are read so many at a time: a bucket takes milliseconds for each."""
_log = logging.getLogger(__name__)
Key = tuple[Kind, ObjectId]
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
    return Objects(open_blobs(url_or_path))


class Objects:
    """Objects and names in one store. Publishing and removing names is for one process (see `held`), one at a time.

    In a folder a name is put when all that it leads to is on the disk, and on the disk itself when `put_name` returns.
    Every method raises RemoteError where the store itself fails.

    Attributes:
        drafts: how far publications have come.
        claims: who makes what just now.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.drafts, self.claims = Drafts(blobs), Claims(blobs)
        self._blobs, self._where = blobs, blobs.where
        self._index: dict[str, _Named] = {}
        self._illegible: set[str] = set()
        self._removed: tuple[str, ...] = ()
        self._listing: Listing | None = None
        self._listed = False
        """Whether `_listing` is what is published now."""
        self._change = asyncio.Event()
        self._fits: dict[str, Fit] = {}
        self._reading, self._names_are_read = asyncio.Lock(), False

    def held(self) -> AbstractAsyncContextManager[None]:
        """Keep other processes that do the same from this store. When that is lost, names can be changed no more.

        Raises:
            UsageError: another process holds it.
        """
        return self._blobs.held()

    async def check(self) -> None:
        """See whether the store can be read now, with one request.

        Raises:
            RemoteError: it cannot.
        """
        await self._blobs.check()

    async def put(self, kind: Kind, data: bytes) -> ObjectRef:
        """Store an object, whole or not at all. One that is already there and damaged is healed."""
        ref = ObjectRef(kind, object_id(data), len(data))
        await self._blobs.put_object(_key(kind, ref.id), data)
        return ref

    async def read(self, kind: Kind, id: ObjectId, start: int | None = None, stop: int | None = None) -> bytes | None:
        """An object's bytes from `start` (inclusive) to `stop` (exclusive), as the store has them; None if absent.

        A range must lie within the object, and not be empty.
        """
        return await self._blobs.read(_key(kind, id), start, stop)

    async def keep(self, ref: ObjectRef) -> bytes | None:
        """A whole object's bytes, which are going to be published again; None if it is missing or damaged.

        The next name, and the next finished draft, wait until it is on the disk.
        """
        key = _key(ref.kind, ref.id)
        data = await self._blobs.read(key) if await self._blobs.size(key) == ref.size_bytes else None
        if data is None or object_id(data) != ref.id:
            return None
        self._blobs.keep(key)
        return data

    async def size(self, kind: Kind, id: ObjectId) -> int | None:
        """An object's size in bytes; None if absent."""
        return await self._blobs.size(_key(kind, id))

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
        await self._blobs.put_pointer(key, catalogue.dumps(Catalogue((entry,))))
        former = self._index.get(key)
        self._index[key] = _Named(entry, written)
        self._illegible.discard(key)
        self._note_change()
        if former is not None and former.entry.manifest.id != entry.manifest.id:
            await self._sweep(former.entry)

    async def listing(self) -> Listing:
        """Every published context, as a catalogue is served. A name whose file cannot be understood is left out."""
        await self._read_names()
        if self._listing is None or not self._listed:
            written = {named.entry.name: named.written for named in self._index.values()}
            self._listing, self._listed = Listing(written, self._not_published(self._removed), self._listing), True
        return self._listing

    async def changed(self, version: str) -> Listing:
        """The listing, as soon as it is another one than that of this version."""
        while True:
            change = self._change  # before looking, so that none is missed
            listing = await self.listing()
            if listing.version != version:
                return listing
            await change.wait()

    def _note_change(self) -> None:
        """The listing may be another one now: whoever waits for that looks."""
        self._listed = False
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def names(self) -> list[Entry]:
        """The same as the listing, sorted by name."""
        await self._read_names()
        return sorted([named.entry for named in self._index.values()], key=lambda entry: entry.name)

    async def entry(self, name: str) -> Entry | None:
        """What is published under a name; None if nothing is."""
        await self._read_names()
        named = self._index.get(_name_key(name))
        return None if named is None else named.entry

    async def published_at(self, name: str) -> datetime | None:
        """When a name was published; None if it is not."""
        return await self._blobs.changed(_name_key(name))

    async def remove_name(self, name: str) -> bool:
        """Forget a name, and all objects that no other name needs; whether there was such a name."""
        await self._read_names()
        key = _name_key(name)
        if key not in self._index and key not in self._illegible:
            return False
        told = await self._note_removed(name)
        await self._blobs.delete_pointer(key)
        self._illegible.discard(key)
        gone = self._index.pop(key, None)
        self._note_change()
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
            await self._blobs.put_pointer(_REMOVED, catalogue.dumps(Catalogue(removed=names)))
        except RemoteError as error:
            _log.warning("the removal of %r is not noted yet: %s", name, error)
            return False
        self._removed = names
        self._note_change()
        return True

    async def _read_names(self) -> None:
        async with self._reading:
            if self._names_are_read:
                return
            keys = await self._blobs.keys_in("names")
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
        data = await self._blobs.read(_REMOVED)
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
        data = await self._blobs.read(_slot_key(fingerprint))
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
        await self._blobs.put_pointer(_slot_key(fingerprint), canonical.dumps(SizedId(ref.id, ref.size_bytes)))
        if former is not None and former.id != ref.id:
            await self._remove_unneeded({("profiles", former.id)}, f"the former profile of model {fingerprint[:12]}…")

    async def profiles(self) -> list[tuple[Fingerprint, ObjectRef, str]]:
        """Models, the profiles that their contexts are published with, and since when (UTC, RFC 3339)."""
        found = []
        for key in await self._blobs.keys_in("fitted"):
            of = Fingerprint(key.rpartition("/")[2].removesuffix(".json"))
            ref, at = await self.profile_of(of), await self._blobs.changed(key)
            if ref is not None and at is not None:
                found.append((of, ref, _utc(at)))
        return found

    async def put_fit(self, fit: Fit) -> None:
        """List a stored object of the kind "fits". One that is listed already stays as it is.

        Raises:
            UsageError: no list can hold it.
        """
        if await self._blobs.size(_fit_key(fit.id)) is None:
            await self._blobs.put_pointer(_fit_key(fit.id), fits.dumps(Fits((fit,))))

    async def fits(self) -> list[Fit]:
        """What `put_fit` listed, and when it did. A file that cannot be understood is left out."""
        keys = [key for key in await self._blobs.keys_in("fits") if key not in self._fits]
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            for key, fit in zip(some, await asyncio.gather(*map(self._fit, some)), strict=True):
                if fit is not None:
                    self._fits[key] = fit
        return list(self._fits.values())

    async def remove_fit(self, id: ObjectId) -> bool:
        """Forget a fit and its object; whether it was listed."""
        key = _fit_key(id)
        if await self._blobs.size(key) is None:
            return False
        await self._blobs.delete_pointer(key)
        self._fits.pop(key, None)
        if await self.size("fits", id) is not None:
            await self._blobs.delete_objects([_key("fits", id)])
        return True

    async def _fit(self, key: str) -> Fit | None:
        data, at = await self._blobs.read(key), await self._blobs.changed(key)
        if data is None or at is None:
            return None
        try:
            (fit,) = fits.loads(data).fits
        except (CorruptData, ValueError) as error:
            _log.warning("store %s: %s is left out of the fits: %s", self._where, key, error)
            return None
        return msgspec.structs.replace(fit, created=_utc(at))

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
        await self._blobs.delete_objects([_key(*key) for key in present])

    async def _slots(self) -> set[Key]:
        """The profiles that models are published with."""
        return {("profiles", ref.id) for _, ref, _ in await self.profiles()}

    async def _needs(self, entry: Entry) -> set[Key]:
        """All objects that an entry leads to."""
        data = await self.read("manifests", entry.manifest.id)
        if data is None:
            raise CorruptData("length", f"the manifest of {entry.name!r} is missing")
        rungs = manifest.loads(data).rungs
        segments: set[Key] = {("segments", cell.id) for rung in rungs for row in rung.segments for cell in row}
        profiles: set[Key] = {("profiles", rung.profile.id) for rung in rungs if rung.profile is not None}
        return segments | profiles | {("manifests", entry.manifest.id), ("tokens", entry.tokens.id)}

    async def _entry(self, key: str) -> Entry | None:
        data = await self._blobs.read(key)
        if data is None:
            return None
        try:
            (entry,) = catalogue.loads(data).contexts
        except (CorruptData, ValueError) as error:
            _log.warning("store %s: %s is left out of the catalogue: %s", self._where, key, error)
            return None
        return entry


def _key(kind: Kind, id: ObjectId) -> str:
    return f"{kind}/{id[:2]}/{id}"


def _name_key(name: str) -> str:
    return f"names/{object_id(name.encode())}.json"


def _slot_key(fingerprint: Fingerprint) -> str:
    return f"fitted/{fingerprint}.json"


def _fit_key(id: ObjectId) -> str:
    return f"fits/{id}.json"


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
