"""What the cloud's page shows now: what is published, what is being published, and how much is stored. Read-only."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from preread.cloud.events import Progress
from preread.errors import CorruptData
from preread.page.values import Context, Contexts, Publication, Published, Rung, Shown
from preread.store.objects import Objects
from preread.values import ObjectId
from preread.wire import manifest as manifests
from preread.wire.catalogue import Entry
from preread.wire.manifest import Manifest

MOST_CONTEXTS: Final = 200
"""So many are shown: of each, its manifest is read once."""

_PACE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Read:
    """What a manifest and a name's file say. `size_bytes`: of all objects that are this context's."""

    context: Context
    size_bytes: int


class CloudPage:
    """A cloud's page.

    Args:
        store: what is published.
        under_way: names that are being published, and how far each has come.
    """

    def __init__(self, store: Objects, under_way: Callable[[], tuple[tuple[str, Progress], ...]]) -> None:
        self._store, self._under_way = store, under_way
        self._read: dict[tuple[str, ObjectId], _Read] = {}

    async def look(self, caller: str) -> Shown:
        """What to show now, to everybody alike.

        Raises:
            RemoteError: the store cannot be read.
        """
        entries = await self._store.names()
        shown = entries[:MOST_CONTEXTS]
        read = {_key(entry): self._read.get(_key(entry)) or await self._look_at(entry) for entry in shown}
        self._read = read
        stored = {entry.manifest.id: one.size_bytes for entry, one in zip(shown, read.values(), strict=True)}
        contexts = Contexts(tuple(one.context for one in read.values()), len(entries) - len(shown))
        publications = tuple(
            Publication(name, progress.stage, progress.done, progress.total) for name, progress in self._under_way()
        )
        return Shown({"published": Published(contexts, publications, sum(stored.values()))}, _PACE_S)

    async def _look_at(self, entry: Entry) -> _Read:
        at = _clock(await self._store.published_at(entry.name))
        context = Context(entry.name, entry.model, entry.token_count, at=at)
        data = await self._store.read("manifests", entry.manifest.id)
        try:
            if data is None:
                raise CorruptData("manifest", "its manifest is missing")
            manifest = manifests.loads(data)
        except CorruptData as error:
            return _Read(replace(context, note=str(error)), entry.manifest.size_bytes + entry.tokens.size_bytes)
        cells = {cell.id: cell.size_bytes for rung in manifest.rungs for cell in rung.segments}
        size_bytes = entry.manifest.size_bytes + entry.tokens.size_bytes + sum(cells.values())
        return _Read(replace(context, rungs=_rungs(manifest), mode=manifest.origin.mode), size_bytes)


def _key(entry: Entry) -> tuple[str, ObjectId]:
    return entry.name, entry.manifest.id


def _rungs(manifest: Manifest) -> tuple[Rung, ...]:
    return tuple(
        Rung(
            rung.name,
            sum(place.size_bytes for place in manifests.places(manifest, rung.name)),
            manifests.stated_dloss(rung),
        )
        for rung in manifest.rungs
    )


def _clock(at: datetime | None) -> str | None:
    """As people read it, in this machine's time zone."""
    return None if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M")
