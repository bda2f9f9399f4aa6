"""Names as a catalogue is served, made anew when they have changed, of lines that are written once; and who waits.

It knows entries and a catalogue's bounds; it must not know where names are kept, or who changes them.
"""

import asyncio

from preread.errors import Full
from preread.wire import canonical
from preread.wire.catalogue import Entry
from preread.wire.log import State
from preread.wire.pages import Listing, room_for


class Listings:
    """The listing of each state of the names, one after the other."""

    def __init__(self) -> None:
        self._listed = State()
        """The names that `_listing` was made of."""
        self._listing: Listing | None = None
        self._written: dict[str, tuple[Entry, bytes]] = {}
        self._noted: State | None = None
        """The names that whoever waits for a change was woken for."""
        self._change = asyncio.Event()

    def of(self, state: State) -> Listing:
        """Every context of these names. It knows what has changed since listings before it."""
        if self._listing is None or self._listed is not state:
            self._listing, self._listed = Listing(self._lines(state), state.removed, self._listing), state
        return self._listing

    def refuse_unless_room(self, state: State, name: str, size_bytes: int) -> None:
        """See whether an entry of so many bytes could come to these names, instead of the one of its name.

        Raises:
            Full: the catalogue would not fit into its bounds.
        """
        lines = self._lines(state)
        if not room_for(b"x" * size_bytes, [line for known, line in lines.items() if known != name]):
            raise Full(
                f"this cloud has {len(lines)} contexts, which is all that its catalogue holds: remove one with "
                "`preread contexts rm NAME`, or start another cloud on a store of its own"
            )

    def note(self, state: State | None) -> None:
        """Where these names are others than before, whoever waits for that looks.

        Some may have asked for the listing meanwhile, and know: that does not wake those who wait.
        """
        if state is not self._noted:
            self._noted = state
            change, self._change = self._change, asyncio.Event()
            change.set()

    def coming(self) -> asyncio.Event:
        """Set when `note` is told of other names. Ask for it before looking, so that no change is missed."""
        return self._change

    def _lines(self, state: State) -> dict[str, bytes]:
        known = self._written
        self._written = {
            name: known[name]
            if name in known and known[name][0] == one.entry
            else (one.entry, canonical.dumps(one.entry))
            for name, one in state.contexts.items()
        }
        return {name: line for name, (_, line) in self._written.items()}
