"""What windows look at, against the mask that llama.cpp computes attention with."""

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.legality import (
    PASSED_CELLS,
    STATE,
    Window,
    begins_anew,
    first_seen,
    goes_on,
    is_in_order,
    is_seen,
    spare_cells,
)
from preread.values import Span

windows = st.none() | st.integers(2, 12)
BEYOND = 30


def seen(position: int, by: int, window: int | None) -> bool:
    """`is_masked_swa`, turned round: the mask of a token for a row."""
    return position <= by and (window is None or by - position < window)


def looked_at(tokens: int, window: int | None) -> set[int]:
    """The rows of a context that anything behind it sees."""
    return {p for p in range(tokens) for by in range(tokens, tokens + BEYOND) if seen(p, by, window)}


@given(st.integers(0, 25), windows)
def test_what_is_seen_behind_a_context_is_what_the_mask_lets_through(tokens: int, window: int | None) -> None:
    assert looked_at(tokens, window) == set(range(first_seen(tokens, window), tokens))


@given(st.integers(1, 25), st.integers(0, 24), st.integers(1, 25), st.lists(windows, min_size=1, max_size=4))
def test_a_chunk_is_needed_where_any_of_its_rows_is_seen(
    tokens: int, start: int, size: int, of: list[int | None]
) -> None:
    chunk = Span(min(start, tokens - 1), min(start + size, tokens))
    if len(chunk) > 0:
        needed = any(looked_at(tokens, window) & set(range(chunk.start, chunk.stop)) for window in of)
        assert is_seen(tokens, chunk, of) == needed


@given(st.integers(1, 25), st.integers(1, 25), st.lists(windows, max_size=4))
def test_one_goes_on_where_all_that_is_looked_at_is_kept(at: int, tokens: int, of: list[int | None]) -> None:
    at = min(at, tokens)
    kept = [looked_at(tokens, window) for window in of]
    assert goes_on(at, tokens, of) == all(looked_at(at, one) <= rows for one, rows in zip(of, kept, strict=True))
    assert goes_on(tokens, tokens, of)


@given(st.integers(1, 25), st.lists(windows, max_size=4))
def test_chunks_are_computed_in_any_order_only_where_one_can_go_on_from_every_place(
    tokens: int, of: list[int | None]
) -> None:
    if not is_in_order(tokens, of):
        assert all(goes_on(at, tokens, of) for at in range(1, tokens + 1))
    assert is_in_order(tokens, of) == any(looked_at(tokens, window) != set(range(tokens)) for window in of)


def test_first_layers_begin_where_no_span_is_torn_apart() -> None:
    assert [begins_anew(start, (None, 300)) for start in (0, 128, 512, 640, 1024)] == [True, False, True, False, True]
    assert begins_anew(128, (None, STATE)), "whatever is computed of it lies elsewhere"


def test_stretches_of_first_layers_need_room_for_one_and_in_order_for_all() -> None:
    def spare(tokens: int, *windows: Window) -> int:
        return spare_cells(tokens, 512, windows) - PASSED_CELLS

    assert spare(1000, None, None) == 512 and spare(300, None, 301) == 300
    assert spare(2000, None, 300) == 2000 and spare(1000, None, 300) == 1000
    assert spare(1000, None, STATE) == 1000, "all that was computed stays, until the end has come"
