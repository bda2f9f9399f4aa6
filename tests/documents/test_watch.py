"""What changed between two looks."""

from hypothesis import given
from hypothesis import strategies as st

from preread.documents.watch import Stamp, due, pause_s

STAMP = st.tuples(st.integers(0, 2), st.integers(0, 2), st.just(1))
LOOK = st.dictionaries(st.sampled_from("abc"), STAMP)


def test_a_file_is_read_once_it_is_no_longer_written() -> None:
    one, two = (1, 1, 1), (2, 9, 1)
    assert due({"a": one}, None, {}) == ["a"]  # at the start all is as it is
    assert due({"a": one}, {"a": one}, {"a": one}) == []
    assert due({"a": two}, {"a": one}, {"a": one}) == []  # just written
    assert due({"a": two}, {"a": two}, {"a": one}) == ["a"]
    assert due({"a": one, "b": one}, {"a": one}, {"a": one}) == []
    assert due({}, {"a": one}, {"a": one}) == []


@given(LOOK, LOOK)
def test_what_stays_as_it_is_is_read_exactly_once(now: dict[str, Stamp], done: dict[str, Stamp]) -> None:
    read = due(now, now, done)
    assert set(read) == {place for place in now if done.get(place) != now[place]}
    assert due(now, now, done | {place: now[place] for place in read}) == []


@given(st.floats(0, 100), st.integers(0, 10**6))
def test_pauses_grow_with_failures_and_end(looked_s: float, failures: int) -> None:
    assert 1.0 <= pause_s(looked_s, failures) <= max(60.0, 10 * looked_s)
    assert pause_s(looked_s, failures) <= pause_s(looked_s, failures + 1)
