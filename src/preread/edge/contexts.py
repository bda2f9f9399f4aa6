"""The contexts that this edge knows: the cloud's catalogue with each context's token ids and manifest, kept on disk.

And the profiles that the manifests of its own model refer to. All is synced ahead of time, so that matching a prompt
asks nobody, and so that an edge without a cloud, after a restart too, can still compute every context that it knows by
name.
"""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preread.edge.profiles import Profiles, wanted
from preread.errors import CorruptData, PrereadError, TransportError, UnknownContext
from preread.plan.match import PrefixIndex, Tokens, prefix_index
from preread.store.egress import CloudLink
from preread.values import ContextId, Fingerprint, ObjectId, ObjectRef
from preread.wire import catalogue as catalogues
from preread.wire import manifest as manifests
from preread.wire import tokens as token_objects
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id, object_id
from preread.wire.fields import MAX_TOKENS, SizedId
from preread.wire.manifest import Manifest

_log = logging.getLogger(__name__)
_CATALOGUE = "catalogue.json"


@dataclass(frozen=True, slots=True)
class Known:
    """A context with all that is needed to compute it (`tokens`) and to stream it (`manifest`, None: not at hand)."""

    entry: Entry
    tokens: Tokens
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class _State:
    """One consistent view of the catalogue; replaced as a whole by each sync."""

    by_name: dict[str, Known] = field(default_factory=dict)
    by_id: dict[ContextId, Known] = field(default_factory=dict)
    index: PrefixIndex = field(default_factory=lambda: prefix_index(()))


class Contexts:
    """What is known now. Reading it never blocks; `sync` and `restore` replace it.

    Args:
        folder: where the catalogue and its objects are kept; made when needed.
        fingerprint: of the model that this edge runs.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        self._folder, self._fingerprint = folder, fingerprint
        self.profiles = Profiles(fingerprint)
        self._state, self._etag = _State(), ""
        self._segments: tuple[_State, dict[ObjectId, SizedId]] | None = None
        self._syncing = asyncio.Lock()
        self.unreachable: str | None = "the cloud was not asked yet"
        """Why the last sync failed; None after one that did not."""

    def named(self, name: str) -> Known:
        """The context of this name.

        Raises:
            UnknownContext: there is none.
        """
        known = self._state.by_name.get(name)
        if known is None:
            raise UnknownContext(name, tuple(self._state.by_name))
        return known

    def matching(self, prompt: Tokens) -> Known | None:
        """The longest context, of this edge's own model, that the prompt begins with."""
        state = self._state  # a sync may replace it meanwhile
        found = state.index.longest(prompt)
        return state.by_id[found] if found else None

    def all(self) -> list[Known]:
        """Every known context, by name."""
        return [self._state.by_name[name] for name in sorted(self._state.by_name)]

    def segment(self, id: ObjectId) -> ObjectRef | None:
        """The segment of this id, if a context of this edge's own model has it in any rung."""
        state = self._state
        if self._segments is None or self._segments[0] is not state:
            cells = (cell for known in state.by_id.values() for cell in _cells(known.manifest))
            self._segments = state, {cell.id: cell for cell in cells}
        found = self._segments[1].get(id)
        return None if found is None else ObjectRef("segments", found.id, found.size_bytes)

    def restore(self) -> None:
        """Read what an earlier process kept. What is damaged is left out; it will be fetched again."""
        try:
            listed = catalogues.loads((self._folder / _CATALOGUE).read_bytes())
        except FileNotFoundError:
            return
        except (CorruptData, OSError) as error:
            _log.warning("the kept catalogue cannot be used and will be fetched again: %s", error)
            return
        kept = []
        for entry in listed.contexts:
            try:
                kept.append(
                    self._known(
                        entry, self._kept(catalogues.tokens_ref(entry)), self._kept(catalogues.manifest_ref(entry))
                    )
                )
            except (PrereadError, OSError) as error:
                _log.warning("context %r was not kept whole and will be fetched again: %s", entry.name, error)
        self._replace(kept)
        for ref in self._profiles_wanted():
            try:
                self.profiles.take(ref.id, self._kept(ref))
            except (CorruptData, OSError) as error:
                _log.warning("profile %s… was not kept whole: %s", ref.id[:12], error)

    async def sync(self, link: CloudLink) -> float:
        """Bring the catalogue up to date. On failure everything known before stays, and `unreachable` says why.

        Returns:
            After how many seconds the catalogue was there; objects that were fetched then do not count.

        Raises:
            PrereadError: as `CloudLink.catalogue` and `CloudLink.get` do.
        """
        async with self._syncing:
            started = time.monotonic()
            try:
                answer = await link.catalogue(self._etag or None)
                answered_s = time.monotonic() - started
                if answer is not None:
                    await self._take(link, *answer)
            except PrereadError as error:
                self.unreachable = str(error)
                raise
            self.unreachable = None
            return answered_s

    async def _take(self, link: CloudLink, body: bytes, etag: str) -> None:
        listed = catalogues.loads(body)
        gathered, whole = [], True
        for entry in listed.contexts:
            try:
                tokens = await self._object(link, catalogues.tokens_ref(entry))
                gathered.append(self._known(entry, tokens, await self._object(link, catalogues.manifest_ref(entry))))
            except TransportError:
                raise
            except PrereadError as error:
                whole = False
                _log.warning("context %r of the cloud's catalogue cannot be used: %s", entry.name, error)
        await asyncio.to_thread(self._keep, _CATALOGUE, body)
        self._replace(gathered)
        whole &= await self._take_profiles(link)
        self._etag = etag if whole else ""
        kept_profiles = {ref.id for ref in self._profiles_wanted()}
        await asyncio.to_thread(self._forget_others, {_CATALOGUE, *_files(gathered), *kept_profiles})

    async def _take_profiles(self, link: CloudLink) -> bool:
        """Get the profiles that are not here yet; whether trying again later is in vain."""
        refs, whole = self._profiles_wanted(), True
        self.profiles.keep_only({ref.id for ref in refs})
        for ref in refs:
            if ref.id in self.profiles:
                continue
            try:
                data = await self._object(link, ref)
            except TransportError:
                raise
            except PrereadError as error:
                whole = False
                _log.warning("rungs that need profile %s… cannot be streamed: %s", ref.id[:12], error)
                continue
            try:
                await asyncio.to_thread(self.profiles.take, ref.id, data)
            except CorruptData as error:
                _log.warning("rungs that need profile %s… cannot be streamed: %s", ref.id[:12], error)
        return whole

    def _profiles_wanted(self) -> list[ObjectRef]:
        own = self._state.by_id.values()
        return wanted(known.manifest for known in own if known.manifest is not None)

    def _known(self, entry: Entry, tokens: bytes, manifest: bytes) -> Known:
        """Put a context together from bytes whose digests are right, checking that they belong together.

        Raises:
            CorruptData: they do not.
        """
        ids = token_objects.unpack(tokens, MAX_TOKENS)
        if len(ids) != entry.token_count or context_id(entry.fingerprint, ids) != entry.context:
            raise CorruptData("context", "its token ids are not those of its context id")
        try:
            read = manifests.loads(manifest)
        except CorruptData as error:
            if error.reason != "version":
                raise
            _log.warning("context %r will be computed here: %s", entry.name, error)
            return Known(entry, ids, None)
        if (
            read.context != entry.context
            or read.model.fingerprint != entry.fingerprint
            or read.tokens.count != len(ids)
        ):
            raise CorruptData("context", "its manifest is of another context")
        return Known(entry, ids, read)

    def _replace(self, contexts: list[Known]) -> None:
        own = {known.entry.context: known for known in contexts if known.entry.fingerprint == self._fingerprint}
        self._state = _State(
            {known.entry.name: known for known in contexts},
            own,
            prefix_index((id, known.tokens) for id, known in own.items()),
        )

    async def _object(self, link: CloudLink, ref: ObjectRef) -> bytes:
        try:
            return await asyncio.to_thread(self._kept, ref)
        except (CorruptData, OSError):
            data = await link.get(ref)
            await asyncio.to_thread(self._keep, ref.id, data)
            return data

    def _kept(self, ref: ObjectRef) -> bytes:
        data = (self._folder / ref.id).read_bytes()
        if len(data) != ref.size_bytes or object_id(data) != ref.id:
            raise CorruptData("digest", f"the kept {ref.kind} object {ref.id[:12]}… is damaged")
        return data

    def _keep(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all. A full disk costs only what would have been kept."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".new-", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.replace(file.name, self._folder / name)
                except OSError:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            _log.warning("the catalogue cannot be kept in %s: %s", self._folder, error)

    def _forget_others(self, names: set[str]) -> None:
        for path in self._folder.glob("*"):
            if path.name not in names and not path.is_dir():
                path.unlink(missing_ok=True)


def _cells(manifest: Manifest | None) -> Iterator[SizedId]:
    for rung in () if manifest is None else manifest.rungs:
        for row in rung.segments:
            yield from row


def _files(contexts: list[Known]) -> set[str]:
    return {id for known in contexts for id in (known.entry.tokens.id, known.entry.manifest.id)}
