"""What is published, as far as an edge can tell, and how much of that it keeps. Pure: catalogues in, entries out.

A name stays known until it is replaced or removed by that name: a cloud that comes back empty, or is another one, makes
no edge forget. How much is kept follows from this edge's model, from the names that were asked for, and from budgets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from preread.fit.family import Gate
from preread.values import Fingerprint, Geometry
from preread.wire.catalogue import MAX_ENTRIES, Catalogue, Entry
from preread.wire.fields import MAX_CATALOGUE_BYTES

MOST_TOKENS: Final = 2**22
"""Of all contexts together: 16 MiB of memory."""

MOST_MANIFEST_BYTES: Final = 2**24
"""Of all manifests together, as they are sent; read and resolved, they take about four times as much."""

MOST_ASKED: Final = 64
"""So many names that were asked for are remembered."""

_MOST_WAIT: Final = 6


@dataclass(frozen=True, slots=True)
class OwnModel:
    """What an edge has to know of its own model to judge what is published.

    `gates` say which other quantisations' KV it may read, and what that costs.
    """

    fingerprint: Fingerprint
    vocabulary: Fingerprint
    geometry: Geometry
    window_tokens: int
    gates: tuple[Gate, ...] = ()

    @property
    def fingerprints(self) -> tuple[Fingerprint, ...]:
        """Of the models whose KV may be read, the own one first."""
        return (self.fingerprint, *(Fingerprint(gate.source) for gate in self.gates))

    def streams(self, fingerprint: Fingerprint) -> bool:
        """Whether KV of this model may be read: it is the own one, or there is a gate for it."""
        return fingerprint in self.fingerprints

    def gate(self, fingerprint: Fingerprint) -> Gate | None:
        """What is known of reading another model's KV; None: nothing, or it is the own one."""
        return next((gate for gate in self.gates if gate.source == fingerprint), None)


def merged(known: Iterable[Entry], told: Catalogue) -> tuple[Entry, ...]:
    """What is published after a cloud has told its catalogue, sorted by name.

    What it does not speak of stays, as long as there is room: a cloud may not make its edges hoard names.
    """
    listed = {entry.name for entry in told.contexts} | set(told.removed)
    left_bytes = MAX_CATALOGUE_BYTES - len(msgspec.json.encode(told))
    kept = list(told.contexts)
    for entry in known:
        if entry.name in listed:
            continue
        left_bytes -= len(msgspec.json.encode(entry)) + 1
        if left_bytes < 0 or len(kept) >= MAX_ENTRIES:
            break
        kept.append(entry)
    return tuple(sorted(kept, key=lambda entry: entry.name))


def wanted(entries: Sequence[Entry], own: OwnModel, asked: Sequence[str]) -> list[Entry]:
    """The entries whose tokens and manifests are kept here, in the order in which to fetch them.

    Those that were asked for by name, and then all others whose KV this edge's model reads: as many as the budgets
    allow, and none that does not fit the window.

    Args:
        entries: what is published.
        own: this edge's model.
        asked: names that were asked for, the last one last.
    """
    by_name = {entry.name: entry for entry in entries}
    first = [by_name[name] for name in reversed(asked) if name in by_name]
    others = [entry for entry in entries if own.streams(entry.fingerprint)]
    chosen: dict[str, Entry] = {}
    left_tokens, left_bytes = MOST_TOKENS, MOST_MANIFEST_BYTES
    for entry in (*first, *others):
        if entry.name in chosen or not fits(entry, own):
            continue
        manifest_bytes = entry.manifest.size_bytes if own.streams(entry.fingerprint) else 0
        if entry.token_count <= left_tokens and manifest_bytes <= left_bytes:
            chosen[entry.name] = entry
            left_tokens, left_bytes = left_tokens - entry.token_count, left_bytes - manifest_bytes
    return list(chosen.values())


def fits(entry: Entry, own: OwnModel) -> bool:
    """Whether this edge's model can compute a context: it has its token ids, and a window for them and a question."""
    return entry.vocabulary == own.vocabulary and entry.token_count < own.window_tokens


def asked_again(asked: Sequence[str], name: str) -> tuple[str, ...]:
    """The names that were asked for after this one was too; who was asked for longest ago is forgotten."""
    return (*(one for one in asked if one != name), name)[-MOST_ASKED:]


def due(failures: int, failed_at: int, now: int) -> bool:
    """Whether to ask again for an object that could not be had, all counted in syncs: after 1, 2, 4 … 64 of them."""
    return now - failed_at >= 1 << min(failures - 1, _MOST_WAIT)
