"""What an edge knows of a cloud's contexts: fetched once, verified, bounded, and kept until it is removed by name."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import obstore
import pytest
from obstore.store import LocalStore
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.events import Published
from preread.codec import profile_bytes as profiles
from preread.edge import published
from preread.edge.contexts import Contexts
from preread.edge.known import Known
from preread.edge.profiles import MOST_PROFILES, Decoder
from preread.errors import CorruptData, Unavailable, UnknownContext, UsageError
from preread.store.egress import CloudLink
from preread.store.objects import open_store
from preread.testing.cloud import FINGERPRINT, FITTED, GEOMETRY, RandomPublisher, serving
from preread.testing.edges import OWN
from preread.testing.profile import plain_profile
from preread.values import Fingerprint, Geometry, ObjectId, alike
from preread.wire import manifest as manifests
from preread.wire import tokens as token_objects
from preread.wire.digest import object_id
from preread.wire.fields import MAX_CATALOGUE_BYTES, SizedId

OTHER = Fingerprint("0" * 64)


def written(
    fingerprint: Fingerprint = FINGERPRINT, geometry: Geometry = GEOMETRY, rung: str = FITTED, step: float = 0.1
) -> bytes:
    return profiles.dumps(plain_profile(fingerprint, geometry, 4, {rung: (step, 0.001)}))


PROFILE = written()
ID = object_id(PROFILE)


class Counting:
    """Passes requests on, and keeps their paths."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.paths: list[str] = []
        self.statuses: dict[str, list[int]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses.setdefault(scope["path"], []).append(message["status"])
            await send(message)

        if scope["type"] == "http":
            self.paths.append(scope["path"])
        await self._app(scope, receive, told)

    @property
    def profiles(self) -> list[str]:
        return self.of("profiles")

    def of(self, kind: str) -> list[str]:
        return [path for path in self.paths if path.startswith(f"/v1/{kind}/")]


class Served:
    """A cloud that publishes random KV, and an edge's view of it."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = open_store(str(folder / "store")), folder / "edge"
        self.counting = Counting(create_app(self.store, self._publisher))
        self.kept = self.folder / "catalogue" / FINGERPRINT[:16]
        self.url, self._profile = "", b""

    async def _publisher(self, *arguments: Any) -> Published:
        return await RandomPublisher(self.store, profile=self._profile)(*arguments)

    def publish(self, name: str, text: str, profile: bytes = b"") -> None:
        """Through the API, so that the catalogue changes; `profile` is what one rung needs, if any."""
        self._profile = profile
        list(client.publish(self.url, name, text=text))

    def contexts(self) -> Contexts:
        """As after a restart."""
        contexts = Contexts(self.folder, OWN)
        contexts.restore()
        return contexts

    def sync(self, contexts: Contexts) -> None:
        async def main() -> None:
            async with CloudLink(self.url) as link:
                await contexts.sync(link)

        asyncio.run(main())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    with serving(served.counting) as url:
        served.url = url
        yield served


def problem(contexts: Contexts, name: str = "one") -> CorruptData | None:
    """Why the thin rung of a context cannot be decoded; None: it can."""
    manifest = contexts.named(name).manifest
    assert manifest is not None
    try:
        contexts.profiles.of(manifest.rungs[-1], manifest.model)
    except CorruptData as error:
        return error
    return None


def test_a_profile_is_fetched_once_for_all_contexts_and_kept(served: Served) -> None:
    served.publish("one", "first text", PROFILE)
    served.publish("two", "second text", PROFILE)
    contexts = served.contexts()
    served.sync(contexts)
    assert problem(contexts, "one") is None and problem(contexts, "two") is None
    assert served.counting.profiles == [f"/v1/profiles/{ID}"]
    assert (served.kept / ID).read_bytes() == PROFILE
    again = served.contexts()
    assert problem(again) is None
    served.sync(again)
    assert len(served.counting.profiles) == 1


def test_a_damaged_file_is_fetched_again(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.publish("one", "first text", PROFILE)
    served.sync(served.contexts())
    (served.kept / ID).write_bytes(PROFILE[:-1] + b"?")
    contexts = served.contexts()
    error = problem(contexts)
    assert error is not None and error.reason == "profile" and "is damaged" in caplog.text
    served.sync(contexts)
    assert problem(contexts) is None
    assert len(served.counting.profiles) == 2 and (served.kept / ID).read_bytes() == PROFILE


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"anything", "magic", "not a profile"),
        (written(OTHER), "profile", "of another model"),
        (written(geometry=Geometry(2, 1, 16)), "profile", "head_dim=16"),
        (written(rung="b9"), "profile", "has no rung b4"),
    ],
    ids=["no profile", "other model", "other geometry", "other rungs"],
)
def test_a_profile_that_cannot_be_used_costs_its_rungs_and_no_more(
    served: Served, data: bytes, reason: str, words: str
) -> None:
    served.publish("one", "first text", data)
    contexts = served.contexts()
    served.sync(contexts)
    error = problem(contexts)
    assert error is not None and error.reason == reason and words in str(error)
    assert contexts.unreachable is None and len(contexts.named("one").tokens) == len("first text")
    served.publish("two", "second text", data)
    served.sync(contexts)
    assert len(served.counting.profiles) == 1  # fetching it again would not make it better


def test_a_profile_that_the_cloud_lost_is_asked_for_again(served: Served, tmp_path: Path) -> None:
    served.publish("one", "first text", PROFILE)
    obstore.delete(LocalStore(tmp_path / "store"), f"profiles/{ID[:2]}/{ID}")
    contexts = served.contexts()
    served.sync(contexts)
    error = problem(contexts)
    assert error is not None and "not here yet" in str(error) and contexts.unreachable is None
    asyncio.run(served.store.put("profiles", PROFILE))
    served.sync(contexts)
    assert problem(contexts) is None


def test_rungs_are_resolved_when_something_has_come_and_not_again(served: Served, tmp_path: Path) -> None:
    served.publish("one", "first text", PROFILE)
    obstore.delete(LocalStore(tmp_path / "store"), f"profiles/{ID[:2]}/{ID}")
    contexts = served.contexts()
    served.sync(contexts)
    before = contexts.named("one").rungs
    assert isinstance(before[0].decoder, Decoder)
    assert isinstance(before[-1].decoder, str) and "not here yet" in before[-1].decoder
    asyncio.run(served.store.put("profiles", PROFILE))
    served.sync(contexts)
    after = contexts.named("one").rungs
    assert isinstance(after[-1].decoder, Decoder) and after[-1].places is before[-1].places
    served.sync(contexts)
    assert contexts.named("one").rungs is after is contexts.all()[0].rungs
    assert served.contexts().named("one").rungs == after  # as a restart finds them


def test_what_is_resolved_is_what_its_manifest_says(served: Served) -> None:
    served.publish("one", "first text", PROFILE)
    contexts = served.contexts()
    served.sync(contexts)
    known = contexts.named("one")
    assert known.manifest is not None and len(known.rungs) == len(known.manifest.rungs)
    for rung in known.manifest.rungs:
        found = known.rung(rung.name)
        assert [*found.places] == manifests.places(known.manifest, rung.name)
        assert found.size_bytes == sum(ref.size_bytes for place in found.places for ref in place.refs)
    with pytest.raises(UsageError, match="has no rung 'b99'; it has: "):
        known.rung("b99")


def test_a_rung_whose_profile_had_to_go_is_not_readable_any_more(served: Served) -> None:
    numbers = range(MOST_PROFILES + 1)
    for number in numbers:
        served.publish(f"context {number}", f"text {number}", written(step=0.1 + number))
    contexts = served.contexts()
    served.sync(contexts)
    assert [number for number in numbers if unreadable(contexts, number)] == [MOST_PROFILES]
    served.publish("context 0", "another text", written(step=0.1))  # its manifest is now the last one that came
    served.sync(contexts)
    assert [number for number in numbers if unreadable(contexts, number)] == [0, MOST_PROFILES]
    served.sync(contexts)
    assert [number for number in numbers if unreadable(contexts, number)] == [0]


def unreadable(contexts: Contexts, number: int) -> bool:
    return isinstance(contexts.named(f"context {number}").rungs[-1].decoder, str)


def test_a_profile_that_no_manifest_needs_any_more_is_forgotten(served: Served) -> None:
    served.publish("one", "first text", PROFILE)
    contexts = served.contexts()
    served.sync(contexts)
    served.publish("one", "first text, revised", b"")
    served.sync(contexts)
    assert ID not in contexts.profiles and not (served.kept / ID).exists()


def test_profiles_of_other_models_are_not_fetched(served: Served) -> None:
    served.publish("one", "first text", PROFILE)
    contexts = Contexts(served.folder, replace(OWN, fingerprint=OTHER))
    served.sync(contexts)
    assert named_now(served, contexts, "one").manifest is None and served.counting.profiles == []


def test_a_cloud_cannot_make_an_edge_hoard_profiles(served: Served) -> None:
    for number in range(10):
        served.publish(f"context {number}", f"text {number}", b"profile %d" % number)
    contexts = served.contexts()
    served.sync(contexts)
    assert len(served.counting.profiles) == 8
    assert sum(ObjectId(path.name) in contexts.profiles for path in served.kept.iterdir()) == 8


# Foreign bytes are measured before they are believed


def changed_manifest(served: Served, name: str, **model: Any) -> None:
    """Publish the manifest of a name anew, with another model in it."""

    async def change() -> None:
        (entry,) = [one for one in await served.store.names() if one.name == name]
        read = manifests.loads(await served.store.read("manifests", entry.manifest.id) or b"")
        lie = msgspec.structs.replace(read, model=msgspec.structs.replace(read.model, **model))
        ref = await served.store.put("manifests", manifests.dumps(lie))
        await served.store.put_name(msgspec.structs.replace(entry, manifest=SizedId(ref.id, ref.size_bytes)))

    asyncio.run(change())


def test_a_manifest_of_another_geometry_is_not_believed_and_its_context_is_computed(served: Served) -> None:
    served.publish("one", "first text")
    changed_manifest(served, "one", layers=alike(replace(GEOMETRY, kv_heads=1024, head_dim=512)))
    contexts = served.contexts()
    served.sync(contexts)
    known = contexts.named("one")
    assert known.manifest is None and "kv_heads=1024" in known.why and len(known.tokens) == len("first text")
    assert contexts.segment(ID) is None and contexts.unreachable is None


def test_token_ids_of_another_text_are_not_believed(served: Served) -> None:
    served.publish("one", "first text")

    async def change() -> None:
        (entry,) = await served.store.names()
        ids = token_objects.unpack(await served.store.read("tokens", entry.tokens.id) or b"", entry.token_count)
        ref = await served.store.put("tokens", token_objects.pack(ids[::-1].copy()))
        await served.store.put_name(msgspec.structs.replace(entry, tokens=SizedId(ref.id, ref.size_bytes)))

    asyncio.run(change())
    contexts = served.contexts()
    served.sync(contexts)
    with pytest.raises(Unavailable, match="token ids are not those"):
        contexts.named("one")


def test_contexts_that_no_window_here_takes_are_not_fetched(served: Served) -> None:
    served.publish("long", "x" * 300)
    served.publish("short", "y" * 30)
    contexts = Contexts(served.folder, replace(OWN, window_tokens=300))
    served.sync(contexts)
    assert [known.entry.name for known in contexts.all()] == ["short"]
    assert [entry.name for entry in contexts.entries()] == ["long", "short"]
    assert len(served.counting.of("tokens")) == len(served.counting.of("manifests")) == 1 and not contexts.missing()


def test_contexts_of_another_vocabulary_are_not_fetched(served: Served) -> None:
    served.publish("one", "x" * 30)
    contexts = Contexts(served.folder, replace(OWN, vocabulary=OTHER))
    served.sync(contexts)
    assert [entry.name for entry in contexts.entries()] == ["one"] and not contexts.all() and not contexts.missing()
    assert not served.counting.of("tokens") and not served.counting.of("manifests")


def test_there_is_a_budget_for_the_tokens_of_all_contexts_after_a_restart_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        served.publish(f"context {number}", f"{number}" * 100)
    everything = served.contexts()
    served.sync(everything)
    assert len(everything.all()) == 6
    monkeypatch.setattr(published, "MOST_TOKENS", 250)
    contexts = served.contexts()
    assert [known.entry.name for known in contexts.all()] == ["context 0", "context 1"]
    served.sync(contexts)
    kept = [path for path in served.kept.iterdir() if len(path.name) == 64]
    assert len(contexts.all()) == 2 and len(contexts.entries()) == 6 and len(kept) == 4
    last = named_now(served, contexts, "context 5")
    assert len(last.tokens) == 100
    served.sync(contexts)
    assert [known.entry.name for known in contexts.all()] == ["context 0", "context 5"]
    assert [known.entry.name for known in served.contexts().all()] == ["context 0", "context 5"]


def named_now(served: Served, contexts: Contexts, name: str) -> Known:
    """As for somebody who asks for it by name."""

    async def main() -> Known:
        async with CloudLink(served.url) as link:
            if contexts.entry(name) is None:
                await contexts.look_up(name, link)
            return await contexts.get(name, link)

    return asyncio.run(main())


def test_of_other_models_only_what_is_asked_for_by_name_is_fetched(served: Served) -> None:
    served.publish("one", "first text")
    served.publish("two", "second text")
    contexts = Contexts(served.folder, replace(OWN, fingerprint=OTHER))
    served.sync(contexts)
    assert contexts.entries() == [] and served.counting.of("tokens") == served.counting.of("manifests") == []
    known = named_now(served, contexts, "two")
    assert len(known.tokens) == 11 and known.manifest is None and "another model" in known.why
    assert [entry.name for entry in contexts.entries()] == ["two"]
    again = Contexts(served.folder, replace(OWN, fingerprint=OTHER))
    again.restore()
    assert len(again.named("two").tokens) == 11 and len(served.counting.of("tokens")) == 1


def test_a_catalogue_on_disk_that_is_too_large_is_not_read(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.publish("one", "first text")
    served.sync(served.contexts())
    with (served.kept / "catalogue.json").open("r+b") as file:
        file.truncate(MAX_CATALOGUE_BYTES + 1)
    contexts = served.contexts()
    assert contexts.entries() == [] and "is longer than" in caplog.text
    served.sync(contexts)
    assert len(contexts.all()) == 1


# What was known stays until it is removed by name


def lose(served: Served, *kinds: str) -> None:
    """As when a disk fails: these folders of the store are empty, and nobody removed anything."""
    for kind in kinds:
        shutil.rmtree(served.folder.parent / "store" / kind)


def test_a_cloud_that_comes_back_empty_makes_no_edge_forget(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.publish("one", "first text", PROFILE)
    served.publish("two", "second text", PROFILE)
    contexts = served.contexts()
    served.sync(contexts)
    before = sorted(path.name for path in served.kept.iterdir())
    empty = create_app(open_store(str(tmp_path / "empty")), served._publisher)
    with serving(empty) as url:
        served.url = url
        served.sync(contexts)
        served.sync(contexts)
    assert [known.entry.name for known in contexts.all()] == ["one", "two"] and problem(contexts, "two") is None
    assert sorted(path.name for path in served.kept.iterdir()) == before
    assert "does not tell of 2 contexts" in caplog.text
    assert [known.entry.name for known in served.contexts().all()] == ["one", "two"]


def test_what_is_removed_by_name_is_forgotten(served: Served) -> None:
    served.publish("one", "first text")
    served.publish("two", "second text")
    contexts = served.contexts()
    served.sync(contexts)
    client.remove(served.url, "one")
    served.sync(contexts)
    assert [known.entry.name for known in contexts.all()] == ["two"]
    assert len([path for path in served.kept.iterdir() if len(path.name) == 64]) == 2
    with pytest.raises(UnknownContext):
        contexts.named("one")
    served.publish("one", "first text, again")
    served.sync(contexts)
    assert len(contexts.named("one").tokens) == len("first text, again")


def test_a_store_that_lost_a_name_costs_no_edge_its_context(served: Served) -> None:
    served.publish("one", "first text")
    served.publish("two", "second text")
    contexts = served.contexts()
    served.sync(contexts)
    max((served.folder.parent / "store/log").rglob("*.json")).unlink()
    restored = Served(served.folder.parent)
    with serving(restored.counting) as restored.url:
        restored.publish("three", "third text")
        restored.sync(contexts)
    assert [entry.name for entry in asyncio.run(restored.store.names())] == ["one", "three"]
    assert [known.entry.name for known in contexts.all()] == ["one", "three", "two"]


@pytest.mark.parametrize("damage", [None, b"{}"])
def test_a_context_whose_manifest_is_lost_is_computed_from_its_tokens(served: Served, damage: bytes | None) -> None:
    served.publish("one", "first text")
    (victim,) = (served.folder.parent / "store/manifests").glob("*/*")
    victim.unlink() if damage is None else victim.write_bytes(damage)
    contexts = served.contexts()
    served.sync(contexts)
    known = contexts.named("one")
    assert known.manifest is None and "manifest" in known.why and len(known.tokens) == len("first text")


def test_while_the_tokens_of_a_new_edition_are_missing_the_former_one_is_known(served: Served) -> None:
    served.publish("one", "first text")
    contexts = served.contexts()
    served.sync(contexts)
    served.publish("one", "second edition")
    lose(served, "tokens")
    served.sync(contexts)
    assert len(contexts.named("one").tokens) == len("first text")
    served.publish("one", "second edition")
    served.sync(contexts)
    assert len(contexts.named("one").tokens) == len("second edition")


def test_a_context_without_tokens_is_not_called_unknown(served: Served) -> None:
    served.publish("one", "first text")
    lose(served, "tokens")
    contexts = served.contexts()
    served.sync(contexts)
    with pytest.raises(Unavailable, match=r"context 'one' cannot be used yet: .*does not have tokens/"):
        named_now(served, contexts, "one")


def test_one_broken_entry_does_not_have_everything_fetched_again(served: Served) -> None:
    served.publish("one", "first text")
    lose(served, "manifests")
    served.publish("two", "second text")
    contexts = served.contexts()
    for _ in range(40):
        served.sync(contexts)
    assert len(served.counting.of("manifests")) == 2 + 5, "it is asked for after 1, 2, 4, 8 and 16 syncs"
    assert len(served.counting.of("tokens")) == 2 and contexts.unreachable is None
    assert served.counting.statuses["/v1/catalogue"] == [200] + [304] * 39


# Files that are somebody else's


def test_only_files_that_it_wrote_are_ever_removed(served: Served) -> None:
    served.folder.mkdir()
    for name in ("thesis.txt", ".ssh_key", "f" * 64, "catalogue.json"):
        (served.folder / name).write_text("mine")
    served.publish("one", "first text")
    served.sync(served.contexts())
    served.publish("one", "another text")
    served.sync(served.contexts())
    assert {(path.name, path.read_text()) for path in served.folder.iterdir() if path.is_file()} == {
        (name, "mine") for name in ("thesis.txt", ".ssh_key", "f" * 64, "catalogue.json")
    }


def test_edges_of_two_models_may_share_a_folder(served: Served) -> None:
    served.publish("one", "first text", PROFILE)
    served.sync(served.contexts())
    other = Contexts(served.folder, replace(OWN, fingerprint=OTHER))
    served.sync(other)
    assert problem(served.contexts()) is None and (served.kept / ID).exists()
