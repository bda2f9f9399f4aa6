"""A store is looked after: is all that is published there and whole, and what is there that nobody needs?

What nobody needs is deleted batch by batch, each in a part of the log of names in which nobody publishes (`names.py`),
and only what the names of that moment do not lead to; so nothing that is published is ever deleted, however many clouds
publish meanwhile. What is younger than some hours stays, since it may be of a publication that is under way: its name
would be refused when it is put, and all its work be done in vain.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar, get_args

from preread.errors import CorruptData
from preread.store import live
from preread.store.blobs import Found
from preread.store.former import FOLDERS, REMOVED
from preread.store.live import Key
from preread.store.objects import Objects, object_key
from preread.values import Kind, ObjectId, ObjectRef
from preread.wire import claim, draft
from preread.wire.catalogue import Entry
from preread.wire.digest import object_id
from preread.wire.log import Edit, State

YOUNG_S: Final = 24 * 3600.0
DRAFT_S: Final = 7 * 24 * 3600.0
"""What an unfinished publication has stored is kept for so long after it last went on."""

_BATCH: Final = 500
_AT_ONCE: Final = 32
_OBJECT: Final = re.compile(r"(\w+)/([0-9a-f]{2})/([0-9a-f]{64})")
_log = logging.getLogger(__name__)
T = TypeVar("T")
U = TypeVar("U")
Report = Callable[[str, int, int], None]
"""Told what is done, how much of it, and how much there is."""


@dataclass(slots=True)
class Checked:
    """What was found.

    Attributes:
        contexts, objects, size_bytes: of what is published.
        damage: one line for each thing that is missing or not what it should be.
        orphans: objects that nothing leads to.
    """

    contexts: int = 0
    objects: int = 0
    size_bytes: int = 0
    damage: list[str] = field(default_factory=list)
    orphans: list[Found] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted, or would be: objects, and other things (records of publications, names of older releases)."""

    objects: int
    size_bytes: int
    others: int
    kept: str = ""
    """Why segments and profiles that nothing seems to lead to were all kept, if they were."""


async def check(store: Objects, report: Report, *, quick: bool = False) -> Checked:
    """See whether all that names lead to is there and whole; nothing is changed.

    Args:
        store: where.
        report: is told how far it is.
        quick: look at sizes only, and read no objects but manifests.

    Raises:
        RemoteError: the store cannot be read, or its log of names is damaged.
    """
    await store.look()
    entries, there = await store.names(), await _there(store)
    found = Checked(len(entries))
    needed: dict[Key, tuple[int, str]] = {}
    for done, entry in enumerate(entries):
        report("manifests", done, len(entries))
        try:
            for ref in await live.refs(store, entry):
                needed.setdefault((ref.kind, ref.id), (ref.size_bytes, f"context {entry.name!r}"))
        except CorruptData as error:
            found.damage.append(f"context {entry.name!r}: {error}")
            needed.setdefault(("manifests", entry.manifest.id), (entry.manifest.size_bytes, f"context {entry.name!r}"))
            needed.setdefault(("tokens", entry.tokens.id), (entry.tokens.size_bytes, f"context {entry.name!r}"))
    for of, ref, _ in await store.profiles():
        needed.setdefault(("profiles", ref.id), (ref.size_bytes, f"the profile of model {of[:12]}…"))
    for fit in await store.fits():
        needed.setdefault(("fits", fit.id), (fit.size_bytes, f"fit {fit.id[:12]}…"))
    found.objects, found.size_bytes = len(needed), sum(size_bytes for size_bytes, _ in needed.values())
    whole = list[ObjectRef]()
    for (kind, id), (size_bytes, what) in needed.items():
        one = there.get((kind, id))
        if one is None:
            found.damage.append(f"{what}: {object_key(kind, id)} is missing")
        elif one.size_bytes != size_bytes:
            found.damage.append(f"{what}: {one.key} has {one.size_bytes} bytes, not {size_bytes}")
        else:
            whole.append(ObjectRef(kind, id, size_bytes))
    for start in range(0, 0 if quick else len(whole), _AT_ONCE):
        report("objects", start, len(whole))
        some = whole[start : start + _AT_ONCE]
        for ref, right in zip(some, await asyncio.gather(*[_is_right(store, ref) for ref in some]), strict=True):
            if not right:
                what = needed[ref.kind, ref.id][1]
                found.damage.append(f"{what}: {object_key(ref.kind, ref.id)} is damaged: its digest is another")
    found.orphans = [one for key, one in there.items() if key not in needed]
    return found


async def collect(store: Objects, report: Report, *, young_s: float = YOUNG_S, dry_run: bool = False) -> Collected:
    """Delete what nothing leads to, but what is young.

    Args:
        store: from which.
        report: is told how far it is.
        young_s: what was written less than so many seconds before now stays, by the store's own clock.
        dry_run: delete nothing, and tell what would be.

    Raises:
        RemoteError: the store cannot be read or written.
        UsageError: an older preread writes to it.
    """
    now = await store.blobs.now()
    before = now - timedelta(seconds=young_s)
    await store.look()
    old = [one for one in (await _there(store)).items() if one[1].at < before]
    known = _Known(store)
    noted, others = await _notes(store, now, young_s)
    try:
        names = await store.log.look()
        await known.read(names, report)
        slots = await store.slots()
        doomed = [one for key, one in old if key not in noted and not known.has(key, slots)]
        kept = ""
    except CorruptData as error:
        doomed, kept = [], str(error)
    others += await _left(store)
    if dry_run:
        return Collected(len(doomed), sum(one.size_bytes for one in doomed), len(others), kept)
    gone = list[Found]()
    for start in range(0, len(doomed), _BATCH):
        report("objects", start, len(doomed))
        gone += await _delete(store, known, doomed[start : start + _BATCH], before)
    await store.blobs.delete_objects(others)
    return Collected(len(gone), sum(one.size_bytes for one in gone), len(others), kept)


async def upgrade(store: Objects) -> int | None:
    """Begin the log of names with what an older release published; how many contexts. None: there is a log already.

    Raises:
        RemoteError: the store cannot be read or written.
        UsageError: an older preread writes to it.
    """
    upgraded = list[int]()

    async def decide(state: State) -> Edit | None:
        upgraded[:] = [] if state.last is not None else [len(state.contexts)]
        return Edit() if upgraded else None

    await store.log.change(decide)
    await store.look()
    return upgraded[0] if upgraded else None


async def _delete(store: Objects, known: "_Known", batch: Sequence[Found], before: datetime) -> list[Found]:
    """Delete those of a batch that nothing leads to now either, and that nobody has put again; which these are."""
    async with store.log.alone() as alone:
        try:
            await known.read(alone.state, lambda *_: None)
        except CorruptData as error:
            _log.warning("%s: nothing more is deleted", error)
            return []
        slots = await store.slots()
        still = [one for one in batch if not known.has(_named(one.key), slots)]
        written = await _gathered(still, lambda one: store.blobs.changed(one.key))
        doomed = [one for one, at in zip(still, written, strict=True) if at is not None and at < before]
        alone.check()
        await store.blobs.delete_objects([one.key for one in doomed])
    return doomed


class _Known:
    """All objects that names lead to; each manifest is read once."""

    def __init__(self, store: Objects) -> None:
        self._store = store
        self._manifests: dict[ObjectId, set[bytes]] = {}
        self._tokens: set[ObjectId] = set()
        self._all: set[bytes] = set()

    async def read(self, state: State, report: Report) -> None:
        """Know those of these names.

        Raises:
            CorruptData: a manifest is missing or cannot be understood.
        """
        entries = {one.entry.manifest.id: one.entry for one in state.contexts.values()}
        new = [entry for id, entry in entries.items() if id not in self._manifests]
        for start in range(0, len(new), _AT_ONCE):
            report("manifests", start, len(new))
            some = new[start : start + _AT_ONCE]
            for entry, keys in zip(some, await _gathered(some, self._needs), strict=True):
                self._manifests[entry.manifest.id] = {_short(key) for key in keys}
        self._manifests = {id: self._manifests[id] for id in entries}
        self._all = set[bytes]().union(*self._manifests.values())
        self._all |= {_short(("tokens", one.entry.tokens.id)) for one in state.contexts.values()}

    async def _needs(self, entry: Entry) -> set[Key]:
        return await live.needs(self._store, entry)

    def has(self, key: Key, slots: set[Key]) -> bool:
        return _short(key) in self._all or key in slots


def _short(key: Key) -> bytes:
    """Half of an id: millions of them are held, and no two are the same."""
    return bytes.fromhex(key[1][:32])


def _named(key: str) -> Key:
    kind, _, id = key.split("/")
    return kind, ObjectId(id)  # type: ignore[return-value]


async def _there(store: Objects) -> dict[Key, Found]:
    """All objects."""
    found = dict[Key, Found]()
    for kind in get_args(Kind):
        for one in await store.blobs.all_in(kind):
            if (match := _OBJECT.fullmatch(one.key)) is not None:
                found[kind, ObjectId(match[3])] = one
    return found


async def _notes(store: Objects, now: datetime, young_s: float) -> tuple[set[Key], list[str]]:
    """What publications that are under way, or may be gone on with, have stored; and records that are worth nothing."""
    noted, others = set[Key](("fits", fit.id) for fit in await store.fits()), list[str]()
    for one in await store.blobs.all_in("drafts"):
        data = await store.blobs.read(one.key)
        try:
            record = draft.read(data or b"")
        except CorruptData:
            others += [one.key] if one.at < now - timedelta(seconds=young_s) else []
            continue
        if record.manifest is not None:
            gone = await store.size("manifests", record.manifest.id) is None
            others += [one.key] if gone else []
        elif one.at < now - timedelta(seconds=max(young_s, DRAFT_S)):
            others.append(one.key)
        else:
            noted |= {(ref.kind, ref.id) for ref in draft.segments(record)}
    for one in await store.blobs.all_in("claims"):
        try:
            over = (
                claim.loads(await store.blobs.read(one.key) or b"").until_ms < now.timestamp() * 1000 - young_s * 1000
            )
        except CorruptData:
            over = one.at < now - timedelta(seconds=young_s)
        others += [one.key] if over else []
    return noted, others


async def _left(store: Objects) -> list[str]:
    """Names of older releases, which the log begins with."""
    if (await store.log.look()).last is None:
        return []
    found = [one.key for folder in FOLDERS for one in await store.blobs.all_in(folder) if one.key.endswith(".json")]
    return [*found, *([REMOVED] if await store.blobs.size(REMOVED) is not None else [])]


async def _is_right(store: Objects, ref: ObjectRef) -> bool:
    data = await store.read(ref.kind, ref.id)
    return data is not None and await asyncio.to_thread(object_id, data) == ref.id


async def _gathered(items: Sequence[T], call: Callable[[T], Awaitable[U]]) -> list[U]:
    found = list[U]()
    for start in range(0, len(items), _AT_ONCE):
        found += await asyncio.gather(*[call(item) for item in items[start : start + _AT_ONCE]])
    return found
