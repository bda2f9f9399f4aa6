"""The cloud's store: immutable objects named by their content, and the few mutable names of published contexts.

It knows keys, what is written before what, and which objects a manifest refers to; it must not know codecs, engines,
HTTP, or where bytes are kept (`blobs.py`).

    segments/ab/abcd…   tokens/ab/abcd…   manifests/ab/abcd…   profiles/ab/abcd…   fits/ab/abcd…
    log/…   bases/…   fitted/<fingerprint>.json   fits/<id>.json   drafts/<digest>.json

`log` and `bases` are the names, which many processes may change at once: see `names.py`. Names that were removed are
kept there, too: so edges can tell what somebody took back from what a store has lost. A file under `fitted` says with
which profile contexts of that model are published, and one under `fits` is a list of that one fit: see `wire/fits.py`.
One under `drafts` says how far a publication has come: see `drafts.py`, what it names may be missing. Objects are
written before the name that leads to them, and a name is put when all of them are seen to be there: whatever is under a
name is whole, and what an aborted publication leaves is found and kept by the next attempt.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Final

from preread.errors import CorruptData, RemoteError, Unavailable, UsageError
from preread.store import former, live
from preread.store.blobs import Blobs, open_blobs
from preread.store.claims import Claims
from preread.store.drafts import Drafts
from preread.store.fit_list import FitList
from preread.store.listings import Listings
from preread.store.live import Key
from preread.store.names import Alone, Names
from preread.store.slots import Slots
from preread.tasks import running, undisturbed
from preread.values import ContextId, Fingerprint, Kind, ObjectId, ObjectRef
from preread.wire import catalogue
from preread.wire.catalogue import Entry
from preread.wire.digest import object_id
from preread.wire.fields import MAX_PROFILE_BYTES
from preread.wire.fits import Fit
from preread.wire.log import Dated, Edit, State
from preread.wire.pages import Listing

FOLDER_POLL_S: Final = 0.5
BUCKET_POLL_S: Final = 1.0
"""Whether others have changed the names is looked for so often: in a bucket by one GET, 2.6 million a month."""

_TROUBLE_S: Final = 10.0
"""A store that fails is looked at more and more rarely, but at least so often."""

_AT_ONCE: Final = 64
"""So many small requests are under way at a time: a bucket takes milliseconds for each."""
_MOST_SEEN: Final = 200_000
_log = logging.getLogger(__name__)
_LARGEST_ENTRY_BYTES: Final = 2300
"""A name of 128 and a model's of 256 characters in UTF-8, and the rest."""


def open_store(url_or_path: str) -> "Objects":
    """Open a store: a folder (made if absent, for its owner only), `s3://bucket/prefix`, or `memory:`.

    Credentials and endpoints of buckets come from the environment, as their own tools read it (AWS_…).

    Raises:
        UsageError: it is not an address of a store, or it cannot be written.
    """
    return Objects(open_blobs(url_or_path))


class Objects:
    """Objects and names in one store, to which other processes may publish, and remove from it, at the same time.

    In a folder a name is put when all that it leads to is on the disk, and on the disk itself when `put_name` returns.
    Every method raises RemoteError where the store itself fails.

    Attributes:
        blobs: the bytes.
        log: the names as they are written.
        drafts: how far publications have come.
        claims: who makes what just now.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.drafts, self.claims = Drafts(blobs), Claims(blobs)
        self.blobs, self._where = blobs, blobs.where
        self.log = Names(blobs, partial(former.read, blobs), blobs.shut_older_out)
        self._listings = Listings()
        self._following = False
        self._poll_s = BUCKET_POLL_S if blobs.folder is None else FOLDER_POLL_S
        self._slots, self._fits = Slots(blobs), FitList(blobs)
        self._seen: set[Key] = set()
        """Objects that were there when deleting had begun, or ended, for the `_seen_at`th time."""
        self._seen_at = 0

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Publish to this store, and follow what others do there, while this is open.

        Raises:
            UsageError: an older preread, which has a store for itself, writes to it; or another process where the
                service of a bucket has no conditional writes.
        """
        async with self.blobs.held():
            await self.look()
            async with running(self._follow()):
                self._following = True
                try:
                    yield
                finally:
                    self._following = False

    async def look(self) -> None:
        """Learn what others have changed. It is done by itself while the store is held, some moments later."""
        await self.log.look()
        self._listings.note(self.log.known)

    async def _follow(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(min(_TROUBLE_S, self._poll_s * 2.0 ** min(failures, 16)))
            try:
                await self.look()
                failures = 0
            except RemoteError as error:
                if not failures:
                    _log.warning("what others publish is not seen for now: %s", error)
                failures += 1
            except Exception:
                _log.exception("looking for what others publish failed in a way that nobody foresaw")
                failures += 1

    async def check(self) -> None:
        """See whether the store can be read now, with one request.

        Raises:
            RemoteError: it cannot.
        """
        await self.blobs.check()

    async def put(self, kind: Kind, data: bytes) -> ObjectRef:
        """Store an object, whole or not at all. One that is already there and damaged is healed."""
        ref = ObjectRef(kind, object_id(data), len(data))
        await self.blobs.put_object(object_key(kind, ref.id), data)
        self._see([(kind, ref.id)])
        return ref

    async def read(self, kind: Kind, id: ObjectId, start: int | None = None, stop: int | None = None) -> bytes | None:
        """An object's bytes from `start` (inclusive) to `stop` (exclusive), as the store has them; None if absent.

        A range must lie within the object, and not be empty.
        """
        return await self.blobs.read(object_key(kind, id), start, stop)

    async def keep(self, ref: ObjectRef) -> bytes | None:
        """A whole object's bytes, which are going to be published again; None if it is missing or damaged.

        The next name, and the next finished draft, wait until it is on the disk.
        """
        key = object_key(ref.kind, ref.id)
        data = await self.blobs.read(key) if await self.blobs.size(key) == ref.size_bytes else None
        if data is None or object_id(data) != ref.id:
            return None
        self.blobs.keep(key)
        self._see([(ref.kind, ref.id)])
        return data

    async def size(self, kind: Kind, id: ObjectId) -> int | None:
        """An object's size in bytes; None if absent."""
        return await self.blobs.size(object_key(kind, id))

    async def check_room(self, name: str) -> None:
        """Refuse early what `put_name` might refuse in the end.

        Raises:
            Full: there are as many contexts as a catalogue holds.
        """
        self._listings.refuse_unless_room(await self._state(), name, _LARGEST_ENTRY_BYTES)

    async def put_name(self, entry: Entry) -> None:
        """Publish under a name, as the last step; objects that only the name's former manifest needed are removed.

        Raises:
            Full: the catalogue would not fit into its bounds; what is published stays as it is.
            Unavailable: something that the entry leads to is not there: it was never put, or another process has
                removed it meanwhile. Publish again.
        """
        written, before, needed = catalogue.write(entry), list[Dated](), set[Key]()

        async def decide(state: State) -> Edit:
            self._listings.refuse_unless_room(state, entry.name, len(written))
            needed.update(await self._whole(entry, state))
            before[:] = [one for one in [state.contexts.get(entry.name)] if one is not None]
            return Edit(publish=Dated(entry, int(time.time())))

        await self.log.change(decide)
        self._listings.note(self.log.known)
        self._seen -= needed
        for one in before:
            await undisturbed(self._sweep(one.entry))

    async def listing(self) -> Listing:
        """Every published context, as a catalogue is served."""
        return self._listings.of(await self._state())

    async def changed(self, version: str) -> Listing:
        """The listing, as soon as it is another one than that of this version.

        Of what other processes change, only while the store is held.
        """
        while True:
            change = self._listings.coming()  # before looking
            listing = await self.listing()
            if listing.version != version:
                return listing
            await change.wait()

    async def names(self) -> list[Entry]:
        """The same as the listing, sorted by name."""
        state = await self._state()
        return [state.contexts[name].entry for name in sorted(state.contexts)]

    async def entry(self, name: str) -> Entry | None:
        """What is published under a name; None if nothing is."""
        found = (await self._state()).contexts.get(name)
        return None if found is None else found.entry

    async def published_at(self, name: str) -> datetime | None:
        """When a name was published; None if it is not."""
        found = (await self._state()).contexts.get(name)
        return None if found is None else datetime.fromtimestamp(found.at, UTC)

    async def remove_name(self, name: str) -> bool:
        """Forget a name, and all objects that no other name needs; whether there was such a name."""
        gone = list[Dated]()

        async def decide(state: State) -> Edit | None:
            gone[:] = [one for one in [state.contexts.get(name)] if one is not None]
            return Edit(remove=name) if gone else None

        await self.log.change(decide)
        self._listings.note(self.log.known)
        for one in gone:
            await undisturbed(self._sweep(one.entry))
        return bool(gone)

    async def removed(self) -> tuple[str, ...]:
        """Names that were removed and not published since, the last one last; the last `MOST_REMOVED` of them."""
        return (await self._state()).removed

    async def _state(self) -> State:
        """The names as this process knows them, which is some moments late; they are read where nobody follows."""
        known = self.log.known
        if known is not None and (self._following or self.log.known_for_s < self._poll_s):
            return known
        return await self.log.look()

    def _see(self, keys: Iterable[Key]) -> None:
        """Remember what is there, so that it need not be looked for when a name is put."""
        if len(self._seen) > _MOST_SEEN:
            self._seen.clear()
        self._seen.update(keys)

    async def _whole(self, entry: Entry, state: State) -> set[Key]:
        """All that an entry leads to; what was not seen since objects were deleted last is looked for.

        Raises:
            Unavailable: some of it is not there.
        """
        if state.sweeps != self._seen_at:
            self._seen.clear()
            self._seen_at = state.sweeps
        try:
            needed = await live.needs(self, entry)
        except CorruptData:
            needed = {("manifests", entry.manifest.id), ("tokens", entry.tokens.id)}  # an edge says what is wrong
        unseen = sorted(needed - self._seen)
        missing = await self.missing(unseen)
        if missing:
            raise Unavailable(
                f"{len(missing)} of {len(needed)} objects of {entry.name!r} are not in store {self._where}: another "
                "process has removed them meanwhile; publish it again"
            )
        for kind, id in unseen:
            self.blobs.keep(object_key(kind, id))
        return needed

    async def missing(self, keys: list[Key]) -> list[Key]:
        """Those of `keys` that are not there."""
        sizes = list[int | None]()
        for start in range(0, len(keys), _AT_ONCE):
            sizes += await asyncio.gather(*[self.size(*key) for key in keys[start : start + _AT_ONCE]])
        return [key for key, size_bytes in zip(keys, sizes, strict=True) if size_bytes is None]

    async def profile_of(self, fingerprint: Fingerprint) -> ObjectRef | None:
        """The profile that contexts of this model are published with; None if there is none, or its slot is broken."""
        return await self._slots.of(fingerprint)

    async def put_profile_of(self, fingerprint: Fingerprint, ref: ObjectRef) -> None:
        """Remember a stored profile for this model; the former one is removed unless a published context needs it.

        Raises:
            UsageError: `ref` is not that of a profile.
            Unavailable: another process has removed it meanwhile.
        """
        if ref.kind != "profiles" or not 0 < ref.size_bytes <= MAX_PROFILE_BYTES:
            raise UsageError(f"{ref} is no profile of 1 to {MAX_PROFILE_BYTES} bytes")
        await undisturbed(self._put_profile_of(fingerprint, ref))

    async def _put_profile_of(self, fingerprint: Fingerprint, ref: ObjectRef) -> None:
        async with self.log.alone() as alone:
            if await self.size("profiles", ref.id) is None:
                raise Unavailable(f"profile {ref.id[:12]}… is not in store {self._where} any more: put it again")
            former = await self.profile_of(fingerprint)
            await self._slots.put(fingerprint, ref)
            if former is not None and former.id != ref.id:
                what = f"the former profile of model {fingerprint[:12]}…"
                await self._remove_unneeded(alone, {("profiles", former.id)}, what)

    async def profiles(self) -> list[tuple[Fingerprint, ObjectRef, str]]:
        """Models, the profiles that their contexts are published with, and since when (UTC, RFC 3339)."""
        return await self._slots.all()

    async def put_fit(self, fit: Fit) -> None:
        """List a stored object of the kind "fits". One that is listed already stays as it is.

        Raises:
            UsageError: no list can hold it.
        """
        await self._fits.put(fit)

    async def fits(self) -> list[Fit]:
        """What `put_fit` listed, and when it did. A file that cannot be understood is left out."""
        return await self._fits.all()

    async def remove_fit(self, id: ObjectId) -> bool:
        """Forget a fit and its object; whether it was listed."""
        if not await self._fits.remove(id):
            return False
        if await self.size("fits", id) is not None:
            await self.blobs.delete_objects([object_key("fits", id)])
        return True

    async def _sweep(self, gone: Entry) -> None:
        """Remove what `gone` referred to and nothing else does."""
        names = (await self._state()).contexts.values()
        if any(one.entry.manifest.id == gone.manifest.id for one in names):
            return
        what = f"objects of {gone.name!r}"
        async with self.log.alone() as alone:
            try:
                doomed = await live.needs(self, gone)
            except CorruptData as error:
                _log.warning("store %s: %s stay, since %s", self._where, what, error)
                return
            await self._remove_unneeded(alone, doomed, what, gone.context)

    async def _remove_unneeded(
        self, alone: Alone, doomed: set[Key], what: str, context: ContextId | None = None
    ) -> None:
        """Remove those of `doomed` that no name leads to, nor the slot of a profile. The illegible keeps everything."""
        names = [one.entry for one in alone.state.contexts.values()]
        try:
            doomed = await live.unneeded(self, doomed, names, await self.slots(), context)
        except CorruptData as error:
            _log.warning("store %s: %s stay, since %s", self._where, what, error)
            return
        gone = set(await self.missing(sorted(doomed)))
        alone.check()
        await self.blobs.delete_objects([object_key(*key) for key in sorted(doomed - gone)])

    async def slots(self) -> set[Key]:
        """The profiles that models are published with."""
        return {("profiles", ref.id) for _, ref, _ in await self.profiles()}


def object_key(kind: Kind, id: ObjectId) -> str:
    """Where an object is."""
    return f"{kind}/{id[:2]}/{id}"
