"""The contexts that this edge knows: what is published, and the token ids and manifests of those that it can use.

And the profiles that these manifests refer to. All is here ahead of time, so that matching a prompt asks nobody, and so
that an edge without a cloud, after a restart too, can still compute every context that it has token ids of. What is
asked for, what is believed and how much of it is kept is decided in `published.py`, when to ask in `syncing.py`; files
are in `kept.py`.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from preread.codec.profile import Profile
from preread.edge import published, remembered
from preread.edge.kept import Kept
from preread.edge.known import Known, lack, manifest_of, tokens_of
from preread.edge.profiles import Profiles
from preread.edge.profiles import wanted as profiles_wanted
from preread.edge.published import ANYTHING, Interest, OwnModel
from preread.edge.rungs import Streamable, reread, resolved
from preread.errors import (
    CorruptData,
    PrereadError,
    RemoteError,
    TransportError,
    Unavailable,
    UnknownContext,
    UsageError,
)
from preread.plan.match import Tokens
from preread.store.egress import CloudLink
from preread.values import ContextId, ObjectId, ObjectRef
from preread.wire import catalogue as catalogues
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.fields import SizedId
from preread.wire.manifest import Manifest
from preread.wire.selection import Selection, of_names
from preread.wire.told import Told

_log = logging.getLogger(__name__)
_MOST_LOOKED_UP: Final = 64


_Read = Tokens | tuple[Streamable, ...] | Profile | CorruptData
"""What an object says: token ids, the rungs of a manifest, a profile, or why it is of no use."""


class Contexts:
    """What is known now. Reading it never blocks; it belongs to the event loop.

    Args:
        folder: where what is published is kept, in a folder of its own for each model; made when needed.
        own: the model that this edge runs.
        interest: which contexts it is run for.
    """

    def __init__(self, folder: Path, own: OwnModel, interest: Interest = ANYTHING) -> None:
        self.own_model, self._kept = own, Kept(folder / "catalogue" / own.fingerprint[:16])
        self._interest, self.profiles = interest, Profiles(own)
        self._entries: dict[str, Entry] = {}
        self._former: dict[str, Entry] = {}
        """What a name stood for, while the tokens of what it stands for now are not here yet."""
        self._tokens: dict[ContextId, Tokens] = {}
        self._manifests: dict[ObjectId, Manifest] = {}
        self._rungs: dict[ObjectId, tuple[Streamable, ...]] = {}
        """What can be streamed of each manifest: resolved when it comes, and again when profiles come or go."""
        self._useless: dict[ObjectId, str] = {}
        """Objects that are here and cannot be used, and why: fetching them again would not help."""
        self._failed: dict[ObjectId, tuple[int, int, str]] = {}
        """Objects that could not be had: how often, at which try, and why."""
        self._asked: tuple[str, ...] = ()
        self._cells: dict[ObjectId, SizedId] | None = None
        self.gone: set[ObjectId] = set()
        """Segments of contexts that were taken back: of no use, unless a context that is known has them too."""
        self.version, self._tries = "", 0
        self._all_comes = False
        """Whether the cloud is one of before selections: it tells everything, whatever it is asked for."""
        self._learning, self._fetching = asyncio.Lock(), asyncio.Lock()
        self.lacking = asyncio.Event()
        """Set when something may have to be fetched that nobody waits for."""
        self.asked_cloud = asyncio.Event()
        """Set when the first sync has ended, one way or the other."""
        self.unreachable: str | None = "the cloud was not asked yet"
        """Why the last sync failed; None after one that did not."""

    def named(self, name: str) -> Known:
        """The context of this name.

        Raises:
            UnknownContext: there is none, as far as is known here.
            Unavailable: there is one, but its token ids are not here; and why.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownContext(name, tuple(self._entries))
        for one in (entry, self._former.get(name)):
            if one is not None and one.context in self._tokens:
                return self._whole(one)
        raise Unavailable(f"context {name!r} cannot be used yet: {self._why_not(entry.tokens.id, 'its token ids')}")

    def entry(self, name: str) -> Entry | None:
        """What is published under this name, as far as is known here."""
        return self._entries.get(name)

    def entries(self) -> list[Entry]:
        """All that is published, as far as is known here, by name."""
        return [self._entries[name] for name in sorted(self._entries)]

    def readable(self) -> list[Entry]:
        """Those of them whose KV this edge's own model reads."""
        return [entry for entry in self.entries() if self.own_model.streams(entry.fingerprint)]

    def all(self) -> list[Known]:
        """Every context that can be used without asking anybody, by name."""
        return [self.named(entry.name) for entry in self.entries() if self._here(entry.name)]

    def own(self) -> list[Known]:
        """Those of them whose KV this edge's own model reads."""
        return [known for known in self.all() if self.own_model.streams(known.entry.fingerprint)]

    def missing(self) -> list[str]:
        """Names of contexts that are to be here and are not yet."""
        return [entry.name for entry in self._wanted() if entry.context not in self._tokens]

    @property
    def complete(self) -> bool:
        """Whether all that is published for this edge's own model is known: a segment of none of it is of no use."""
        own = [entry for entry in self._entries.values() if self.own_model.streams(entry.fingerprint)]
        return self.unreachable is None and all(entry.manifest.id in self._manifests for entry in own)

    @property
    def selection(self) -> Selection:
        """Which contexts of the cloud this edge wants to know of."""
        return published.selection(self._entries, self.own_model, self._interest, self._asked)

    def segment(self, id: ObjectId) -> ObjectRef | None:
        """The segment of this id, if a context of this edge's own model has it in any rung."""
        if self._cells is None:
            self._cells = {cell.id: cell for manifest in self._manifests.values() for cell in _cells(manifest)}
        found = self._cells.get(id)
        return None if found is None else ObjectRef("segments", found.id, found.size_bytes)

    def profiles_changed(self) -> None:
        """A profile has come, or gone: see anew what can be decoded."""
        self._rungs = {id: reread(rungs, self.profiles) for id, rungs in self._rungs.items()}

    def restore(self) -> None:
        """Read what an earlier process kept. What is damaged is left out; it will be fetched again."""
        found = remembered.read(self._kept)
        self._replace(found.entries)
        self._asked = found.asked
        self.version = found.version if found.query == self.selection.query() else ""
        for ref, entry in self._refs():
            kept = self._kept.object(ref)
            if kept is not None:
                self._put(ref, entry, self._read(ref, entry, kept))

    async def sync(self, link: CloudLink) -> float:
        """Bring all up to date. On failure everything known before stays, and `unreachable` says why.

        Returns:
            After how many seconds the catalogue was there; objects that were fetched then do not count.

        Raises:
            PrereadError: as `CloudLink.catalogue` does; RemoteError: what comes is no catalogue; TransportError: as
                `CloudLink.get` does. An object that the cloud does not have, or not as it should be, is no error; it is
                asked for again, ever more rarely.
        """
        with self._noting_failures():
            async with self._learning:
                started = time.monotonic()
                answer = await link.catalogue(self.version, self.selection)
                answered_s = time.monotonic() - started
                if answer is not None:
                    await self._learn(*answer, link)
            self.unreachable = None  # it answers: who asks now need not wait for what is fetched ahead of need
            await self.fetch(link)
        return answered_s

    async def hear(self, told: Told, link: CloudLink) -> None:
        """Take over what the cloud tells by itself.

        Raises:
            PrereadError: as `sync` does, where it tells that there is much to be asked for.
            CorruptData: what it tells is no catalogue.
        """
        if not told.version:
            await self.sync(link)
            return
        async with self._learning:
            if told.changes:
                await self._take(catalogues.loads(told.changes), told.version, self.selection)
            self.version = told.version

    async def look_up(self, name: str, link: CloudLink) -> None:
        """Ask the cloud for a name that is not known here: by a part of its digest, so that it is not told.

        Raises:
            PrereadError: as `sync` does.
        """
        if self._all_comes:
            await self.sync(link)
            return
        with self._noting_failures():
            async with self._learning:
                await self._ask_for({name}, link)
            self.unreachable = None

    async def fetch(self, link: CloudLink) -> None:
        """Fetch what is to be here and is not.

        Raises:
            TransportError, UsageError: as `CloudLink.get` does.
        """
        await link.learn_origins()
        async with self._fetching:
            self._tries += 1
            self.lacking.clear()
            for ref, entry in self._refs():
                if self._due(ref):
                    await self._fetch(link, ref, entry)
            await self._forget()

    async def get(self, name: str, link: CloudLink | None) -> Known:
        """The context of this name, for somebody who asks for it; what is missing of it is fetched first.

        Raises:
            UnknownContext, Unavailable: as for `named`.
        """
        entry = self._entries.get(name)
        if entry is not None:
            await self._note_asked(name)
        if entry is not None and link is not None and published.fits(entry, self.own_model) and not self._here(name):
            try:
                await asyncio.gather(*[self._fetch(link, ref, entry) for ref in self._refs_of(entry)])
            except PrereadError as error:
                if not self._here(name):
                    raise Unavailable(f"context {name!r} cannot be had from the cloud: {error}") from error
            self.lacking.set()
        return self.named(name)

    # What is believed

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        """While the cloud is asked: why that failed is in `unreachable`."""
        try:
            yield
        except CorruptData as error:
            self.unreachable = f"the cloud's catalogue cannot be read: {error}; does --cloud name a preread cloud?"
            raise RemoteError(self.unreachable) from error
        except PrereadError as error:
            self.unreachable = str(error)
            raise
        finally:
            self.asked_cloud.set()

    async def _learn(self, body: bytes, version: str, link: CloudLink) -> None:
        """Take over the answer to what was asked: a catalogue, or what has changed in it."""
        told, wanted = await asyncio.to_thread(catalogues.loads, body), self.selection
        self._all_comes = not all(wanted.takes(entry.name, entry.fingerprint) for entry in told.contexts)
        await self._take(told, version, wanted)
        if told.since:
            return
        lost = self._entries.keys() - {entry.name for entry in told.contexts}
        if 0 < len(lost) <= _MOST_LOOKED_UP and not self._all_comes:
            lost -= await self._ask_for(lost, link)  # published for another model, perhaps
        if lost:
            _log.warning(
                "the cloud does not tell of %d contexts any more, nor that they were removed: they stay", len(lost)
            )

    async def _ask_for(self, names: Set[str], link: CloudLink) -> set[str]:
        """Take over what the cloud tells of these names, whatever models they are for; which it tells of."""
        asked = Selection(digests=of_names(names))
        answer = await link.catalogue("", asked)
        told = await asyncio.to_thread(catalogues.loads, answer[0]) if answer else Catalogue()
        self._all_comes = not all(asked.names(entry.name) for entry in told.contexts)
        found = tuple(entry for entry in told.contexts if entry.name in names)
        also = replace(self.selection, digests=(*self.selection.digests, *asked.digests))
        if found:
            await self._take(Catalogue(found), self.version, also)
        return {entry.name for entry in found}

    async def _take(self, told: Catalogue, version: str, wanted: Selection) -> None:
        """Take over, of what is told, what is wanted, and keep it on the disk."""
        before, query = tuple(self._entries.values()), self.selection.query()

        def take() -> tuple[Entry, ...]:
            entries = published.merged(before, told, wanted)
            remembered.write(self._kept, entries, version, query)
            return entries

        self._replace(await asyncio.to_thread(take))
        self.version = version
        self.lacking.set()

    def _replace(self, entries: tuple[Entry, ...]) -> None:
        former = {**self._former, **{name: one for name, one in self._entries.items() if one.context in self._tokens}}
        self._entries = {entry.name: entry for entry in entries}
        self._former = {
            name: entry
            for name, entry in former.items()
            if name in self._entries and self._entries[name].context not in self._tokens
        }
        believed = [*self._entries.values(), *self._former.values()]
        contexts = {entry.context for entry in believed}
        objects = {id for entry in believed for id in (entry.tokens.id, entry.manifest.id)}
        self._keep_only(contexts, objects)

    def _wanted(self) -> list[Entry]:
        return published.wanted(tuple(self._entries.values()), self.own_model, self._asked, self._interest)

    def _refs(self) -> Iterator[tuple[ObjectRef, Entry | None]]:
        """All objects that are to be here, with what they are of; profiles, which are of many contexts, come last."""
        for entry in self._wanted():
            yield from ((ref, entry) for ref in self._refs_of(entry))
        yield from ((ref, None) for ref in self._profiles())

    def _refs_of(self, entry: Entry) -> list[ObjectRef]:
        tokens, manifest = catalogues.tokens_ref(entry), catalogues.manifest_ref(entry)
        return [tokens, manifest] if self.own_model.streams(entry.fingerprint) else [tokens]

    def _profiles(self) -> list[ObjectRef]:
        return profiles_wanted(self._manifests.values())

    def _here(self, name: str) -> bool:
        found = (self._entries.get(name), self._former.get(name))
        return any(entry is not None and entry.context in self._tokens for entry in found)

    def _whole(self, entry: Entry) -> Known:
        tokens, id = self._tokens[entry.context], entry.manifest.id
        if not self.own_model.streams(entry.fingerprint):
            return Known(entry, tokens, None, f"it was published for {entry.model}, and this edge runs another model")
        manifest = self._manifests.get(id)
        if manifest is None or manifest.context != entry.context:
            return Known(entry, tokens, None, self._why_not(id, "its manifest"))
        return Known(entry, tokens, manifest, "", self._rungs[id])

    def _why_not(self, id: ObjectId, what: str) -> str:
        if id in self._useless:
            return self._useless[id]
        if id in self._failed:
            return f"{what} cannot be had: {self._failed[id][2]}"
        return f"{what} is not here yet" if self.unreachable is None else self.unreachable

    # What is fetched

    def _due(self, ref: ObjectRef) -> bool:
        failed = self._failed.get(ref.id)
        return failed is None or published.due(failed[0], failed[1], self._tries)

    async def _fetch(self, link: CloudLink, ref: ObjectRef, entry: Entry | None) -> None:
        """Get an object, if it is not here, from the disk or else from the cloud.

        Raises:
            TransportError, UsageError: as `CloudLink.get` does: there is no sense in asking for others either.
        """
        if self._taken(ref, entry):
            return
        data = await asyncio.to_thread(self._kept.object, ref)
        if data is None:
            try:
                data = await link.get(ref)
            except (TransportError, UsageError):
                raise
            except PrereadError as error:
                _log.warning("%s: %s", lack(ref, entry), error)
                self._failed[ref.id] = self._failed.get(ref.id, (0, 0, ""))[0] + 1, self._tries, str(error)
                return
            await asyncio.to_thread(self._kept.write, ref.id, data)
        self._failed.pop(ref.id, None)
        self._put(ref, entry, await asyncio.to_thread(self._read, ref, entry, data))

    def _taken(self, ref: ObjectRef, entry: Entry | None) -> bool:
        if entry is None:
            return ref.id in self.profiles
        here = entry.context in self._tokens if ref.kind == "tokens" else ref.id in self._manifests
        return here or ref.id in self._useless

    def _read(self, ref: ObjectRef, entry: Entry | None, data: bytes) -> _Read:
        """What the bytes of an object say, whose digest is right, or why they are of no use. For any thread."""
        try:
            if entry is None:
                return self.profiles.read(ref.id, data)
            if ref.kind == "tokens":
                return tokens_of(entry, data, self.own_model)
            return resolved(manifest_of(entry, data, self.own_model), self.profiles, self.own_model)
        except CorruptData as error:
            _log.warning("%s: %s", lack(ref, entry), error)
            return error

    def _put(self, ref: ObjectRef, entry: Entry | None, read: _Read) -> None:
        if entry is None and isinstance(read, Profile | CorruptData):
            self.profiles.put(ref.id, read)
            self.profiles_changed()
        if isinstance(read, CorruptData):
            self._useless[ref.id] = str(read)
        elif isinstance(read, tuple):
            self._manifests[ref.id], self._cells = read[0].manifest, None
            self._rungs[ref.id] = reread(read, self.profiles)  # a profile may have come while it was read
        elif entry is not None and not isinstance(read, Profile):
            self._tokens[entry.context] = read
            self._former.pop(entry.name, None)

    def _keep_only(self, contexts: set[ContextId], objects: set[ObjectId]) -> None:
        """Know no tokens but those of these contexts, and no manifests but those of these ids."""
        believed = {entry.context for entry in (*self._entries.values(), *self._former.values())}
        for id, manifest in self._manifests.items():
            if id not in objects and manifest.context not in believed:
                self.gone |= {cell.id for cell in _cells(manifest)}
        self._tokens = {id: tokens for id, tokens in self._tokens.items() if id in contexts}
        self._manifests = {id: manifest for id, manifest in self._manifests.items() if id in objects}
        self._rungs = {id: rungs for id, rungs in self._rungs.items() if id in objects}
        self._cells = None

    async def _note_asked(self, name: str) -> None:
        before, self._asked = self._asked, published.asked_again(self._asked, name)
        if set(before) != set(self._asked):
            await asyncio.to_thread(remembered.write_asked, self._kept, self._asked)

    async def _forget(self) -> None:
        """Drop what is not wanted any more, from memory and from the disk."""
        wanted = self._wanted()
        ids = {ref.id for entry in wanted for ref in self._refs_of(entry)}
        ids |= {id for entry in self._former.values() for id in (entry.tokens.id, entry.manifest.id)}
        contexts = {entry.context for entry in (*wanted, *self._former.values())}
        self._keep_only(contexts, ids)
        profiles = {ref.id for ref in self._profiles()}
        if self.profiles.keep_only(profiles):
            self.profiles_changed()
        self._useless = {id: why for id, why in self._useless.items() if id in ids | profiles}
        self._failed = {id: failed for id, failed in self._failed.items() if id in ids | profiles}
        await asyncio.to_thread(self._kept.forget_objects, ids | profiles)


def _cells(manifest: Manifest) -> Iterator[SizedId]:
    for rung in manifest.rungs:
        yield from rung.segments
