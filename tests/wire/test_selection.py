"""Which contexts are asked for: as a query, and which names that takes."""

from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import UsageError
from preread.values import Fingerprint
from preread.wire import selection as selections
from preread.wire.catalogue import valid_name
from preread.wire.selection import EVERYTHING, Selection

OWN, OTHER = Fingerprint("a" * 64), Fingerprint("b" * 64)
NAMES = st.text(st.characters(codec="utf-8"), max_size=128).filter(valid_name)
SELECTIONS = st.builds(
    Selection,
    st.lists(st.sampled_from([OWN, OTHER]), max_size=2).map(tuple),
    st.lists(NAMES, max_size=3).map(tuple),
    st.lists(NAMES, max_size=3).map(selections.of_names),
)


def parsed(query: str) -> Selection:
    asked = parse_qs(query)
    return selections.parse(*(asked.get(name, []) for name in ("fingerprint", "prefix", "digest")))


@given(SELECTIONS)
def test_a_selection_crosses_a_query_as_it_is(selection: Selection) -> None:
    assert parsed(selection.query()) == selection
    assert selection.everything == (selection.query() == "")


@given(SELECTIONS, NAMES, st.sampled_from([OWN, OTHER]))
def test_what_is_selected_is_of_the_models_and_begins_so_or_has_the_digest(
    selection: Selection, name: str, fingerprint: Fingerprint
) -> None:
    model = not selection.fingerprints or fingerprint in selection.fingerprints
    begins = not selection.prefixes or any(name.startswith(one) for one in selection.prefixes)
    digest = any(selections.name_digest(name).startswith(one) for one in selection.digests)
    by_digest_alone = bool(selection.digests) and not selection.fingerprints and not selection.prefixes
    assert selection.takes(name, fingerprint) == (digest or (model and begins and not by_digest_alone))
    assert selection.names(name) or not selection.takes(name, fingerprint)


@given(st.lists(NAMES, max_size=5))
def test_names_are_told_by_a_few_digits_of_their_digests(names: list[str]) -> None:
    selection = Selection(digests=selections.of_names(names))
    assert all(selection.takes(name, OTHER) for name in names)
    assert all(len(one) == selections.DIGITS for one in selection.digests)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("fingerprint=abc", "fingerprint"),
        ("prefix=" + "x" * 129, "prefix"),
        ("digest=xyz", "digest"),
        ("digest=ABC", "digest"),
        ("digest=" + "0" * 65, "digest"),
        ("&".join(["prefix=a"] * (selections.MOST + 1)), None),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(query: str, param: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(query)
    assert caught.value.param == param


def test_everything_is_asked_for_by_nothing() -> None:
    assert EVERYTHING.everything and EVERYTHING.takes("any name", OTHER) and parsed("") == EVERYTHING
