"""A text cut where its author did."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preread.documents.split import heading, split

TEXT = st.text(st.sampled_from("ab# \n`~1ü"), max_size=300)


@given(TEXT, st.integers(1, 120))
@example("```\n# a\n```\n# b\n" * 9, 20)
def test_parts_are_the_text_none_is_empty_none_too_long(text: str, most: int) -> None:
    parts = split(text, most)
    assert "".join(parts) == text
    assert all(0 < len(part) <= most for part in parts)
    assert all(2 * len(part) >= most - 1 for part in parts[:-1])


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("# One\n" + "a " * 30 + "\n\n## Two\n" + "b " * 8 + "\n\nmore " + "c " * 20, "## Two"),
        ("# One\n" + "a " * 20 + "\n\n## Sub\nxy\n\n# Two\n" + "b " * 30, "# Two"),
        ("one\n" + "a " * 30 + "\n\ntwo " + "b " * 30, "two"),
        ("one " + "a " * 30 + "\ntwo " + "b " * 30, "two"),
        ("a" * 60 + " " + "b" * 60, "b"),
        ("a" * 150, "a" * 50),
    ],
)
def test_a_part_ends_before_the_highest_heading_else_between_paragraphs_lines_words(text: str, begins: str) -> None:
    assert split(text, 100)[1].startswith(begins)


def test_code_has_no_headings() -> None:
    text = "# One\n" + "a " * 30 + "\n\n```\n# not one\n```\n" + "b " * 30
    assert not any(part.startswith("# not") for part in split(text, 90))


def test_what_a_part_begins_with() -> None:
    assert heading("\n## The filter\ntext") == "The filter"
    assert heading("plain\n# later") == "plain"
    assert heading(" \n#\n") == ""
