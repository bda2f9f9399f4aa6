"""Which layers are coded together."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from preread.values import Span


def layer_groups(layers: int, group_layers: int) -> tuple[Span, ...]:
    """Layers in groups of `group_layers`; the last may have fewer."""
    return tuple(Span(first, min(first + group_layers, layers)) for first in range(0, layers, group_layers))


def evenly_grouped(windows: Sequence[int | None], group_layers: int) -> tuple[Span, ...]:
    """Groups of at most so many layers whose windows are alike, so that what windows leave behind is whole segments.

    Neighbours that are alike are shared out evenly: five in groups of three and two. windows: of each layer.
    """
    counts = list[int]()
    for _, run in groupby(windows):
        layers = len(list(run))
        groups = -(-layers // group_layers)
        stops = [-(-layers * number // groups) for number in range(groups + 1)]
        counts += [stop - start for start, stop in pairwise(stops)]
    return sized(counts)


def sized(counts: Sequence[int]) -> tuple[Span, ...]:
    """Groups of so many layers each, in order."""
    groups, first = [], 0
    for count in counts:
        groups.append(Span(first, first + count))
        first += count
    return tuple(groups)
