"""The contract of every store, as a suite to inherit: `class TestMine(StoreContract)` with an `address` fixture."""

import asyncio

import pytest

from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher
from preread.values import ObjectId
from preread.wire import manifest
from preread.wire.catalogue import Entry
from preread.wire.digest import object_id

NAMES = ["a", "A", "a b", "%2F", "..x", "names", "ü" * 128, "😀" * 128, '"\\?*<>|:&#']
"""Names that some file system or URL would trip over."""


def publish(store: Objects, name: str, text: str) -> Entry:
    """A small context of real format, with random KV."""
    return asyncio.run(RandomPublisher(store)(name, text, None, "text", lambda *_: None)).entry


def objects_of(store: Objects, entry: Entry) -> set[tuple[str, ObjectId]]:
    """All objects that a present entry leads to."""
    data = asyncio.run(store.read("manifests", entry.manifest.id))
    assert data is not None
    cells = {cell.id for rung in manifest.loads(data).rungs for row in rung.segments for cell in row}
    return {("manifests", entry.manifest.id), ("tokens", entry.tokens.id)} | {("segments", id) for id in cells}


def present(store: Objects, keys: set[tuple[str, ObjectId]]) -> set[tuple[str, ObjectId]]:
    """Those of `keys` that the store has."""

    async def ask() -> set[tuple[str, ObjectId]]:
        return {key for key in keys if await store.size(*key) is not None}  # type: ignore[arg-type]

    return asyncio.run(ask())


class StoreContract:
    """What callers rely on."""

    @pytest.fixture
    def address(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def store(self, address: str) -> Objects:
        return open_store(address)

    def test_object_comes_back_under_its_digest(self, store: Objects) -> None:
        data = bytes(range(256)) * 500
        ref = asyncio.run(store.put("segments", data))
        assert (ref.kind, ref.id, ref.size_bytes) == ("segments", object_id(data), len(data))
        assert asyncio.run(store.read("segments", ref.id)) == data
        assert asyncio.run(store.size("segments", ref.id)) == len(data)

    def test_putting_again_is_fine(self, store: Objects) -> None:
        first, second = (asyncio.run(store.put("tokens", b"same")) for _ in range(2))
        assert first == second
        assert asyncio.run(store.read("tokens", first.id)) == b"same"

    def test_kinds_are_apart_and_absence_is_none(self, store: Objects) -> None:
        ref = asyncio.run(store.put("tokens", b"only tokens"))
        assert asyncio.run(store.read("segments", ref.id)) is None
        assert asyncio.run(store.read("segments", ref.id, 0, 4)) is None
        assert asyncio.run(store.read("segments", ref.id, 1)) is None
        assert asyncio.run(store.size("manifests", ref.id)) is None

    @pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 10), (9, 10), (0, 10), (None, 4), (6, None)])
    def test_ranges(self, store: Objects, start: int | None, stop: int | None) -> None:
        data = b"0123456789"
        ref = asyncio.run(store.put("segments", data))
        assert asyncio.run(store.read("segments", ref.id, start, stop)) == data[start:stop]

    def test_objects_outlive_the_process(self, store: Objects, address: str) -> None:
        entry = publish(store, "manual", "a shared context")
        again = open_store(address)
        assert asyncio.run(again.names()) == [entry]
        assert present(again, objects_of(store, entry)) == objects_of(store, entry)

    def test_names_of_every_kind(self, store: Objects) -> None:
        entries = [publish(store, name, f"text of {index}") for index, name in enumerate(NAMES)]
        assert asyncio.run(store.names()) == sorted(entries, key=lambda entry: entry.name)
        for entry in entries:
            assert asyncio.run(store.remove_name(entry.name))
        assert asyncio.run(store.names()) == []

    def test_removing_an_unknown_name(self, store: Objects) -> None:
        assert not asyncio.run(store.remove_name("nobody"))

    def test_removal_keeps_what_another_name_needs(self, store: Objects) -> None:
        one, two = publish(store, "one", "12345678 and a"), publish(store, "two", "12345678 and b")
        twin = publish(store, "twin", "12345678 and a")
        ours, theirs = objects_of(store, one), objects_of(store, two)
        asyncio.run(store.remove_name("one"))
        assert present(store, ours | theirs) == ours | theirs
        asyncio.run(store.remove_name("twin"))
        assert present(store, ours | theirs) == theirs
        asyncio.run(store.remove_name("two"))
        assert present(store, ours | theirs) == set()
        assert one.manifest == twin.manifest

    def test_another_document_under_a_name_replaces_the_first(self, store: Objects) -> None:
        former = objects_of(store, publish(store, "manual", "first edition"))
        latter = publish(store, "manual", "second edition")
        assert asyncio.run(store.names()) == [latter]
        assert present(store, former) == set()
        assert present(store, objects_of(store, latter)) == objects_of(store, latter)

    def test_the_same_document_again_changes_nothing(self, store: Objects) -> None:
        entry = publish(store, "manual", "the text")
        assert publish(store, "manual", "the text") == entry
        assert present(store, objects_of(store, entry)) == objects_of(store, entry)
