"""What contexts are called that are made of files and pages."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.documents import names
from preread.wire.names import why_unfit

PLAIN = st.text(string.ascii_letters + string.digits + " _-", min_size=1, max_size=12).map(lambda text: f"a{text}z")


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["manual.pdf"], "manual"),
        (["guide", "first steps.md"], "guide.first steps"),
        (["app", "main.py"], "app.main.py"),
        (["list.c"], "list.c"),
        (["README"], "README"),
        (["v1.2", "notes.MD"], "v1.2.notes"),
        (["cafe\u0301.txt"], "caf\u00e9"),
    ],
)
def test_names_are_paths_without_what_a_document_is_written_in(parts: list[str], name: str) -> None:
    assert names.of_path(parts) == name
    assert names.of_path(parts, "docs:") == "docs:" + name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x.example/a/b.html", "b"),
        ("https://x.example/a/index.html", "a"),
        ("https://x.example/a/", "a"),
        ("https://x.example/", "x.example"),
        ("https://x.example", "x.example"),
        ("https://x.example/first%20steps?q=1#here", "first steps"),
        ("https://x.example/%2Fetc%2Fpasswd", "passwd"),
    ],
)
def test_pages_are_called_by_the_last_part_that_says_something(url: str, name: str) -> None:
    assert names.of_url(url) == name


@given(st.lists(PLAIN, min_size=1, max_size=4), st.sampled_from([*names.WRITTEN_IN]))
def test_plain_paths_make_names_that_can_be_published(parts: list[str], suffix: str) -> None:
    name = names.of_path([*parts[:-1], parts[-1] + suffix])
    assert why_unfit(name) is None and name == ".".join(parts)


@given(st.text(st.sampled_from("ab/%2F.?#:@\u00e9 \t"), max_size=40))
def test_no_address_is_too_odd_to_be_called_something(rest: str) -> None:
    assert "/" not in names.of_url("https://x.example/" + rest)


@given(st.integers(1, 9999), st.lists(st.text(max_size=8), max_size=5))
def test_parts_of_a_document_are_known_by_their_names(number: int, others: list[str]) -> None:
    part = names.of_part("book", number)
    among = [part, "book", "book.", "book.01", "book.x", "bookish.1", *others]
    assert part in names.parts_of("book", among)
    assert not set(names.parts_of("book", among)) & {"book", "book.", "book.01", "book.x", "bookish.1"}
