"""How contexts are cut: pieces that an edge may compute instead of loading them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from preread.cloud.chunks import CHUNK_TOKENS, MOST_CHUNKS, SHORT_TOKENS, SMALLEST_CHUNK_TOKENS, chunked
from preread.codec.groups import evenly_grouped
from preread.engine.llamacpp import BATCH_TOKENS
from preread.engine.session import batches
from preread.engine.tiles import TOGETHER
from preread.values import Layer, RowShape, Span
from preread.wire.parts import groups_of


@given(st.integers(1, 20_000))
def test_chunks_cover_a_context_and_are_computed_as_prefill_computes_it(tokens: int) -> None:
    chunks = chunked(tokens)
    assert chunks[0].start == 0 and chunks[-1].stop == tokens
    for left, right in pairwise(chunks):
        assert left.stop == right.start
    assert all(chunk.start % TOGETHER == 0 for chunk in chunks)
    # a shorter one only where prefill has a batch of its own for it
    assert all(len(chunk) >= SMALLEST_CHUNK_TOKENS for chunk in chunks[:-1])
    assert len(chunks[-1]) >= SMALLEST_CHUNK_TOKENS or chunks[-1].start % BATCH_TOKENS == 0


@given(st.integers(1, 20_000))
def test_long_contexts_do_not_fall_into_many_small_pieces(tokens: int) -> None:
    chunks = chunked(tokens)
    length = len(chunks[0])
    assert len(chunks) <= MOST_CHUNKS + 1 or length >= BATCH_TOKENS
    assert tokens > CHUNK_TOKENS * MOST_CHUNKS or length <= CHUNK_TOKENS + SMALLEST_CHUNK_TOKENS


@given(st.integers(CHUNK_TOKENS + 1, SHORT_TOKENS))
def test_short_contexts_end_in_a_piece_that_a_slow_link_can_bring(tokens: int) -> None:
    assert 0 <= len(chunked(tokens)[-1]) - SMALLEST_CHUNK_TOKENS < TOGETHER


@given(st.integers(1, 40_000))
def test_whoever_goes_on_at_a_chunk_computes_in_batches_that_give_the_same_bits(tokens: int) -> None:
    for chunk in chunked(tokens):
        found = list(batches(Span(chunk.start, tokens), BATCH_TOKENS))
        assert found[0].start == chunk.start and found[-1].stop == tokens
        assert all(before.stop == after.start for before, after in pairwise(found))
        assert all(len(batch) >= SMALLEST_CHUNK_TOKENS or batch.start % BATCH_TOKENS == 0 for batch in found)
        assert {batch.stop for batch in found} <= {batch.stop for batch in batches(Span(0, tokens), BATCH_TOKENS)}


@given(st.lists(st.sampled_from([None, 32]), min_size=1, max_size=20), st.integers(1, 5))
def test_layers_of_one_group_have_windows_that_are_alike(windows: list[int | None], most: int) -> None:
    rows = RowShape(1, 8, 8)
    groups = [Span(*group.layers) for group in groups_of([Layer(rows, window) for window in windows], most)]
    assert [layer for group in groups for layer in range(group.start, group.stop)] == [*range(len(windows))]
    assert all(len(group) <= most and len(set(windows[group.start : group.stop])) == 1 for group in groups)
    for left, right in pairwise(groups):
        assert len(left) == most or windows[left.start] != windows[right.start], "one that could be longer"


@given(st.lists(st.sampled_from([None, 32]), min_size=1, max_size=20), st.integers(1, 5))
def test_layers_whose_windows_are_alike_are_shared_out_evenly(windows: list[int | None], most: int) -> None:
    groups = evenly_grouped(windows, most)
    assert [layer for group in groups for layer in range(group.start, group.stop)] == [*range(len(windows))]
    assert all(len(group) <= most and len(set(windows[group.start : group.stop])) == 1 for group in groups)
    for left, right in pairwise(groups):
        if windows[left.start] == windows[right.start]:
            assert abs(len(left) - len(right)) <= 1 and len(left) + len(right) > most
