"""A publication that was begun before, here or elsewhere, is taken up: what it stored is looked at, and used if whole.

The record of it (`preread.wire.draft`) is kept in the store under a digest of what is made. Segments that it names are
read and checked; from the lossless ones an engine can go on where the last one ended.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final

from preread.codec.ladder import codec
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import CorruptData
from preread.store.objects import Objects
from preread.values import KVShape, ObjectRef, Span
from preread.wire import draft as drafts
from preread.wire import manifest as manifests
from preread.wire import parts, segment
from preread.wire.draft import Draft, Row, Work
from preread.wire.fields import SizedId
from preread.wire.manifest import LOSSLESS, Group, Manifest

_AT_ONCE: Final = 64
"""Objects are read so many at a time: a bucket takes milliseconds for each."""

_log = logging.getLogger(__name__)


class Record:
    """How far one publication has come, in the store.

    Attributes:
        rows: segments of the first chunks, which are stored and whole.
        manifest: of what is whole, with its object; None while something is missing.
    """

    def __init__(
        self, store: Objects, work: Work, rows: Sequence[Row] = (), manifest: tuple[Manifest, SizedId] | None = None
    ) -> None:
        self.rows, self.manifest = list(rows), manifest
        self._store, self._id, self._context = store, drafts.digest(work), work.context

    async def add(self, row: Row) -> None:
        """Note that one more chunk is stored."""
        self.rows.append(row)
        await self._store.drafts.note(self._id, drafts.dumps(Draft(self._id, self._context, tuple(self.rows))))

    async def finish(self, manifest: SizedId) -> None:
        """Note that all is stored that this manifest names."""
        await self._store.drafts.finish(self._id, drafts.dumps(Draft(self._id, self._context, manifest=manifest)))


async def taken_up(store: Objects, work: Work) -> Record:
    """The record of a publication, with what is whole of that which it names.

    Raises:
        RemoteError: the store cannot be read.
    """
    data = await store.drafts.read(drafts.digest(work))
    if data is None:
        return Record(store, work)
    try:
        draft = drafts.loads(data, work)
        if draft.manifest is None:
            return Record(store, work, await _whole(store, draft.rows))
        manifest = await _manifest(store, work, draft.manifest)
    except CorruptData as error:
        _log.warning("what is noted of a publication of context %s cannot be used: %s", work.context[:12], error)
        return Record(store, work)
    if manifest is None:
        return Record(store, work)
    noted = drafts.rows(manifest)
    rows = await _whole(store, noted)
    others = [manifests.tokens_ref(manifest), *_profiles(manifest)]
    if len(rows) == len(noted) and await _all_kept(store, others):
        return Record(store, work, rows, (manifest, draft.manifest))
    return Record(store, work, rows)


async def restored(store: Objects, engine: LlamaCpp, worker: Worker, pool: Executor, work: Work, record: Record) -> int:
    """Have the engine hold the KV that is stored losslessly; of how many tokens that is, from the first on.

    Raises:
        EngineError, RemoteError: the engine or the store failed.
    """
    names = [rung.name for rung in work.rungs]
    if LOSSLESS not in names or not record.rows or any(layer.state for layer in work.model.layers):
        return 0  # behind a chunk in the middle there is no state
    tokens = work.chunks[len(record.rows) - 1][1]
    await worker.run(lambda: engine.session.reserve(tokens))
    at = names.index(LOSSLESS)
    try:
        for number, (chunk, row) in enumerate(zip(work.chunks, record.rows, strict=False)):
            cells = zip(work.groups_at(number), row[at], strict=True)
            await asyncio.gather(
                *[_put_back(store, engine, pool, work, chunk, work.groups[group], cell) for group, cell in cells]
            )
    except CorruptData as error:
        _log.warning("context %s is read from its start again: %s", work.context[:12], error)
        return 0
    return tokens


async def _put_back(
    store: Objects,
    engine: LlamaCpp,
    pool: Executor,
    work: Work,
    chunk: tuple[int, int],
    group: Group,
    cell: SizedId,
) -> None:
    shape, tokens, layers = parts.shape(work.model.layers, group), Span(*chunk), Span(*group.layers)
    assert isinstance(shape, KVShape)
    header = segment.SegmentHeader(work.context, LOSSLESS, tokens, layers, shape)
    data = await store.keep(_ref(cell))
    if data is None:
        raise CorruptData("digest", f"segment {cell.id[:12]} was whole just now, and is not any more")
    payload = segment.unpack(data, header)

    def decode() -> None:
        engine.session.inject(codec(LOSSLESS).decode(payload, tokens, layers, shape))

    await asyncio.get_running_loop().run_in_executor(pool, decode)


async def _manifest(store: Objects, work: Work, ref: SizedId) -> Manifest | None:
    """The manifest that a record leads to, if it is there, and whole, and of what is made.

    Raises:
        CorruptData: it is of something else.
    """
    data = await store.keep(ObjectRef("manifests", ref.id, ref.size_bytes))
    if data is None:
        return None
    manifest = manifests.loads(data)
    if drafts.work(manifest) != work:
        raise CorruptData("digest", "a record leads to the manifest of something else")
    return manifest


async def _whole(store: Objects, rows: Sequence[Row]) -> list[Row]:
    """The first rows of which every segment is there, and whole."""
    found: list[Row] = []
    for row in rows:
        if not await _all_kept(store, [_ref(cell) for cells in row for cell in cells]):
            return found
        found.append(row)
    return found


async def _all_kept(store: Objects, refs: Sequence[ObjectRef]) -> bool:
    for start in range(0, len(refs), _AT_ONCE):
        some = refs[start : start + _AT_ONCE]
        if any(data is None for data in await asyncio.gather(*map(store.keep, some))):
            return False
    return True


def _profiles(manifest: Manifest) -> list[ObjectRef]:
    refs = [manifests.profile_ref(rung) for rung in manifest.rungs]
    return list({ref.id: ref for ref in refs if ref is not None}.values())


def _ref(cell: SizedId) -> ObjectRef:
    return ObjectRef("segments", cell.id, cell.size_bytes)
