"""Stores of releases before the log of names: read as they are, and upgraded by the first change."""

import asyncio
from pathlib import Path

import msgspec
import obstore
import pytest
from obstore.store import LocalStore, MemoryStore, ObjectStore

from preread.cloud.events import Request
from preread.errors import UsageError
from preread.store.blobs import Blobs
from preread.store.lease import Holder
from preread.store.objects import Objects
from preread.testing.cloud import RandomPublisher
from preread.testing.store import objects_of, present
from preread.wire import catalogue
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.digest import object_id


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectStore, Path | None]:
    if request.param == "folder":
        return LocalStore(tmp_path), tmp_path
    return MemoryStore(), None


def opened(place: tuple[ObjectStore, Path | None]) -> Objects:
    return Objects(Blobs(place[0], "the store", place[1]))


def as_before(place: tuple[ObjectStore, Path | None], names: dict[str, str], removed: tuple[str, ...]) -> list[Entry]:
    """Publish as older releases did."""
    backend, found = place[0], list[Entry]()
    for name, text in names.items():
        store = Objects(Blobs(MemoryStore(), ""))
        publisher = RandomPublisher(store)
        entry = asyncio.run(publisher(Request(name, text, form="text"), lambda *_: None)).entry
        for kind, id in objects_of(store, entry):
            data = asyncio.run(store.read(kind, id))  # type: ignore[arg-type]
            obstore.put(backend, f"{kind}/{id[:2]}/{id}", data or b"")
        obstore.put(backend, f"names/{object_id(name.encode())}.json", catalogue.dumps(Catalogue((entry,))))
        found.append(entry)
    obstore.put(backend, "removed.json", catalogue.dumps(Catalogue(removed=removed)))
    return found


def test_names_of_before_are_read_and_the_first_change_begins_the_log(
    place: tuple[ObjectStore, Path | None],
) -> None:
    entries = as_before(place, {f"name {number:02}": f"text {number}" for number in range(70)}, ("gone", "name 03"))
    store = opened(place)
    assert asyncio.run(store.names()) == entries and asyncio.run(store.removed()) == ("gone",)
    assert obstore.list(place[0], "log").collect() == []
    assert asyncio.run(store.remove_name("name 07"))
    assert present(store, objects_of(store, entries[6])) == objects_of(store, entries[6])
    for read in (store, opened(place)):
        assert asyncio.run(read.names()) == [one for one in entries if one.name != "name 07"]
        assert asyncio.run(read.removed()) == ("gone", "name 07")
        assert asyncio.run(read.published_at("name 01")) is not None
    asyncio.run(RandomPublisher(store)(Request("gone", "a text", form="text"), lambda *_: None))
    assert asyncio.run(opened(place).removed()) == ("name 07",)


def test_a_name_that_cannot_be_understood_is_left_out_and_its_file_stays(
    place: tuple[ObjectStore, Path | None], caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = as_before(place, {"one": "text one", "two": "text two"}, ())
    for key in (f"names/{object_id(b'two')}.json", "removed.json"):
        obstore.put(place[0], key, b"{")
    store = opened(place)
    assert asyncio.run(store.names()) == [one] and "left out" in caplog.text and "forgotten" in caplog.text
    assert asyncio.run(store.remove_name("one"))
    assert asyncio.run(opened(place).names()) == []
    assert [meta for meta in obstore.list(place[0]).collect() if object_id(b"two") in meta["path"]]


def test_an_older_release_that_runs_is_not_upgraded_from_under_its_feet() -> None:
    place = MemoryStore(), None
    as_before(place, {"one": "text one"}, ())
    obstore.put(place[0], "lease.json", msgspec.json.encode(Holder("a" * 16, "elsewhere", 7, "there", 2.0**32)))
    store = opened(place)
    with pytest.raises(UsageError, match="process 7 on elsewhere, which is of an older preread"):
        asyncio.run(store.remove_name("one"))
    assert [entry.name for entry in asyncio.run(store.names())] == ["one"]


def test_two_who_upgrade_at_once_agree(place: tuple[ObjectStore, Path | None]) -> None:
    as_before(place, {f"name {number}": f"text {number}" for number in range(4)}, ())

    async def main() -> None:
        stores = [opened(place) for _ in range(2)]
        for store in stores:
            await store.names()
        assert all(await asyncio.gather(*[one.remove_name(f"name {n}") for n, one in enumerate(stores)]))
        assert [entry.name for entry in await opened(place).names()] == ["name 2", "name 3"]

    asyncio.run(main())
