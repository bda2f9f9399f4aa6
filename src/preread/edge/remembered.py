"""What an edge remembers of published names over a restart: entries, in which version, and names that were asked for.

It knows what is in these files; where they are is `kept.py`'s to know. Every function waits for the disk.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from preread.edge.kept import Kept
from preread.edge.published import MOST_ASKED
from preread.errors import CorruptData
from preread.wire import catalogue as catalogues
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.digest import is_id, object_id
from preread.wire.fields import MAX_CATALOGUE_BYTES

_CATALOGUE: Final = "catalogue.json"
_ASKED: Final = "asked.json"
_VERSION: Final = "version.json"
_MOST_ASKED_BYTES: Final = 2**17
_MOST_VERSION_BYTES: Final = 2**16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What was found.

    Attributes:
        entries: what was published.
        asked: names that were asked for, the last one last.
        version: of the cloud's catalogue that the entries are of; "": that is not known.
        query: what of it was asked for.
    """

    entries: tuple[Entry, ...] = ()
    asked: tuple[str, ...] = ()
    version: str = ""
    query: str = ""


def read(kept: Kept) -> Remembered:
    """All of it, as far as it is not damaged."""
    found = Remembered()
    try:
        data = kept.read(_CATALOGUE, MAX_CATALOGUE_BYTES)
        if data is None:
            return found
        found = Remembered(catalogues.loads(data).contexts)
        asked, stamp = kept.read(_ASKED, _MOST_ASKED_BYTES), kept.read(_VERSION, _MOST_VERSION_BYTES)
        if asked:
            found = Remembered(found.entries, tuple(msgspec.json.decode(asked, type=list[str]))[-MOST_ASKED:])
        if stamp:
            digest, version, query = msgspec.json.decode(stamp, type=tuple[str, str, str])
            if digest == object_id(data) and is_id(version):
                found = Remembered(found.entries, found.asked, version, query)
    except (CorruptData, OSError, msgspec.DecodeError, ValueError) as error:
        _log.warning("the kept catalogue cannot be used whole and will be fetched again: %s", error)
    return found


def write(kept: Kept, entries: tuple[Entry, ...], version: str, query: str) -> None:
    """Remember entries, and what they are: another process may write the first file alone, and is found out then."""
    written = catalogues.dumps(Catalogue(entries))
    kept.write(_CATALOGUE, written)
    kept.write(_VERSION, msgspec.json.encode((object_id(written), version, query)))


def write_asked(kept: Kept, asked: Sequence[str]) -> None:
    """Remember which names were asked for."""
    kept.write(_ASKED, msgspec.json.encode(asked))
