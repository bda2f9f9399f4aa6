"""Of which parts a context is made: rows of some layers over a chunk of tokens, states of some layers behind a chunk.

A group is a run of layers that keep the same kind of thing in the same shape; of its layers those are meant that keep
it. Parts are cells of the grid of groups and chunks. This module knows what makes a list of them sound; how they are
written, and what is stored of them, it must not know.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Annotated, Literal

import msgspec

from preread.errors import CorruptData
from preread.values import KVShape, Layer, RowShape, Span, StateShape
from preread.wire.fields import Record

Pair = tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=1)]]
"""A span on the wire: [start, stop], half-open."""

_Index = Annotated[int, msgspec.Meta(ge=0)]
Part = tuple[_Index, _Index]
"""[group, chunk]: indices into the lists of a manifest."""


class Group(Record, frozen=True):
    """Rows, or states, of those layers of a span that have any: rows of every token of a chunk, states behind it."""

    kind: Literal["rows", "states"]
    layers: Pair


def pairs(spans: Iterable[Span]) -> tuple[Pair, ...]:
    """Spans as a manifest writes them."""
    return tuple((span.start, span.stop) for span in spans)


def rows_of(spans: Iterable[Span]) -> tuple[Group, ...]:
    """Groups of rows."""
    return tuple(Group("rows", pair) for pair in pairs(spans))


def groups_of(layers: Sequence[Layer], size: int) -> tuple[Group, ...]:
    """All that layers keep, in groups of at most so many of these that keep the same and have the same window."""
    found = list[Group]()
    for every in (Group("rows", (0, len(layers))), Group("states", (0, len(layers)))):
        those = numbers(layers, every)
        kept = {number: (_kept(layers[number], every), layers[number].window_tokens) for number in those}
        for _, run in groupby(kept, key=lambda number, kept=kept: kept[number]):  # type: ignore[misc]
            these = [*run]
            cut = [these[at : at + size] for at in range(0, len(these), size)]
            found += [Group(every.kind, (some[0], some[-1] + 1)) for some in cut]
    return tuple(sorted(found, key=lambda group: (group.layers[0], group.kind)))


def all_parts(groups: Sequence[Group], chunks: int) -> tuple[Part, ...]:
    """Rows of every chunk, and states behind the last."""
    return tuple(
        (group, chunk)
        for group, of in enumerate(groups)
        for chunk in (range(chunks) if of.kind == "rows" else (chunks - 1,))
    )


def numbers(layers: Sequence[Layer], group: Group) -> tuple[int, ...]:
    """The layers that a group's parts have something of."""
    inside = range(group.layers[0], min(group.layers[1], len(layers)))
    return tuple(layer for layer in inside if _kept(layers[layer], group) is not None)


def shape(layers: Sequence[Layer], group: Group) -> KVShape | StateShape:
    """Shape of a group's rows, or of the state of each of its layers."""
    those = numbers(layers, group)
    kept = _kept(layers[those[0]], group)
    if isinstance(kept, RowShape):
        return KVShape(len(those), kept.kv_heads, kept.k_dim, kept.v_dim)
    assert kept is not None
    return kept


def raw_bytes(of: KVShape | StateShape, layers: int, tokens: int) -> int:
    """What a part takes uncoded: rows of so many tokens, or the states of so many layers."""
    if isinstance(of, KVShape):
        return 2 * tokens * of.values_per_token
    return 4 * layers * (of.r_values + of.s_values)


def open_layers(layers: Sequence[Layer], groups: Sequence[Group], in_place: int) -> int:
    """How many layers can be computed behind a context of which the parts of the first groups are in place."""
    return min((numbers(layers, group)[0] for group in groups[in_place:]), default=len(layers))


def check_layers(layers: Sequence[Layer]) -> None:
    """Refuse layers that no model has.

    Raises:
        CorruptData: "shape".
    """
    if not 1 <= len(layers) <= 1024 or not any(layer.rows or layer.state for layer in layers):
        raise CorruptData("shape", f"manifest has {len(layers)} layers, or none of them keeps anything")
    for layer in layers:
        rows, state = layer.rows, layer.state
        if rows and not (1 <= rows.kv_heads <= 1024 and 1 <= rows.k_dim <= 4096 and 0 <= rows.v_dim <= 4096):
            raise CorruptData("shape", f"manifest has impossible rows: {rows}")
        if layer.window_tokens is not None and (rows is None or not 1 <= layer.window_tokens <= 2**31 - 1):
            raise CorruptData("shape", f"manifest has an impossible window of {layer.window_tokens} tokens")
        if state and not _is_possible(state):
            raise CorruptData("shape", f"manifest has an impossible state: {state}")


def _is_possible(state: StateShape) -> bool:
    both = (state.s_rows == 0) == (state.s_row_values == 0)
    sizes = (state.r_values, state.s_rows, state.s_row_values)
    return both and min(sizes) >= 0 and max(sizes) <= 2**26 and 1 <= state.r_values + state.s_values <= 2**26


def check_cover(what: str, spans: Sequence[Pair], count: int) -> None:
    """Refuse spans that do not lie one behind the other from 0 on.

    Raises:
        CorruptData: "shape".
    """
    joined = all(left[1] == right[0] for left, right in pairwise(spans))
    full = all(start < stop for start, stop in spans)
    if not (spans and joined and full and spans[0][0] == 0 and spans[-1][1] == count):
        raise CorruptData("shape", f"manifest's {what} do not cover 0 to {count} one after the other")


def check_groups(layers: Sequence[Layer], groups: Sequence[Group]) -> None:
    """Refuse groups that are not all that sound layers keep, once, in order.

    Raises:
        CorruptData: "shape".
    """
    keys = [(group.layers[0], group.kind) for group in groups]
    if any(left >= right for left, right in pairwise(keys)):
        raise CorruptData("shape", "manifest's groups are not in order")
    found: dict[str, list[int]] = {"rows": [], "states": []}
    behind = {"rows": 0, "states": 0}
    for group in groups:
        if group.layers[0] < behind[group.kind]:  # thousands that overlap would take long
            raise CorruptData("shape", f"manifest's group {group.layers} begins within another one of {group.kind}")
        behind[group.kind] = group.layers[1]
        those = numbers(layers, group)
        if not those or group.layers != (those[0], those[-1] + 1):
            raise CorruptData("shape", f"manifest's group {group.layers} begins or ends beside its {group.kind}")
        if len({_kept(layers[layer], group) for layer in those}) != 1:
            raise CorruptData("shape", f"layers {group.layers} of a group differ in their {group.kind}")
        found[group.kind] += those
    rows = [layer for layer, kept in enumerate(layers) if kept.rows]
    states = [layer for layer, kept in enumerate(layers) if kept.state]
    if found != {"rows": rows, "states": states}:
        raise CorruptData("shape", "manifest's groups do not cover the layers that keep something")


def check_parts(
    layers: Sequence[Layer], groups: Sequence[Group], chunks: Sequence[Pair], parts: Sequence[Part]
) -> None:
    """Refuse parts of sound groups and chunks that are not in order, or lack what has to be there behind the context.

    Raises:
        CorruptData: "shape".
    """
    if not parts or any(left >= right for left, right in pairwise(parts)):
        raise CorruptData("shape", "manifest's parts are none, or not in order")
    if any(group >= len(groups) or chunk >= len(chunks) for group, chunk in parts):
        raise CorruptData("shape", "manifest has a part of a group or chunk that it lacks")
    if missing := lacking(layers, groups, chunks, parts):
        raise CorruptData("shape", f"manifest lacks {missing} parts that an answer would need")


def lacking(layers: Sequence[Layer], groups: Sequence[Group], chunks: Sequence[Pair], parts: Sequence[Part]) -> int:
    """How many parts are missing of those that have to be in place behind the whole context.

    They are counted, not listed: a small manifest may state more groups and chunks than memory has room for cells.
    """
    firsts = [first_needed(layers, group, chunks) for group in groups]
    there = sum(chunk >= firsts[group] for group, chunk in parts)
    return len(groups) * len(chunks) - sum(firsts) - there


def first_needed(layers: Sequence[Layer], group: Group, chunks: Sequence[Pair]) -> int:
    """The first chunk of which a group's part has to be there: rows that somebody looks at, or states at the end."""
    if group.kind == "states":
        return len(chunks) - 1
    windows = [layers[layer].window_tokens for layer in numbers(layers, group)]
    seen = min(0 if window is None else max(0, chunks[-1][1] - window + 1) for window in windows)
    return bisect_right(chunks, seen, key=lambda chunk: chunk[1])


def _kept(layer: Layer, group: Group) -> RowShape | StateShape | None:
    return layer.rows if group.kind == "rows" else layer.state
