"""Looking after a store: what is damaged is told, and only what nothing leads to is deleted."""

import asyncio
import os
import time
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore
from typer.testing import CliRunner

from preread.cli import app
from preread.errors import RemoteError
from preread.store import upkeep
from preread.store.blobs import Blobs
from preread.store.objects import Objects, open_store
from preread.store.upkeep import Checked, Collected
from preread.testing.cloud import FINGERPRINT
from preread.testing.store import objects_of, present, publish, put_fit, put_profile_of
from preread.values import ObjectId
from preread.wire import claim, draft
from preread.wire.claim import Claim
from preread.wire.digest import object_id
from preread.wire.draft import Draft
from preread.wire.fields import SizedId


def silent(*_: object) -> None:
    return None


def checked(store: Objects, *, quick: bool = False) -> Checked:
    return asyncio.run(upkeep.check(store, silent, quick=quick))


def collected(store: Objects, young_s: float = 0, *, dry_run: bool = False) -> Collected:
    return asyncio.run(upkeep.collect(store, silent, young_s=young_s, dry_run=dry_run))


def put(store: Objects, data: bytes) -> ObjectId:
    return asyncio.run(store.put("segments", data)).id


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return open_store(str(tmp_path)) if request.param == "folder" else Objects(Blobs(MemoryStore(), "s3://bucket"))


def test_what_is_published_and_listed_stays_and_the_rest_goes(store: Objects) -> None:
    entries = [publish(store, name, f"text of {name}", profile=b"a profile") for name in ("one", "two")]
    kept = {key for entry in entries for key in objects_of(store, entry)}
    put_profile_of(store, FINGERPRINT, b"of a model")
    fit = put_fit(store, b"a fit")
    kept |= {("profiles", object_id(b"of a model")), ("fits", fit.id)}
    orphans = {("segments", put(store, b"given up")), ("segments", put(store, b"also"))}
    assert collected(store, dry_run=True) == Collected(2, 12, 0)
    assert present(store, orphans) == orphans
    assert collected(store, young_s=3600) == Collected(0, 0, 0)
    assert collected(store) == Collected(2, 12, 0)
    assert present(store, kept | orphans) == kept
    assert checked(store).damage == [] and checked(store).objects == len(kept)
    assert collected(store) == Collected(0, 0, 0)


def test_what_an_unfinished_publication_has_stored_stays_as_long_as_it_may_be_gone_on_with(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = put(store, b"the first chunk")
    cell = SizedId(id, 15)
    work, whole = ObjectId("a" * 64), ObjectId("b" * 64)
    under_way = draft.dumps(Draft(work, "c" * 64, (((cell,),),)))  # type: ignore[arg-type]
    finished = draft.dumps(Draft(whole, "c" * 64, (), SizedId(ObjectId("d" * 64), 9)))  # type: ignore[arg-type]
    asyncio.run(store.drafts.note(work, under_way))
    asyncio.run(store.drafts.note(whole, finished))
    over = claim.dumps(Claim("me", "here", 1, 1000))
    asyncio.run(store.blobs.put_note(f"claims/{work}/0.json", over))
    assert collected(store) == Collected(0, 0, 2)
    assert asyncio.run(store.drafts.read(whole)) is None and asyncio.run(store.drafts.read(work)) == under_way
    monkeypatch.setattr(upkeep, "DRAFT_S", 0.0)
    assert collected(store) == Collected(1, 15, 1)


def test_a_manifest_that_cannot_be_read_keeps_everything(store: Objects) -> None:
    entry = publish(store, "one", "a text")
    orphan = put(store, b"given up")
    obstore.put(store.blobs._backend, f"manifests/{entry.manifest.id[:2]}/{entry.manifest.id}", b"{}")
    found = collected(store)
    assert found.objects == 0 and "schema" in found.kept
    assert present(store, {("segments", orphan)})
    assert len(checked(store).damage) == 2


def test_each_damage_is_told_with_whom_it_concerns(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    entry = publish(store, "one", "a text of some length", profile=b"a profile")
    put_fit(store, b"a fit")
    whole = checked(store)
    assert whole.damage == [] and whole.orphans == [] and whole.contexts == 1
    assert whole.objects == len(objects_of(store, entry)) + 1
    segments = sorted((tmp_path / "segments").glob("*/*"))
    segments[0].unlink()
    segments[1].write_bytes(segments[1].read_bytes()[:-1])
    segments[2].write_bytes(bytes(segments[2].stat().st_size))
    next((tmp_path / "profiles").glob("*/*")).unlink()
    next(path for path in (tmp_path / "fits").glob("*/*")).write_bytes(b"a fiT")
    told = "\n".join(sorted(checked(store).damage))
    assert f"context 'one': segments/{segments[0].parent.name}/{segments[0].name} is missing" in told
    assert f"{segments[1].name} has {segments[1].stat().st_size} bytes, not" in told
    assert f"{segments[2].name} is damaged" in told and "context 'one': profiles/" in told and "fit " in told
    assert len(checked(store).damage) == 5 and len(checked(store, quick=True).damage) == 3


def test_old_changes_of_names_and_names_of_older_releases_go(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "x.json").write_bytes(b"{")
    store = open_store(str(tmp_path))
    publish(store, "one", "a text")
    assert (tmp_path / "names.old" / "x.json").exists()
    assert collected(store) == Collected(0, 0, 1)
    assert not (tmp_path / "names.old" / "x.json").exists()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["store", *arguments])
    if isinstance(result.exception, RemoteError | ValueError):
        raise result.exception
    return result.exit_code, result.output


def test_the_commands_say_what_they_find(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    assert run("check", place)[0] != 0 and not Path(place).exists()
    store = open_store(place)
    publish(store, "one", "a text")
    id = put(store, b"given up")
    orphan = tmp_path / "store/segments" / id[:2] / id
    code, told = run("check", place)
    assert code == 0 and "1 context, 6 objects" in told and "all whole" in told and "nothing leads to 1 objects" in told
    assert run("gc", place) == (0, "deleted 0 objects, 0 B, and 0 records\n")
    os.utime(orphan, (time.time() - 90000, time.time() - 90000))
    assert run("gc", place, "--dry-run") == (0, "would delete 1 objects, 8 B, and 0 records\n") and orphan.exists()
    assert run("gc", place) == (0, "deleted 1 objects, 8 B, and 0 records\n") and not orphan.exists()
    assert run("migrate", place) == (0, "this store has a log of its names already: nothing to do\n")
    next((tmp_path / "store/tokens").glob("*/*")).unlink()
    code, told = run("check", "--quick", place)
    assert code == 1 and "is missing" in told and "publish the damaged contexts again" in told
