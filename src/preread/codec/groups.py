"""Which layers are coded together."""

from collections.abc import Sequence

from preread.values import Span


def layer_groups(layers: int, group_layers: int) -> tuple[Span, ...]:
    """Layers in groups of `group_layers`; the last may have fewer."""
    return tuple(Span(first, min(first + group_layers, layers)) for first in range(0, layers, group_layers))


def grouped(windows: Sequence[int | None], group_layers: int) -> tuple[Span, ...]:
    """Groups of at most so many layers whose windows are alike, so that what windows leave behind is whole segments.

    windows: of each layer.
    """
    groups: list[Span] = []
    for layer, window in enumerate(windows):
        last = groups[-1] if groups else None
        if last is not None and len(last) < group_layers and windows[last.start] == window:
            groups[-1] = Span(last.start, layer + 1)
        else:
            groups.append(Span(layer, layer + 1))
    return tuple(groups)


def evenly_grouped(windows: Sequence[int | None], group_layers: int) -> tuple[Span, ...]:
    """The same, but that neighbours whose windows are alike are shared out evenly: five in groups of three and two."""
    groups: list[Span] = []
    for run in grouped(windows, len(windows)):
        count = -(-len(run) // group_layers)
        stops = [run.start + -(-len(run) * (number + 1) // count) for number in range(count)]
        groups += [Span(start, stop) for start, stop in zip([run.start, *stops], stops, strict=False)]
    return tuple(groups)


def sized(counts: Sequence[int]) -> tuple[Span, ...]:
    """Groups of so many layers each, in order."""
    groups, first = [], 0
    for count in counts:
        groups.append(Span(first, first + count))
        first += count
    return tuple(groups)
