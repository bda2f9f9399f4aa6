"""What a cloud tells of its catalogue as it changes: server-sent events (WHATWG HTML, 9.2). Pure.

    id: VERSION\\ndata: CATALOGUE\\n\\n     what has changed since the version before, a catalogue with `since`
    id: VERSION\\ndata:\\n\\n               nothing that was asked for has changed since
    event: pages\\ndata:\\n\\n              so much has changed, or the version is unknown: ask for the pages
    :\\n\\n                                nothing has changed; said so that the connection is known to live

Each costs a few bytes: an idle edge's link may be paid for by the byte.
"""

from dataclasses import dataclass
from typing import Final

from preread.errors import CorruptData
from preread.wire.digest import is_id

MEDIA: Final = "text/event-stream"
SILENCE: Final = b":\n\n"
UNKNOWN: Final = b"event: pages\ndata:\n\n"
MAX_CHANGES_BYTES: Final = 2**18
"""What has changed is told in so many bytes at most; where it is more, the pages are asked for."""

_MOST_LINE_BYTES: Final = MAX_CHANGES_BYTES + 64


@dataclass(frozen=True, slots=True)
class Told:
    """What one event says: the catalogue has this version now, and what has changed; "": nothing that was asked for.

    `version` is empty where the pages are to be asked for.
    """

    version: str
    changes: bytes = b""


def write(told: Told) -> bytes:
    """An event. `told.changes` has no line breaks, as canonical JSON has none."""
    if not told.version:
        return UNKNOWN
    return b"id: %b\ndata:%b\n\n" % (told.version.encode(), told.changes and b" " + told.changes)


class Events:
    """The events in a stream, as its bytes come. Lines end with LF; what is unknown is passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._event, self._version, self._data = b"", b"", b""

    def feed(self, data: bytes) -> list[Told]:
        """The events that are complete with these bytes.

        Raises:
            CorruptData: "length": a line is longer than any may be; "schema": what stands for a version is none.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MOST_LINE_BYTES or any(len(line) > _MOST_LINE_BYTES for line in lines):
            raise CorruptData("length", "an event is longer than what a cloud may tell of a change")
        return [told for line in lines if (told := self._line(line)) is not None]

    def _line(self, line: bytes) -> Told | None:
        if not line:
            event, version, data = self._event, self._version, self._data
            self._event = self._version = self._data = b""
            return _told(event, version, data)
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._event = value
        elif name == b"id":
            self._version = value
        elif name == b"data":
            self._data = value
        return None


def _told(event: bytes, version: bytes, data: bytes) -> Told | None:
    if event == b"pages":
        return Told("")
    if event or not version:
        return None
    named = version.decode("latin-1")
    if not is_id(named):
        raise CorruptData("schema", "an event's id is no version of a catalogue")
    return Told(named, data)
