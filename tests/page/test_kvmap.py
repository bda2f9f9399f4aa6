"""The KV map: what it says in words is what its cells say."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.page import kvmap
from preread.page.kvmap import AWAY, CLOUD, DISK, HERE, NEIGHBOUR, ORIGINS, RESIDENT, KvMap


@st.composite
def spans(draw: st.DrawFn, most: int = 70) -> tuple[tuple[int, int], ...]:
    sizes = draw(st.lists(st.integers(1, 200), min_size=1, max_size=most))
    ends = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    return tuple(pairwise(ends))


@st.composite
def maps(draw: st.DrawFn) -> KvMap:
    chunks, layers = draw(spans()), draw(spans(most=6))
    letters = st.text(st.sampled_from([*ORIGINS, AWAY]), min_size=len(chunks), max_size=len(chunks))
    return KvMap(chunks, layers, tuple(draw(letters) for _ in layers), draw(st.sampled_from([None, "b1.2"])))


def test_a_streamed_context_says_from_where_and_at_which_rung() -> None:
    origins = {(c, g): "cloud" for c in range(2) for g in range(2)}
    whole = kvmap.loaded(origins, [(0, 128), (128, 300)], [(0, 2), (2, 4)], "b1.2")
    assert kvmap.told(whole) == "All 300 tokens × 4 layers came from the cloud at b1.2."


def test_tokens_are_counted_where_each_chunk_came_from_one_place() -> None:
    origins = {(0, g): None for g in range(2)} | {(1, g): "near:aa" for g in range(2)}
    mixed = kvmap.loaded(origins, [(0, 100), (100, 300)], [(0, 2), (2, 4)], "q8")
    assert kvmap.told(mixed) == (
        "200 of 300 tokens × 4 layers came from a neighbouring edge at q8; 100 were computed here."
    )


def test_shares_are_told_where_layers_differ_and_what_is_on_its_way() -> None:
    half = kvmap.loaded({(0, 0): "disk"}, [(0, 100)], [(0, 1), (1, 4)], "q8")
    assert kvmap.told(half) == "25 % of 100 tokens × 4 layers came from this edge's disk at q8; the rest is on its way."


def test_a_resident_one_that_is_brought_to_a_better_rung_says_how_far() -> None:
    resident = kvmap.one_origin(RESIDENT, [(0, 10), (10, 20)], [(0, 4)])
    better = kvmap.bettered(resident, "lossless", [(1, 0)])
    assert kvmap.told(better).endswith("were in the engine's cache already; 50% of it is held at lossless since.")


def test_nothing_is_here_yet() -> None:
    assert kvmap.told(kvmap.one_origin(None, [(0, 7)], [(0, 4)])) == "Nothing of 7 tokens × 4 layers is here yet."


@settings(max_examples=40)
@given(maps())
def test_shares_are_all_of_it_and_every_place_is_named(of: KvMap) -> None:
    shares = of.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == set("".join(of.cells)) and of.complete == (AWAY not in shares)
    said = kvmap.told(of)
    assert all(ORIGINS[letter].told in said for letter in shares if letter != AWAY)
    assert ("here yet" in said or "on its way" in said) == (AWAY in shares)


@settings(max_examples=40)
@given(maps(), st.integers(1, 60))
def test_a_coarser_map_covers_the_same(of: KvMap, columns: int) -> None:
    fewer = kvmap.coarse(of, columns)
    assert len(fewer.chunks) <= columns and fewer.layers == of.layers
    assert (fewer.chunks[0][0], fewer.chunks[-1][1]) == (of.chunks[0][0], of.chunks[-1][1])
    assert all(a[1] == b[0] for a, b in pairwise(fewer.chunks))
    for before, after in zip(of.cells, fewer.cells, strict=True):
        assert len(after) == len(fewer.chunks) and set(after) <= set(before)


@settings(max_examples=40)
@given(
    st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 2)), st.sampled_from(["cloud", "disk", "near:7", None]))
)
def test_each_cell_has_the_letter_of_its_source(origins: dict[tuple[int, int], str | None]) -> None:
    of = kvmap.loaded(origins, [(n, n + 1) for n in range(4)], [(n, n + 1) for n in range(3)], "q8")
    letters = {"cloud": CLOUD.letter, "disk": DISK.letter, "near:7": NEIGHBOUR.letter, None: HERE.letter, "": AWAY}
    for group, row in enumerate(of.cells):
        assert list(row) == [letters[origins.get((chunk, group), "")] for chunk in range(4)]


def test_letters_and_names_for_style_sheets_are_each_of_one_origin() -> None:
    assert len({origin.letter for origin in ORIGINS.values()}) == len({o.key for o in ORIGINS.values()}) == 6
    assert AWAY not in ORIGINS
