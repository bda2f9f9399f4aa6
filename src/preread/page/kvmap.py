"""The KV map: where each piece of a context's KV came from, as layers × chunks of tokens, and what that says in words.

Pure. A cell is one letter, so that a map is small, can be kept, and can be read without colours.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from preread.plan import beliefs
from preread.plan.events import Cell

Pair = tuple[int, int]
"""Half-open: [start, stop)."""

AWAY: Final = "·"
"""A cell that is not in place."""

MOST_COLUMNS: Final = 48
"""A map of more chunks is drawn with several in one column."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Somewhere that KV comes from: its letter, its name for style sheets, its name for people, and what was so."""

    letter: str
    key: str
    name: str
    told: str
    streamed: bool = False


CLOUD: Final = Origin("C", "cloud", "cloud", "came from the cloud", True)
NEIGHBOUR: Final = Origin("N", "neighbour", "neighbour", "came from a neighbouring edge", True)
DISK: Final = Origin("D", "disk", "this edge's disk", "came from this edge's disk", True)
MEMORY: Final = Origin("M", "memory", "this edge's memory", "came back from this edge's memory")
RESIDENT: Final = Origin("R", "resident", "resident: in the engine's cache", "were in the engine's cache already")
HERE: Final = Origin("H", "here", "computed here", "were computed here")
ORIGINS: Final[Mapping[str, Origin]] = {
    origin.letter: origin for origin in (CLOUD, NEIGHBOUR, DISK, MEMORY, RESIDENT, HERE)
}
_SOURCES: Final[Mapping[str | None, Origin]] = {None: HERE, beliefs.CLOUD: CLOUD, beliefs.DISK: DISK}
"""By the name of a load's source; all others are neighbours."""


@dataclass(frozen=True, slots=True)
class KvMap:
    """Where the cells of one context came from.

    Attributes:
        chunks, layers: what the columns and the rows are: tokens, and layers.
        cells: a letter of `ORIGINS`, or `AWAY`, for each [row][column].
        rung: in which quality cells were streamed; None: none was.
        better: rung that cells are being replaced by since, if they are; `replaced`: those that have been.
    """

    chunks: tuple[Pair, ...]
    layers: tuple[Pair, ...]
    cells: tuple[str, ...]
    rung: str | None = None
    better: str | None = None
    replaced: frozenset[Cell] = frozenset()

    @property
    def tokens(self) -> int:
        """Of the context."""
        return self.chunks[-1][1]

    @property
    def layer_count(self) -> int:
        """Of the model."""
        return self.layers[-1][1]

    @property
    def complete(self) -> bool:
        """Whether every cell is in place."""
        return not any(AWAY in row for row in self.cells)

    def shares(self) -> dict[str, float]:
        """Of each letter that there is, `AWAY` included, the share of the KV, 0 to 1; the largest first."""
        weights = Counter[str]()
        for (first, last), row in zip(self.layers, self.cells, strict=True):
            for (start, stop), letter in zip(self.chunks, row, strict=True):
                weights[letter] += (last - first) * (stop - start)
        total = self.tokens * self.layer_count
        return {letter: weight / total for letter, weight in weights.most_common()}


def one_origin(origin: Origin | None, chunks: Iterable[Pair], layers: Iterable[Pair]) -> KvMap:
    """The map of a context of which all came from one place; None: nothing of it is here yet."""
    columns, rows = tuple(chunks), tuple(layers)
    return KvMap(columns, rows, (len(columns) * (AWAY if origin is None else origin.letter),) * len(rows))


def loaded(origins: Mapping[Cell, str | None], chunks: Iterable[Pair], layers: Iterable[Pair], rung: str) -> KvMap:
    """The map of a context that was loaded at a rung.

    Args:
        origins: of the cells that are in place: the name of a source; None: they were computed here.
        chunks, layers: of the context's manifest.
    """
    columns, rows = tuple(chunks), tuple(layers)
    letters = {cell: _SOURCES.get(name, NEIGHBOUR).letter for cell, name in origins.items()}
    cells = tuple("".join(letters.get((c, g), AWAY) for c in range(len(columns))) for g in range(len(rows)))
    return KvMap(columns, rows, cells, rung)


def bettered(of: KvMap, rung: str, cells: Iterable[Cell]) -> KvMap:
    """The same after these cells were replaced by those of a better rung."""
    return replace(of, better=rung, replaced=frozenset(cells))


def coarse(of: KvMap, most_columns: int = MOST_COLUMNS) -> KvMap:
    """The same with at most so many columns: neighbouring ones become one, of the letter that most of it has."""
    step = -(-len(of.chunks) // most_columns)
    if step == 1:
        return of
    starts = range(0, len(of.chunks), step)
    chunks = tuple((of.chunks[c][0], of.chunks[min(c + step, len(of.chunks)) - 1][1]) for c in starts)
    cells = tuple("".join(Counter(row[c : c + step]).most_common(1)[0][0] for c in starts) for row in of.cells)
    replaced = frozenset((chunk // step, group) for chunk, group in of.replaced)
    return replace(of, chunks=chunks, cells=cells, replaced=replaced)


def told(of: KvMap) -> str:
    """What the map says, in one sentence that needs no picture."""
    shares, layers = of.shares(), of.layer_count
    whole = f"{of.tokens:,} tokens × {layers} layers"
    here = [(ORIGINS[letter], share) for letter, share in shares.items() if letter != AWAY]
    if not here:
        return f"Nothing of {whole} is here yet."
    if len(here) == 1 and of.complete:
        said = f"All {whole} {_came(here[0][0], of)}"
    else:
        amount = _tokens if _by_column(of) else _percent
        (first, share), *others = here
        said = f"{amount(share, of)} of {whole} {_came(first, of)}"
        said += "".join(f"; {amount(share, of)} {_came(origin, of)}" for origin, share in others)
    if AWAY in shares:
        said += "; the rest is on its way"
    if of.better is not None and of.replaced:
        share = len(of.replaced) / (len(of.chunks) * len(of.layers))
        said += f"; {share:.0%} of it is held at {of.better} since"
    return said + "."


def _came(origin: Origin, of: KvMap) -> str:
    return f"{origin.told} at {of.rung}" if origin.streamed and of.rung is not None else origin.told


def _by_column(of: KvMap) -> bool:
    """Whether each chunk came from one place in all its layers: then tokens can be counted."""
    return all(len(set(column)) == 1 for column in zip(*of.cells, strict=True))


def _tokens(share: float, of: KvMap) -> str:
    return f"{round(share * of.tokens):,}"


def _percent(share: float, of: KvMap) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
