"""Range headers: every text gives a span within the object, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.store.ranges import none_match, parse_range, range_applies
from preread.values import Span

SIZES = st.integers(0, 2**40)


@given(st.text() | st.from_regex(r"bytes=[0-9]*-[0-9]*(,[0-9]*-[0-9]*)?"), SIZES)
def test_any_header_gives_a_span_within_the_object_or_none(header: str, size_bytes: int) -> None:
    span = parse_range(header, size_bytes)
    assert span is None or 0 <= span.start <= span.stop <= size_bytes


@given(SIZES.flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size), st.integers(0, size))))
def test_first_and_last_byte(case: tuple[int, int, int]) -> None:
    size_bytes, first, last = case
    span = parse_range(f"bytes={first}-{last}", size_bytes)
    if last < first:
        assert span is None
    elif first >= size_bytes:
        assert span is not None and len(span) == 0
    else:
        assert span == Span(first, min(last + 1, size_bytes))


@given(st.integers(1, 2**40), st.integers(0, 2**41))
def test_suffix_and_open_end(size_bytes: int, count: int) -> None:
    data = range(size_bytes)
    suffix = parse_range(f"bytes=-{count}", size_bytes)
    assert suffix is not None and data[suffix.start : suffix.stop] == data[max(0, size_bytes - count) :]
    tail = parse_range(f"bytes={count}-", size_bytes)
    assert tail is not None and data[tail.start : tail.stop] == data[count:]


@pytest.mark.parametrize("header", [None, "", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=٣-٤", "bytes 1-2"])
def test_what_is_no_single_range_asks_for_everything(header: str | None) -> None:
    assert parse_range(header, 10) is None


def test_huge_numbers_are_not_computed_with() -> None:
    assert parse_range("bytes=" + "9" * 100_000 + "-", 10) is None


@pytest.mark.parametrize(
    ("header", "sends"),
    [(None, True), ('"a"', False), ('W/"a"', False), ('"b", "a"', False), ("*", False), ('"b"', True), ("a", True)],
)
def test_if_none_match(header: str | None, sends: bool) -> None:
    assert none_match(header, '"a"') is sends


@pytest.mark.parametrize(
    ("header", "applies"), [(None, True), ('"a"', True), ('W/"a"', False), ("Wed, 21 Oct 2015 07:28:00 GMT", False)]
)
def test_if_range(header: str | None, applies: bool) -> None:
    assert range_applies(header, '"a"') is applies
