"""A catalogue by pages: as a cloud cuts it, and as a reader puts it together again.

A page is a catalogue of some entries, sorted by name, that says after which name the next page begins. The last one
tells what was removed. It must not know what is in entries, which may be tens of thousands.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from preread.errors import CorruptData
from preread.wire import canonical
from preread.wire.catalogue import FORMAT, MAX_ENTRIES, MOST_REMOVED, VERSION, valid_name
from preread.wire.digest import object_id
from preread.wire.fields import MAX_CATALOGUE_BYTES

PATH: Final = "/v1/catalogue"
PAGE_ENTRIES: Final = 1000
"""Readers ask for pages of so many entries: about 750 kB."""

MAX_PAGES: Final = 2 * MAX_ENTRIES // PAGE_ENTRIES
"""No honest catalogue comes in more pages of that size."""

MAX_ENTRIES_BYTES: Final = MAX_CATALOGUE_BYTES - 530 * (MOST_REMOVED + 1)
"""What the entries of a catalogue may take, so that its other names, of 128 characters, have room beside them."""


def room_for(entry: bytes, others: Iterable[bytes]) -> bool:
    """Whether a catalogue of these entries, in canonical JSON, keeps within its bounds."""
    sizes = [len(written) + 1 for written in (entry, *others)]
    return len(sizes) <= MAX_ENTRIES and sum(sizes) <= MAX_ENTRIES_BYTES


class Listing:
    """A catalogue as a cloud serves it.

    Args:
        written: the entries' canonical JSON by name.
        removed: names that were removed.
    """

    def __init__(self, written: Mapping[str, bytes], removed: tuple[str, ...] = ()) -> None:
        self._written, self._removed = written, removed
        self._names = sorted(written)
        self.version: Final = object_id(_document([written[name] for name in self._names], removed=removed))
        """A digest of the whole: it changes whenever any page does."""

    def page(self, after: str = "", limit: int = MAX_ENTRIES) -> bytes:
        """A catalogue of the first `limit` entries whose names come after `after`: fewer where 16 MiB hold no more."""
        start = bisect_right(self._names, after)
        entries, left_bytes = list[bytes](), MAX_ENTRIES_BYTES
        for name in self._names[start : start + limit]:
            left_bytes -= len(self._written[name]) + 1
            if left_bytes < 0 and entries:
                break
            entries.append(self._written[name])
        stop = start + len(entries)
        if stop < len(self._names):
            return _document(entries, next=self._names[stop - 1])
        return _document(entries, removed=self._removed)


class Pages:
    """A catalogue as a reader gets it, page after page. What is in the entries, `catalogue.loads` checks."""

    def __init__(self) -> None:
        self._pages: list[bytes] = []
        self._entries: list[msgspec.Raw] = []
        self._removed: tuple[str, ...] = ()
        self._after: str | None = ""

    @property
    def target(self) -> str | None:
        """What to ask for next; None: all is here."""
        if self._after is None:
            return None
        return f"{PATH}?limit={PAGE_ENTRIES}" + (f"&after={quote(self._after, safe='')}" if self._after else "")

    def take(self, page: bytes) -> None:
        """Take the answer to `target`.

        Raises:
            CorruptData: "json", "schema"; "length": more than a catalogue may be; "name": pages that lead nowhere; of
                several pages also "format" and "version".
        """
        read = canonical.decode(page, _Page, MAX_CATALOGUE_BYTES)
        self._pages.append(page)
        self._entries += read.contexts
        size_bytes = sum(map(len, self._pages))
        if len(self._pages) > MAX_PAGES or len(self._entries) > MAX_ENTRIES or size_bytes > 2 * MAX_CATALOGUE_BYTES:
            raise CorruptData("length", "catalogue has more pages, entries or bytes than one may have")
        if read.next is not None or len(self._pages) > 1:
            canonical.check_stamp(page, FORMAT, VERSION, MAX_CATALOGUE_BYTES)
        if read.next is not None and not (read.contexts and valid_name(read.next) and read.next > (self._after or "")):
            raise CorruptData("name", "catalogue's pages do not follow each other")
        self._after, self._removed = read.next, read.removed

    def whole(self) -> bytes:
        """The catalogue of all entries; as it came, if it came in one. What was removed meanwhile is left out.

        Raises:
            CorruptData: "schema".
        """
        if len(self._pages) == 1:
            return self._pages[0]
        names = [canonical.decode(bytes(entry), _Named, MAX_CATALOGUE_BYTES).name for entry in self._entries]
        gone = set(self._removed)
        entries = [bytes(entry) for entry, name in zip(self._entries, names, strict=True) if name not in gone]
        return _document(entries, removed=self._removed)


class _Page(msgspec.Struct):
    """As much of a page as is needed to put it beside others."""

    contexts: list[msgspec.Raw] = []
    removed: tuple[str, ...] = ()
    next: str | None = None


class _Named(msgspec.Struct):
    name: str


def _document(entries: list[bytes], *, next: str = "", removed: tuple[str, ...] = ()) -> bytes:
    """What `canonical.dumps` writes for a catalogue of these entries, which need not be read for it."""
    rest = {"format": FORMAT, "version": VERSION} | ({"next": next} if next else {})
    rest |= {"removed": removed} if removed else {}
    return b'{"contexts":[' + b",".join(entries) + b"]," + msgspec.json.encode(rest, order="sorted")[1:]
