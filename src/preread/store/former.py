"""The names of a store as releases before the log of names kept them: one file for each, and one of removals.

    names/<digest of the name>.json   removed.json

A name's file is a catalogue of that one entry. They are what the log begins with; afterwards nobody reads them.
"""

import asyncio
import logging
from typing import Final

from preread.errors import CorruptData
from preread.store.blobs import Blobs, Found
from preread.wire import catalogue
from preread.wire.log import Base, Dated

FOLDERS: Final = ("names.old", "names")
"""Where they are once the log has begun in a folder, and before."""

REMOVED: Final = "removed.json"
_AT_ONCE: Final = 64
"""Files are read so many at a time: a bucket takes milliseconds for each."""
_log = logging.getLogger(__name__)


async def read(blobs: Blobs) -> Base:
    """The names. A file that cannot be understood is left out.

    Raises:
        RemoteError: the store cannot be read.
    """
    found = [one for folder in FOLDERS for one in await blobs.all_in(folder) if one.key.endswith(".json")]
    contexts = dict[str, Dated]()
    for start in range(0, len(found), _AT_ONCE):
        some = await asyncio.gather(*[_dated(blobs, one) for one in found[start : start + _AT_ONCE]])
        contexts |= {one.entry.name: one for one in some if one is not None}
    removed = tuple(name for name in await _removed(blobs) if name not in contexts)
    return Base(tuple(contexts[name] for name in sorted(contexts)), removed)


async def _dated(blobs: Blobs, found: Found) -> Dated | None:
    data = await blobs.read(found.key)
    if data is None:
        return None
    try:
        (entry,) = catalogue.loads(data).contexts
    except (CorruptData, ValueError) as error:
        _log.warning("store %s: %s is left out of the catalogue: %s", blobs.where, found.key, error)
        return None
    return Dated(entry, max(0, int(found.at.timestamp())))


async def _removed(blobs: Blobs) -> tuple[str, ...]:
    data = await blobs.read(REMOVED)
    if data is None:
        return ()
    try:
        return catalogue.loads(data).removed
    except CorruptData as error:
        _log.warning("store %s: which names were removed is forgotten: %s", blobs.where, error)
        return ()
