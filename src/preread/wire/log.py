"""The log of a store's names: who published and removed what, one change after the other. Canonical JSON.

Changes have numbers without gaps. Each holds all that has changed since a base, which is the whole of the names at some
earlier number and an object of its own. So whoever reads the last change and its base knows all, however many changes
came before, and whoever lacks some in between need not read them.

Pure: what the names are after a change, and what to write for the next one. It must not know where it is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Annotated, Final, Literal

import msgspec

from preread.errors import CorruptData
from preread.wire import canonical
from preread.wire.catalogue import MAX_ENTRIES, MOST_REMOVED, Entry, valid_name
from preread.wire.fields import ObjectIdField, Record

FORMAT: Final = "preread-change"
BASE_FORMAT: Final = "preread-names"
VERSION: Final = 1
MAX_LOG_BYTES: Final = 2**25
"""A catalogue of the most and largest entries, when each was published, and a little more."""

FEWEST_CHANGES: Final = 16

Number = Annotated[int, msgspec.Meta(ge=1, le=10**12 - 1)]
Names = Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_REMOVED)]


class Dated(Record, frozen=True):
    """A published context, and when it was published, in seconds since 1970 (UTC)."""

    entry: Entry
    at: Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class BaseRef(Record, frozen=True, rename={"size_bytes": "bytes"}):
    """The names to begin with: an object's name and exact size, and of which change they are the names."""

    id: ObjectIdField
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_LOG_BYTES)]
    number: Annotated[int, msgspec.Meta(ge=0, le=10**12 - 1)]


Contexts = Annotated[tuple[Dated, ...], msgspec.Meta(max_length=MAX_ENTRIES)]


class Base(Record, frozen=True):
    """All names at one number: those that are published, sorted, and those that were removed, the last one last."""

    contexts: Contexts
    removed: Names = ()
    format: Literal["preread-names"] = msgspec.field(default_factory=lambda: BASE_FORMAT)
    version: Literal[1] = msgspec.field(default_factory=lambda: VERSION)


class Change(Record, frozen=True):
    """What has changed since a base.

    Attributes:
        number: of this change, from 1 on.
        writer: who made it; a random number, new for each that opens the store.
        sweeps: odd while `writer` deletes objects: nobody but him makes the next change. It grows by one when that
            begins, and when it ends.
        base: the names to begin with; None: there were none.
        contexts: published since, sorted by name.
        removed: removed since, and not published again; the last one last.
    """

    number: Number
    writer: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    sweeps: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    base: BaseRef | None
    contexts: Contexts = ()
    removed: Names = ()
    format: Literal["preread-change"] = msgspec.field(default_factory=lambda: FORMAT)
    version: Literal[1] = msgspec.field(default_factory=lambda: VERSION)


NO_BASE: Final = Base(())


@dataclass(frozen=True, slots=True)
class State:
    """What is known after a change.

    Attributes:
        last: the change; None before the first.
        based: the names that `last` begins with.
        contexts, removed: the names, as `Base` has them.
    """

    last: Change | None = None
    based: Base = NO_BASE
    contexts: Mapping[str, Dated] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """Of the change; 0 before the first."""
        return 0 if self.last is None else self.last.number

    @property
    def sweeps(self) -> int:
        """How often deleting objects has begun or ended; odd while somebody does."""
        return 0 if self.last is None else self.last.sweeps

    @property
    def sweeping(self) -> bool:
        return self.sweeps % 2 == 1

    def whole(self) -> Base:
        """All names, as they are written."""
        return Base(tuple(self.contexts[name] for name in sorted(self.contexts)), self.removed)


@dataclass(frozen=True, slots=True)
class Edit:
    """What one change does: it publishes, it removes, it begins or ends deleting objects; or several of these."""

    publish: Dated | None = None
    remove: str | None = None
    sweeping: bool = False


def started(base: Base) -> State:
    """The state before the first change of a store that has these names already."""
    return State(None, base, {one.entry.name: one for one in base.contexts}, base.removed)


def after(base: Base, change: Change) -> State:
    """The names after `change`, whose base this is."""
    contexts = {one.entry.name: one for one in base.contexts}
    for name in change.removed:
        contexts.pop(name, None)
    contexts |= {one.entry.name: one for one in change.contexts}
    removed = _one_by_one((*base.removed, *change.removed))
    return State(change, base, contexts, tuple(name for name in removed if name not in contexts)[-MOST_REMOVED:])


def is_due(state: State) -> bool:
    """Whether the next change is to have a base of its own, as the first one does where there are names before it.

    With c changes since a base of n names, each change costs c/2 entries and n/c of the base, which is least for
    c = √2n.
    """
    if state.last is None:
        return state.whole() != NO_BASE
    changed = len(state.last.contexts) + len(state.last.removed)
    return changed > max(FEWEST_CHANGES, isqrt(2 * len(state.based.contexts)))


def following(state: State, writer: str, edit: Edit, base: BaseRef | None) -> Change:
    """The next change.

    Args:
        state: what it follows.
        writer: who makes it.
        edit: what it does.
        base: as stored: that of the change before, or all of `state`, whose changes are then none.
    """
    contexts, removed = dict[str, Dated](), tuple[str, ...]()
    if state.last is not None and base == state.last.base:
        contexts, removed = {one.entry.name: one for one in state.last.contexts}, state.last.removed
    if edit.remove is not None:
        contexts.pop(edit.remove, None)
        removed = (*(name for name in removed if name != edit.remove), edit.remove)[-MOST_REMOVED:]
    if edit.publish is not None:
        name = edit.publish.entry.name
        contexts[name], removed = edit.publish, tuple(one for one in removed if one != name)
    sweeps = state.sweeps + (edit.sweeping != state.sweeping)
    listed = tuple(contexts[name] for name in sorted(contexts))
    return Change(state.number + 1, writer, sweeps, base, listed, removed)


def dumps(document: Base | Change) -> bytes:
    """Write what `loads` or `loads_base` reads."""
    return canonical.dumps(document)


def loads(data: bytes, number: int) -> Change:
    """Read the change of this number.

    Raises:
        CorruptData: "format", "version", "json", "length"; "schema", also where it is another one; "name": a name
            twice, or a text that cannot be one.
    """
    canonical.check_stamp(data, FORMAT, VERSION, MAX_LOG_BYTES)
    change = canonical.loads(data, Change, MAX_LOG_BYTES)
    if change.number != number:
        raise CorruptData("schema", f"change {number} says that it is {change.number}")
    _check(change)
    return change


def loads_base(data: bytes) -> Base:
    """Read the names to begin with.

    Raises:
        CorruptData: as `loads` does.
    """
    canonical.check_stamp(data, BASE_FORMAT, VERSION, MAX_LOG_BYTES)
    base = canonical.loads(data, Base, MAX_LOG_BYTES)
    _check(base)
    return base


def _check(document: Base | Change) -> None:
    names = [*(one.entry.name for one in document.contexts), *document.removed]
    if len(set(names)) != len(names) or not all(map(valid_name, names)):
        raise CorruptData("name", "the log of names holds a name twice, or a text that cannot be a name")


def _one_by_one(names: tuple[str, ...]) -> list[str]:
    """Each once, where it came last."""
    return list(reversed(dict.fromkeys(reversed(names))))
