"""A catalogue by pages: as a cloud cuts it, and as a reader puts it together again.

A page is a catalogue of some entries, sorted by name, that says after which name the next page begins. The last one
tells what was removed. Who knows an earlier version is told what has changed since. It must not know what is in
entries, which may be tens of thousands, but for the fingerprint of their models where somebody asks for some.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from preread.errors import CorruptData
from preread.values import Fingerprint
from preread.wire import canonical
from preread.wire.catalogue import FORMAT, MAX_ENTRIES, MOST_REMOVED, VERSION, valid_name
from preread.wire.digest import object_id
from preread.wire.fields import MAX_CATALOGUE_BYTES
from preread.wire.selection import EVERYTHING, Selection
from preread.wire.told import MAX_CHANGES_BYTES, Told

PATH: Final = "/v1/catalogue"
PAGE_ENTRIES: Final = 1000
"""Readers ask for pages of so many entries: about 750 kB."""

MAX_PAGES: Final = 2 * MAX_ENTRIES // PAGE_ENTRIES
"""No honest catalogue comes in more pages of that size."""

MAX_ENTRIES_BYTES: Final = MAX_CATALOGUE_BYTES - 530 * (MOST_REMOVED + 1)
"""What the entries of a catalogue may take, so that its other names, of 128 characters, have room beside them."""


MOST_VERSIONS: Final = 1024
MOST_CHANGES: Final = 4096
"""A cloud remembers so many former versions, and so many changes of names between them all."""


def room_for(entry: bytes, others: Iterable[bytes]) -> bool:
    """Whether a catalogue of these entries, in canonical JSON, keeps within its bounds."""
    sizes = [len(written) + 1 for written in (entry, *others)]
    return len(sizes) <= MAX_ENTRIES and sum(sizes) <= MAX_ENTRIES_BYTES


class Listing:
    """A catalogue as a cloud serves it.

    Args:
        written: the entries' canonical JSON by name.
        removed: names that were removed.
        before: the listing that this one replaces, if it does: what has changed since is then known, and since others
            before that.
    """

    def __init__(
        self, written: Mapping[str, bytes], removed: tuple[str, ...] = (), before: "Listing | None" = None
    ) -> None:
        self._written, self._removed = written, removed
        self._names = sorted(written)
        self.version: Final = object_id(_document([written[name] for name in self._names], removed=removed))
        """A digest of the whole: it changes whenever any page does."""
        self._former: tuple[tuple[str, Mapping[str, bytes | None]], ...] = ()
        """Earlier versions, and what those names had in them that were changed in the next one."""
        if before is not None:
            step = (before.version, _changed(before._written, written))
            self._former = _bounded((*before._former, step) if before.version != self.version else before._former)

    def page(self, after: str = "", limit: int = MAX_ENTRIES, selection: Selection = EVERYTHING) -> bytes:
        """A catalogue of the first `limit` entries whose names come after `after`: fewer where 16 MiB hold no more."""
        entries, left_bytes, last = list[bytes](), MAX_ENTRIES_BYTES, after
        for name in self._selected(after, selection):
            left_bytes -= len(self._written[name]) + 1
            if len(entries) == limit or (left_bytes < 0 and entries):
                return _document(entries, next=last)
            entries.append(self._written[name])
            last = name
        removed = self._removed if selection.everything else tuple(filter(selection.names, self._removed))
        return _document(entries, removed=removed)

    def since(self, version: str, selection: Selection = EVERYTHING) -> bytes | None:
        """What is other than in an earlier version: entries, and names that are not, or not selected, any more.

        None where that version is not known, or too much has changed: the pages are to be asked for.
        """
        versions = [former for former, _ in self._former]
        if version == self.version:
            return _document([], since=version)
        if version not in versions:
            return None
        names = dict[str, list[bytes | None]]()
        for _, changed in self._former[versions.index(version) :]:
            for name, was in changed.items():
                names.setdefault(name, []).append(was)
        entries, removed = list[bytes](), list[str]()
        for name, earlier in names.items():
            now = self._written.get(name)
            if now is not None and _takes(selection, name, now):
                entries.append(now)
            elif any(was is not None and _takes(selection, name, was) for was in earlier):
                removed.append(name)
        if len(removed) > MOST_REMOVED or len(entries) > MAX_ENTRIES:
            return None
        document = _document(entries, removed=tuple(removed), since=version)
        return document if len(document) <= MAX_CHANGES_BYTES else None

    def news(self, version: str, selection: Selection = EVERYTHING) -> Told:
        """The same, as it is told to whoever listens."""
        changes = self.since(version, selection)
        if changes is None:
            return Told("")
        return Told(self.version, b"" if changes == _document([], since=version) else changes)

    def _selected(self, after: str, selection: Selection) -> Iterator[str]:
        names = self._names[bisect_right(self._names, after) :]
        if selection.everything:
            return iter(names)
        return (name for name in names if _takes(selection, name, self._written[name]))


def _takes(selection: Selection, name: str, written: bytes) -> bool:
    if not selection.names(name):
        return False
    if not selection.fingerprints:
        return True
    return selection.takes(name, msgspec.json.decode(written, type=_Of).fingerprint)


def _changed(before: Mapping[str, bytes], now: Mapping[str, bytes]) -> Mapping[str, bytes | None]:
    """The names that are other than before, with what they were."""
    changed: dict[str, bytes | None] = {name: was for name, was in before.items() if now.get(name) != was}
    return changed | {name: None for name in now.keys() - before.keys()}


def _bounded(
    steps: tuple[tuple[str, Mapping[str, bytes | None]], ...],
) -> tuple[tuple[str, Mapping[str, bytes | None]], ...]:
    """The last steps, as many as are remembered."""
    left, kept = MOST_CHANGES, 0
    for _, changed in reversed(steps[-MOST_VERSIONS:]):
        left -= len(changed)
        if left < 0:
            break
        kept += 1
    return steps[len(steps) - kept :]


class Pages:
    """A catalogue as a reader gets it, page after page. What is in the entries, `catalogue.loads` checks.

    Args:
        selection: what is asked for; a cloud of before selections gives everything.
        since: the version that is known: only what has changed may come, in one page.
    """

    def __init__(self, selection: Selection = EVERYTHING, since: str = "") -> None:
        self._query, self._since = selection.query(), since
        self._pages: list[bytes] = []
        self._entries: list[msgspec.Raw] = []
        self._removed: tuple[str, ...] = ()
        self._after: str | None = ""

    @property
    def target(self) -> str | None:
        """What to ask for next; None: all is here."""
        if self._after is None:
            return None
        target = f"{PATH}?limit={PAGE_ENTRIES}" + (f"&{self._query}" if self._query else "")
        if self._after:
            return f"{target}&after={quote(self._after, safe='')}"
        return f"{target}&since={self._since}" if self._since else target

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
        if read.since is not None and (len(self._pages) > 1 or read.since != self._since):
            raise CorruptData("schema", "catalogue tells changes since another version than the one that is known")
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
    since: str | None = None


class _Of(msgspec.Struct):
    fingerprint: Fingerprint


class _Named(msgspec.Struct):
    name: str


def _document(entries: list[bytes], *, next: str = "", removed: tuple[str, ...] = (), since: str = "") -> bytes:
    """What `canonical.dumps` writes for a catalogue of these entries, which need not be read for it."""
    rest = {"format": FORMAT, "version": VERSION} | ({"next": next} if next else {})
    rest |= ({"removed": removed} if removed else {}) | ({"since": since} if since else {})
    return b'{"contexts":[' + b",".join(entries) + b"]," + msgspec.json.encode(rest, order="sorted")[1:]
