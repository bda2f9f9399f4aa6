"""The contract of every store, as a suite to inherit: `class TestMine(StoreContract)` with an `address` fixture."""

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from preread.cloud.events import Request
from preread.errors import UsageError
from preread.store.objects import Objects, object_key, open_store
from preread.testing.cloud import FINGERPRINT, RandomPublisher
from preread.values import Fingerprint, ObjectId, ObjectRef
from preread.wire import manifest
from preread.wire.catalogue import Entry
from preread.wire.digest import object_id
from preread.wire.fits import Fit

NAMES = ["a", "A", "a b", "%2F", "..x", "names", "ü" * 128, "😀" * 128, '"\\?*<>|:&#']
"""Names that some file system or URL would trip over."""


def publish(store: Objects, name: str, text: str, *, profile: bytes = b"") -> Entry:
    """A small context of real format, with random KV; `profile`: what its manifest says that one rung needs."""
    publisher = RandomPublisher(store, profile=profile)
    return asyncio.run(publisher(Request(name, text, form="text"), lambda *_: None)).entry


def put_profile_of(store: Objects, fingerprint: Fingerprint, profile: bytes) -> ObjectRef:
    """Store the bytes as a profile, and remember it for a model."""

    async def put() -> ObjectRef:
        ref = await store.put("profiles", profile)
        await store.put_profile_of(fingerprint, ref)
        return ref

    return asyncio.run(put())


def put_fit(store: Objects, data: bytes) -> Fit:
    """Store the bytes as a fit, and list it."""

    async def put() -> Fit:
        ref = await store.put("fits", data)
        fit = Fit("decisions", ref.id, ref.size_bytes, FINGERPRINT, "nothing")
        await store.put_fit(fit)
        return fit

    return asyncio.run(put())


def objects_of(store: Objects, entry: Entry) -> set[tuple[str, ObjectId]]:
    """All objects that a present entry leads to."""
    data = asyncio.run(store.read("manifests", entry.manifest.id))
    assert data is not None
    return needs(data, entry)


def needs(data: bytes, entry: Entry) -> set[tuple[str, ObjectId]]:
    """All objects that an entry with this manifest leads to."""
    rungs = manifest.loads(data).rungs
    cells: set[tuple[str, ObjectId]] = {("segments", cell.id) for rung in rungs for cell in rung.segments}
    profiles: set[tuple[str, ObjectId]] = {("profiles", rung.profile.id) for rung in rungs if rung.profile is not None}
    return {("manifests", entry.manifest.id), ("tokens", entry.tokens.id)} | cells | profiles


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

    def test_what_was_removed_is_told_until_it_is_published_again(self, store: Objects) -> None:
        assert asyncio.run(store.removed()) == ()
        for name in NAMES[:3]:
            publish(store, name, f"text of {name}")
        assert asyncio.run(store.removed()) == ()
        for name in reversed(NAMES[:3]):
            assert asyncio.run(store.remove_name(name))
        publish(store, NAMES[1], "a new text")
        assert asyncio.run(store.removed()) == (NAMES[2], NAMES[0])

    def test_whoever_waits_for_a_change_is_told_of_each(self, store: Objects) -> None:
        async def main() -> list[str]:
            publisher, seen = RandomPublisher(store), list[str]([(await store.listing()).version])
            for text in ("first", "second", "third", None):
                waiting = asyncio.ensure_future(store.changed(seen[-1]))
                await asyncio.sleep(0)
                assert not waiting.done()
                if text is None:
                    await store.remove_name("one")
                else:
                    name = "two" if text == "second" else "one"
                    await publisher(Request(name, text, form="text"), lambda *_: None)
                async with asyncio.timeout(60):
                    seen.append((await waiting).version)
                assert (await store.changed("another version")).version == seen[-1]
            return seen

        assert len(set(asyncio.run(main()))) == 5

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

    def test_of_what_is_to_be_deleted_some_may_be_gone(self, store: Objects) -> None:
        keys = [object_key("tokens", asyncio.run(store.put("tokens", b"%d" % number)).id) for number in range(5)]
        asyncio.run(store.blobs.delete_objects([keys[0]]))
        asyncio.run(store.blobs.delete_objects([keys[0]]))
        asyncio.run(store.blobs.delete_objects(keys))
        assert [asyncio.run(store.blobs.size(key)) for key in keys] == [None] * 5

    def test_the_profile_of_a_model_outlives_the_process(self, store: Objects, address: str) -> None:
        ref = put_profile_of(store, FINGERPRINT, b"habits")
        again = open_store(address)
        assert asyncio.run(again.profile_of(FINGERPRINT)) == ref == ObjectRef("profiles", object_id(b"habits"), 6)
        assert asyncio.run(again.profile_of(Fingerprint("0" * 64))) is None
        assert asyncio.run(again.read("profiles", ref.id)) == b"habits"
        assert asyncio.run(again.names()) == []

    def test_a_profile_stays_while_a_manifest_or_its_model_needs_it(self, store: Objects) -> None:
        one, two = (publish(store, name, f"text of {name}", profile=b"first") for name in ("one", "two"))
        ours, first = objects_of(store, one), {("profiles", object_id(b"first"))}
        assert first < ours
        asyncio.run(store.remove_name("one"))
        assert present(store, ours) == first
        put_profile_of(store, FINGERPRINT, b"first")
        asyncio.run(store.remove_name("two"))
        assert present(store, ours) == first
        assert asyncio.run(store.names()) == [] and two != one

    def test_the_former_profile_of_a_model_goes_when_nothing_needs_it(self, store: Objects) -> None:
        first, second = {("profiles", object_id(b"first"))}, {("profiles", object_id(b"second"))}
        put_profile_of(store, FINGERPRINT, b"never used")
        put_profile_of(store, FINGERPRINT, b"first")
        assert present(store, {("profiles", object_id(b"never used"))}) == set()
        publish(store, "one", "a text", profile=b"first")
        put_profile_of(store, FINGERPRINT, b"second")
        assert present(store, first | second) == first | second
        asyncio.run(store.remove_name("one"))
        assert present(store, first | second) == second
        put_profile_of(store, Fingerprint("0" * 64), b"second")
        put_profile_of(store, FINGERPRINT, b"first")
        assert present(store, first | second) == first | second

    def test_only_profiles_are_remembered_as_such(self, store: Objects) -> None:
        with pytest.raises(UsageError, match="is no profile"):
            asyncio.run(store.put_profile_of(FINGERPRINT, asyncio.run(store.put("tokens", b"x"))))

    def test_a_fit_is_listed_once_outlives_the_process_and_goes_with_its_object(
        self, store: Objects, address: str
    ) -> None:
        ours = [put_fit(store, data) for data in (b"first", b"second", b"first")]
        asyncio.run(store.put_fit(msgspec.structs.replace(ours[0], text="what was said later")))
        assert ours[0] == ours[2] and asyncio.run(store.names()) == []
        for opened in (store, open_store(address)) if address != "memory:" else (store,):
            listed = {fit.id: fit for fit in asyncio.run(opened.fits())}
            assert set(listed) == {fit.id for fit in ours} and all(fit.created for fit in listed.values())
            assert {msgspec.structs.replace(fit, created=None) for fit in listed.values()} == set(ours)
            assert asyncio.run(opened.read("fits", ours[1].id)) == b"second"
        assert asyncio.run(store.remove_fit(ours[0].id)) and not asyncio.run(store.remove_fit(ours[0].id))
        assert [fit.id for fit in asyncio.run(store.fits())] == [ours[1].id]
        assert present(store, {("fits", ours[0].id), ("fits", ours[1].id)}) == {("fits", ours[1].id)}

    def test_the_profiles_of_models_are_told_with_when_they_came(self, store: Objects) -> None:
        assert asyncio.run(store.profiles()) == []
        other = Fingerprint("0" * 64)
        refs = {of: put_profile_of(store, of, of[:5].encode()) for of in (FINGERPRINT, other)}
        told = asyncio.run(store.profiles())
        assert {of: ref for of, ref, _ in told} == refs and len(told) == 2
        assert all(datetime.fromisoformat(at) <= datetime.now(UTC) for _, _, at in told)
