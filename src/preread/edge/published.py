"""What is published, as far as an edge can tell, and how much of that it keeps. Pure: catalogues in, entries out.

A name stays known until it is replaced or removed by that name: a cloud that comes back empty, or is another one, makes
no edge forget. How much is kept follows from this edge's model, from the names that were asked for, and from budgets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from preread.fit.family import Gate
from preread.plan.legality import Window
from preread.values import Fingerprint, Layer
from preread.wire.catalogue import MAX_ENTRIES, Catalogue, Entry
from preread.wire.fields import MAX_CATALOGUE_BYTES
from preread.wire.selection import Selection, of_names

MOST_TOKENS: Final = 2**22
"""Of all contexts together: 16 MiB of memory."""

MOST_MANIFEST_BYTES: Final = 2**24
"""Of all manifests together, as they are sent; read and resolved, they take about four times as much."""

FEW_BYTES: Final = 2**20
"""What nobody named is fetched ahead of need where it is no more than this, token ids and manifests together."""

MOST_ASKED: Final = 64
"""So many names that were asked for are remembered."""

_MOST_WAIT: Final = 6
_MOST_OTHERS: Final = 512


@dataclass(frozen=True, slots=True)
class OwnModel:
    """What an edge has to know of its own model to judge what is published.

    `gates` say which other quantisations' KV it may read, and what that costs; models in `same` have its very weights.
    """

    fingerprint: Fingerprint
    vocabulary: Fingerprint
    layers: tuple[Layer, ...]
    window_tokens: int
    gates: tuple[Gate, ...] = ()
    same: tuple[Fingerprint, ...] = ()

    @property
    def windows(self) -> tuple[Window, ...]:
        """Of each layer."""
        return tuple(layer.window_tokens for layer in self.layers)

    @property
    def fingerprints(self) -> tuple[Fingerprint, ...]:
        """Of the models whose KV may be read, the own one first."""
        return (self.fingerprint, *self.same, *(Fingerprint(gate.source) for gate in self.gates))

    def streams(self, fingerprint: Fingerprint) -> bool:
        """Whether KV of this model may be read: it is the own one, or there is a gate for it."""
        return fingerprint in self.fingerprints

    def gate(self, fingerprint: Fingerprint) -> Gate | None:
        """What is known of reading another model's KV; None: nothing, or it is the own one."""
        return next((gate for gate in self.gates if gate.source == fingerprint), None)


@dataclass(frozen=True, slots=True)
class Interest:
    """Which contexts an edge is run for, as its operator says it.

    Attributes:
        prefixes: only names that begin so are listed; without any, all.
        pins: names whose contexts are to be here, whatever they begin with.
        everything: all that are listed are to be here.
    """

    prefixes: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    everything: bool = False


ANYTHING: Final = Interest()


def selection(entries: Mapping[str, Entry], own: OwnModel, interest: Interest, asked: Sequence[str]) -> Selection:
    """What to ask a cloud for: contexts that this edge's model reads, and those that were pinned or asked for by name.

    Names that are among the first anyway are not said.
    """
    listed = Selection(own.fingerprints, interest.prefixes)

    def among(name: str) -> bool:
        entry = entries.get(name)
        return listed.names(name) if entry is None else listed.takes(name, entry.fingerprint)

    others = [name for name in (*reversed(asked), *interest.pins) if not among(name)]
    return Selection(listed.fingerprints, listed.prefixes, of_names(others[:_MOST_OTHERS]))


def merged(known: Iterable[Entry], told: Catalogue, wanted: Selection) -> tuple[Entry, ...]:
    """What is published, of what is wanted, after a cloud has told its catalogue, sorted by name.

    What it does not speak of stays, as long as there is room: a cloud may not make its edges hoard names.
    """
    listed = {entry.name for entry in told.contexts} | set(told.removed)
    left_bytes = MAX_CATALOGUE_BYTES - len(msgspec.json.encode(told))
    kept = [entry for entry in told.contexts if wanted.takes(entry.name, entry.fingerprint)]
    for entry in known:
        if entry.name in listed or not wanted.takes(entry.name, entry.fingerprint):
            continue
        left_bytes -= len(msgspec.json.encode(entry)) + 1
        if left_bytes < 0 or len(kept) >= MAX_ENTRIES:
            break
        kept.append(entry)
    return tuple(sorted(kept, key=lambda entry: entry.name))


def wanted(entries: Sequence[Entry], own: OwnModel, asked: Sequence[str], interest: Interest = ANYTHING) -> list[Entry]:
    """The entries whose tokens and manifests are kept here, in the order in which to fetch them.

    Those that were asked for by name or pinned, and then the others whose KV this edge's model reads, if those are few
    or all are of interest: as many as the budgets allow, and none that does not fit the window. Else one of the others
    for each model: its manifest says which profile contexts of that model need.

    Args:
        entries: what is published.
        own: this edge's model.
        asked: names that were asked for, the last one last.
        interest: what the edge is run for.
    """
    by_name = {entry.name: entry for entry in entries}
    first = [by_name[name] for name in (*reversed(asked), *interest.pins) if name in by_name]
    others = [entry for entry in entries if own.streams(entry.fingerprint)]
    if not interest.everything and sum(map(_size_bytes, others)) > FEW_BYTES:
        others = list({entry.fingerprint: entry for entry in reversed(others) if fits(entry, own)}.values())
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


def _size_bytes(entry: Entry) -> int:
    return entry.tokens.size_bytes + entry.manifest.size_bytes


def fits(entry: Entry, own: OwnModel) -> bool:
    """Whether this edge's model can compute a context: it has its token ids, and a window for them and a question."""
    return entry.vocabulary == own.vocabulary and entry.token_count < own.window_tokens


def asked_again(asked: Sequence[str], name: str) -> tuple[str, ...]:
    """The names that were asked for after this one was too; who was asked for longest ago is forgotten."""
    return (*(one for one in asked if one != name), name)[-MOST_ASKED:]


def due(failures: int, failed_at: int, now: int) -> bool:
    """Whether to ask again for an object that could not be had, all counted in tries: after 1, 2, 4 … 64 of them."""
    return now - failed_at >= 1 << min(failures - 1, _MOST_WAIT)
