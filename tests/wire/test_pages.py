"""A catalogue cut into pages and put together again, and pages that do not belong together."""

from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData
from preread.values import ContextId, Fingerprint, ObjectId
from preread.wire import catalogue as catalogues
from preread.wire import pages
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.digest import object_id
from preread.wire.fields import SizedId
from preread.wire.selection import EVERYTHING, Selection
from preread.wire.told import Told

ENTRY = Entry(
    name="manual",
    context=ContextId("c" * 64),
    form="chat",
    fingerprint=Fingerprint("f" * 64),
    vocabulary=Fingerprint("5" * 64),
    model="tiny",
    token_count=10,
    manifest=SizedId(ObjectId("1" * 64), 1000),
    tokens=SizedId(ObjectId("2" * 64), 50),
)
NAMES = st.sets(st.text(st.characters(codec="utf-8"), max_size=128).filter(catalogues.valid_name), max_size=20)


@given(NAMES, NAMES, st.integers(1, 21))
def test_pages_put_together_are_the_whole_catalogue(names: set[str], gone: set[str], limit: int) -> None:
    entries, removed = [msgspec.structs.replace(ENTRY, name=name) for name in names], tuple(gone - names)
    listing = pages.Listing({entry.name: catalogues.write(entry) for entry in entries}, removed)
    whole = catalogues.dumps(Catalogue(tuple(sorted(entries, key=lambda entry: entry.name)), removed))
    assert listing.page() == whole and listing.version == object_id(whole)
    walk = pages.Pages()
    while (target := walk.target) is not None:
        asked = parse_qs(urlsplit(target).query)
        page = listing.page(asked.get("after", [""])[0], limit)
        read = catalogues.loads(page)
        assert catalogues.dumps(read) == page and len(read.contexts) <= limit
        walk.take(page)
    assert walk.whole() == whole


def test_a_page_is_no_longer_than_a_catalogue_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {name: catalogues.write(msgspec.structs.replace(ENTRY, name=name)) for name in ("a", "b", "c", "d", "e")}
    monkeypatch.setattr(pages, "MAX_ENTRIES_BYTES", 3000)
    walk, listing = pages.Pages(), pages.Listing(written)
    taken = 0
    while walk.target is not None:
        page = listing.page(sorted(written)[taken - 1] if taken else "")
        assert len(page) <= 3200
        taken += len(catalogues.loads(page).contexts)
        walk.take(page)
    assert taken == 5 and b",".join(written.values()) in walk.whole()


def page_of(names: str, next: str | None) -> bytes:
    entries = tuple(msgspec.structs.replace(ENTRY, name=name) for name in names)
    return catalogues.dumps(Catalogue(entries, next=next or ""))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([page_of("ab", "b"), page_of("cd", "b")], "name"),
        ([page_of("ab", "b"), page_of("a", "a")], "name"),
        ([page_of("ab", "b"), page_of("", "z")], "name"),
        ([page_of("ab", "b").replace(b'"next":"b"', b'"next":"a/b"')], "name"),
        ([page_of("ab", "b"), b'{"contexts":[],"format":"preread-catalogue","version":2}'], "version"),
        ([page_of("ab", "b"), b'{"contexts":[],"format":"preread-manifest","version":1}'], "format"),
        ([page_of("ab", "b"), b"{"], "json"),
        ([page_of("ab", "b"), b'{"contexts":1}'], "schema"),
        ([b'{"contexts":[%b],"format":"preread-catalogue","version":1}' % (b"1," * 2**16 + b"1")], "length"),
    ],
)
def test_pages_that_do_not_follow_each_other_are_refused(answers: list[bytes], expected: str) -> None:
    walk = pages.Pages()
    with pytest.raises(CorruptData) as caught:
        for page in answers:
            walk.take(page)
    assert caught.value.reason == expected


def test_pages_end() -> None:
    walk = pages.Pages()
    with pytest.raises(CorruptData, match="more pages"):
        for name in range(pages.MAX_PAGES + 1):
            walk.take(page_of(chr(0x4E00 + name), chr(0x4E00 + name)))


def test_what_is_removed_between_two_pages_is_gone() -> None:
    walk = pages.Pages()
    walk.take(page_of("ab", "b"))
    walk.take(catalogues.dumps(Catalogue(removed=("a",))))
    read = catalogues.loads(walk.whole())
    assert [entry.name for entry in read.contexts] == ["b"] and read.removed == ("a",)


def test_a_reader_of_before_pages_refuses_a_page_and_takes_the_last() -> None:
    assert b"next" not in page_of("ab", None)
    assert catalogues.loads(page_of("ab", "b")).next == "b"


OTHER = Fingerprint("0" * 64)
STATES = st.lists(
    st.dictionaries(st.sampled_from("abcde"), st.tuples(st.sampled_from([ENTRY.fingerprint, OTHER]), st.integers(1, 2)))
)


def listing_of(state: dict[str, tuple[Fingerprint, int]], before: pages.Listing | None) -> pages.Listing:
    entries = [
        msgspec.structs.replace(ENTRY, name=name, fingerprint=fingerprint, token_count=tokens)
        for name, (fingerprint, tokens) in state.items()
    ]
    return pages.Listing({entry.name: catalogues.write(entry) for entry in entries}, (), before)


@given(STATES, st.integers(0, 10), st.sampled_from([EVERYTHING, Selection((OTHER,)), Selection((), ("a", "b"))]))
def test_changes_since_any_version_make_of_it_what_is_listed_now(
    states: list[dict[str, tuple[Fingerprint, int]]], known: int, selection: Selection
) -> None:
    listings, listing = [], listing_of({}, None)
    for state in ({}, *states):
        listing = listing_of(state, listing)
        listings.append(listing)
    former = listings[min(known, len(listings) - 1)]
    changes = listing.since(former.version, selection)
    assert changes is not None
    told = catalogues.loads(changes)
    assert catalogues.dumps(told) == changes and told.since == former.version
    was = {entry.name: entry for entry in catalogues.loads(former.page(selection=selection)).contexts}
    now = catalogues.loads(listing.page(selection=selection)).contexts
    made = {**was, **{entry.name: entry for entry in told.contexts}}
    made = {name: entry for name, entry in made.items() if name not in told.removed}
    assert sorted(made.values(), key=lambda entry: entry.name) == list(now)
    assert not (listing.version == former.version and (told.contexts or told.removed))
    news = listing.news(former.version, selection)
    assert news.version == listing.version and news.changes in (b"", changes)


def test_a_version_that_is_not_known_any_more_has_no_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_VERSIONS", 3)
    listings, listing = [], None
    for tokens in range(1, 7):
        listing = listing_of({"a": (OTHER, tokens)}, listing)
        listings.append(listing)
    assert listing is not None
    assert [listing.since(one.version) is None for one in listings] == [True, True, False, False, False, False]
    assert listing.since("0" * 64) is None and listing.news("0" * 64) == Told("")
    monkeypatch.setattr(pages, "MOST_CHANGES", 2)
    latest = listing_of({"a": (OTHER, 9)}, listing)
    assert [latest.since(one.version) is None for one in listings[3:]] == [True, False, False]
    monkeypatch.setattr(pages, "MAX_CHANGES_BYTES", 100)
    assert latest.since(listing.version) is None


def test_what_is_selected_comes_in_pages() -> None:
    listing = listing_of({name: (OTHER if name in "bd" else ENTRY.fingerprint, 1) for name in "abcde"}, None)
    walk = pages.Pages(Selection((OTHER,)))
    while (target := walk.target) is not None:
        asked = parse_qs(urlsplit(target).query)
        assert asked["fingerprint"] == [OTHER]
        walk.take(listing.page(asked.get("after", [""])[0], 1, Selection((OTHER,))))
    assert [entry.name for entry in catalogues.loads(walk.whole()).contexts] == ["b", "d"]


def test_changes_are_taken_only_since_the_version_that_is_known() -> None:
    changes = catalogues.dumps(Catalogue((ENTRY,), since="1" * 64))
    walk = pages.Pages(since="1" * 64)
    assert walk.target is not None and walk.target.endswith("&since=" + "1" * 64)
    walk.take(changes)
    assert walk.target is None and walk.whole() == changes
    for since in ("", "2" * 64):
        with pytest.raises(CorruptData, match="since another version"):
            pages.Pages(since=since).take(changes)
    with pytest.raises(CorruptData):
        catalogues.loads(changes.replace(b'"since":"1111', b'"since":"x111'))
