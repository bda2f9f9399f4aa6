"""Profiles on their way from a cloud to an edge's disk: once each, verified, and never a reason to lose a context."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import LocalStore
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.events import Published
from preread.codec import profile_bytes as profiles
from preread.edge.contexts import Contexts
from preread.errors import CorruptData
from preread.store.egress import CloudLink
from preread.store.objects import open_store
from preread.testing.cloud import FINGERPRINT, GEOMETRY, RandomPublisher, serving
from preread.testing.profile import plain_profile
from preread.values import Fingerprint, Geometry, ObjectId
from preread.wire.digest import object_id

OTHER = Fingerprint("0" * 64)


def written(fingerprint: Fingerprint = FINGERPRINT, geometry: Geometry = GEOMETRY, rung: str = "q4") -> bytes:
    return profiles.dumps(plain_profile(fingerprint, geometry, 4, {rung: (0.1, 0.001)}))


PROFILE = written()
ID = object_id(PROFILE)


class Counting:
    """Passes requests on, and keeps their paths."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
        await self._app(scope, receive, send)

    @property
    def profiles(self) -> list[str]:
        return [path for path in self.paths if path.startswith("/v1/profiles/")]


class Served:
    """A cloud that publishes random KV, and an edge's view of it."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = open_store(str(folder / "store")), folder / "edge"
        self.counting = Counting(create_app(self.store, self._publisher))
        self.url, self._profile = "", b""

    async def _publisher(self, *arguments: Any) -> Published:
        return await RandomPublisher(self.store, profile=self._profile)(*arguments)

    def publish(self, name: str, text: str, profile: bytes) -> None:
        """Through the API, so that the catalogue changes; `profile` is what one rung needs, if any."""
        self._profile = profile
        list(client.publish(self.url, name, text=text))

    def contexts(self) -> Contexts:
        """As after a restart."""
        contexts = Contexts(self.folder, FINGERPRINT)
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
        contexts.profiles.of(manifest.rungs[-1], manifest.model.geometry)
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
    assert (served.folder / ID).read_bytes() == PROFILE
    again = served.contexts()
    assert problem(again) is None
    served.sync(again)
    assert len(served.counting.profiles) == 1


def test_a_damaged_file_is_fetched_again(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.publish("one", "first text", PROFILE)
    served.sync(served.contexts())
    (served.folder / ID).write_bytes(PROFILE[:-1] + b"?")
    contexts = served.contexts()
    error = problem(contexts)
    assert error is not None and error.reason == "profile" and "not kept whole" in caplog.text
    served.sync(contexts)
    assert problem(contexts) is None
    assert len(served.counting.profiles) == 2 and (served.folder / ID).read_bytes() == PROFILE


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"anything", "magic", "not a profile"),
        (written(OTHER), "profile", "of another model"),
        (written(geometry=Geometry(2, 1, 16)), "profile", "head_dim=16"),
        (written(rung="b4"), "profile", "has no rung q4"),
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


def test_a_profile_that_no_manifest_needs_any_more_is_forgotten(served: Served) -> None:
    served.publish("one", "first text", PROFILE)
    contexts = served.contexts()
    served.sync(contexts)
    served.publish("one", "first text, revised", b"")
    served.sync(contexts)
    assert ID not in contexts.profiles and not (served.folder / ID).exists()


def test_profiles_of_other_models_are_not_fetched(served: Served) -> None:
    served.publish("one", "first text", PROFILE)
    contexts = Contexts(served.folder, OTHER)
    served.sync(contexts)
    assert contexts.named("one").manifest is not None and served.counting.profiles == []


def test_a_cloud_cannot_make_an_edge_hoard_profiles(served: Served) -> None:
    for number in range(10):
        served.publish(f"context {number}", f"text {number}", b"profile %d" % number)
    contexts = served.contexts()
    served.sync(contexts)
    assert len(served.counting.profiles) == 8
    assert sum(ObjectId(path.name) in contexts.profiles for path in served.folder.iterdir()) == 8
