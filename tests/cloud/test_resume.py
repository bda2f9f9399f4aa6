"""A publication that ended early is taken up where it ended, and one that is whole is not made again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.cloud.events import Published
from preread.cloud.profiles import Stored, keep
from preread.cloud.publish import publish
from preread.cloud.quality import LONGEST_TOKENS
from preread.codec.profile import Profile
from preread.engine.context import WINDOWS
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.session import Session
from preread.engine.worker import Worker
from preread.store.objects import Objects, open_store
from preread.testing.profile import plain_profile
from preread.values import Span
from preread.wire import draft as drafts
from preread.wire import manifest as manifests
from preread.wire.manifest import Manifest

PLAIN = ("lossless", "q8")
COUNT = 600
"""Five chunks, the last of which is short, in two batches."""


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024, scored_tokens=WINDOWS * LONGEST_TOKENS)) as engine:
        yield engine


@pytest.fixture(scope="module")
def tokens(engine: LlamaCpp) -> Tokens:
    return engine.tokenize(" ".join(str(n * n % 997) for n in range(900)), special=False, start=True)[:COUNT]


@pytest.fixture(scope="module")
def profile(engine: LlamaCpp, tokens: Tokens) -> Profile:
    width = engine.embeddings(tokens[:1]).shape[1]
    return plain_profile(engine.spec.fingerprint, engine.spec.geometry, width, {"b4": (0.02, 0.0001)})


@pytest.fixture(scope="module")
def whole(engine: LlamaCpp, tokens: Tokens) -> Manifest:
    """Made at one go."""
    return published(open_store("memory:"), engine, tokens)[1]


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """Which tokens an engine was made to read, batch by batch."""
    seen, prefill = list[Span](), Session.prefill

    def watched(self: Session, tokens: Tokens, progress: None, scored: Sequence[Span], start: int) -> object:
        seen.append(Span(start, len(tokens)))
        return prefill(self, tokens, progress, scored, start)

    monkeypatch.setattr(Session, "prefill", watched)
    return seen


def published(
    store: Objects,
    engine: LlamaCpp,
    tokens: Tokens,
    rungs: tuple[str, ...] | None = PLAIN,
    *,
    name: str = "manual",
    profile: Profile | None = None,
    killed_at: tuple[str, int] | None = None,
) -> tuple[Published, Manifest]:
    """`killed_at`: a stage, and how many tokens of it are done then."""

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == killed_at:
            raise Killed

    async def work() -> tuple[Published, Manifest]:
        kept: Stored | None = None if profile is None else await keep(store, profile)
        done = await publish(store, engine, worker, name, tokens, "text", rungs, progress, kept)
        data = await store.read("manifests", done.entry.manifest.id)
        assert data is not None
        return done, manifests.loads(data)

    with closing(Worker()) as worker:
        return asyncio.run(work())


def killed(store: Objects, engine: LlamaCpp, tokens: Tokens, at: tuple[str, int], **options: object) -> None:
    with pytest.raises(Killed):
        published(store, engine, tokens, killed_at=at, **options)  # type: ignore[arg-type]
    assert asyncio.run(store.names()) == []


@pytest.mark.parametrize(("at", "goes_on"), [("prefill", 512), ("encode", 384), ("encode", 512), ("encode", COUNT)])
def test_it_goes_on_behind_the_last_chunk_that_was_stored_and_makes_the_same_bytes(
    engine: LlamaCpp, tokens: Tokens, store: Objects, read: list[Span], at: str, goes_on: int, whole: Manifest
) -> None:
    killed(store, engine, tokens, (at, goes_on))
    read.clear()
    engine.session.prefill(np.flip(tokens), None, (), 0)  # another one was read meanwhile
    done, manifest = published(store, engine, tokens)
    assert manifest == whole and not done.notes
    if goes_on < COUNT:
        assert read[1].start == (goes_on if at == "encode" else 0) and read[-1].stop == COUNT


def test_rungs_that_need_a_profile_are_taken_up_too(
    engine: LlamaCpp, tokens: Tokens, profile: Profile, store: Objects, read: list[Span]
) -> None:
    expected = published(open_store("memory:"), engine, tokens, None, profile=profile)[1]
    killed(store, engine, tokens, ("encode", 384), rungs=None, profile=profile)
    read.clear()
    manifest = published(store, engine, tokens, None, profile=profile)[1]
    assert read == [Span(384, 512), Span(512, COUNT)]
    assert drafts.rows(manifest) == drafts.rows(expected)
    for rung, other in zip(manifest.rungs, expected.rungs, strict=True):
        if rung.quality is None or other.quality is None:
            assert rung.quality is other.quality
            continue
        assert rung.quality.measured_on == other.quality.measured_on == "context"
        assert rung.quality.kl_micronats == pytest.approx(other.quality.kl_micronats, rel=0.1)


def test_without_lossless_segments_it_is_read_again_and_only_the_rest_is_encoded(
    engine: LlamaCpp, tokens: Tokens, store: Objects, read: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = published(open_store("memory:"), engine, tokens, ("q8",))[1]
    killed(store, engine, tokens, ("encode", 384), rungs=("q8",))
    read.clear()
    exported, export = list[Span](), Session.export

    def watched(self: Session, chunk: Span, layers: Span) -> object:
        exported.append(chunk)
        return export(self, chunk, layers)

    monkeypatch.setattr(Session, "export", watched)
    assert published(store, engine, tokens, ("q8",))[1] == whole
    assert read == [Span(0, 512), Span(512, COUNT)]
    assert min(chunk.start for chunk in exported) == 384


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_what_is_missing_or_damaged_is_made_again(
    engine: LlamaCpp, tokens: Tokens, store: Objects, tmp_path: Path, read: list[Span], damage: str, whole: Manifest
) -> None:
    killed(store, engine, tokens, ("encode", 384))
    hurt = whole.rungs[1].segments[len(whole.chunks) + 1]
    file = tmp_path / "segments" / hurt.id[:2] / hurt.id
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    {"gone": file.unlink, "cut": lambda: file.write_bytes(data[:-1]), "flipped": lambda: file.write_bytes(data)}[
        damage
    ]()
    read.clear()
    assert published(store, engine, tokens)[1] == whole
    assert read[0].start == 128
    assert len(file.read_bytes()) == hurt.size_bytes and file.read_bytes() != bytes(data)


def test_what_is_published_whole_is_only_named_again(
    engine: LlamaCpp, tokens: Tokens, store: Objects, read: list[Span]
) -> None:
    first, made = published(store, engine, tokens)
    read.clear()
    again, same = published(store, engine, tokens, name="another name")
    assert not read and same == made and again.rung_bytes == first.rung_bytes
    assert again.notes == ("all of it was stored before: nothing was read",)
    assert [entry.name for entry in asyncio.run(store.names())] == ["another name", "manual"]
    for other in (tokens[:-1], tokens):
        read.clear()
        published(store, engine, other, ("lossless",))
        assert read  # other tokens, and other rungs, are something else


def test_what_was_removed_is_read_again(
    engine: LlamaCpp, tokens: Tokens, store: Objects, read: list[Span], whole: Manifest
) -> None:
    published(store, engine, tokens)
    asyncio.run(store.remove_name("manual"))
    read.clear()
    assert published(store, engine, tokens)[1] == whole
    assert read[0].start == 0


def test_a_whole_context_of_which_a_segment_is_damaged_is_healed(
    engine: LlamaCpp, tokens: Tokens, store: Objects, tmp_path: Path, read: list[Span], whole: Manifest
) -> None:
    published(store, engine, tokens)
    hurt = whole.rungs[0].segments[3]
    file = tmp_path / "segments" / hurt.id[:2] / hurt.id
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    read.clear()
    assert published(store, engine, tokens)[1] == whole
    assert read == [Span(384, 512), Span(512, COUNT)] and file.read_bytes() == good


@pytest.mark.parametrize("broken", ["nonsense", "of another one"])
def test_a_record_that_cannot_be_used_is_as_none(
    engine: LlamaCpp, tokens: Tokens, store: Objects, tmp_path: Path, read: list[Span], broken: str, whole: Manifest
) -> None:
    published(store, engine, tokens)
    (record,) = (tmp_path / "drafts").iterdir()
    published(store, engine, tokens[:100], name="other")
    (other,) = set((tmp_path / "drafts").iterdir()) - {record}
    record.write_bytes(b"nonsense" if broken == "nonsense" else other.read_bytes())
    read.clear()
    assert published(store, engine, tokens)[1] == whole
    assert read[0].start == 0


def test_a_process_that_is_killed_leaves_a_publication_that_another_one_goes_on_with(
    engine: LlamaCpp, tokens: Tokens, tiny_model: Path, tmp_path: Path, read: list[Span], whole: Manifest
) -> None:
    np.save(tmp_path / "tokens.npy", tokens)
    script = f"""
import asyncio, os, signal
from pathlib import Path
import numpy as np
from preread.cloud.publish import publish
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.store.objects import open_store

def progress(stage, done, total):
    if (stage, done) == ("encode", 384):
        os.kill(os.getpid(), signal.SIGKILL)

engine = LlamaCpp.open(Path({str(tiny_model)!r}), name="tiny", window_tokens=1024)
tokens = np.load({str(tmp_path / "tokens.npy")!r})
store = open_store({str(tmp_path / "store")!r})
asyncio.run(publish(store, engine, Worker(), "manual", tokens, "text", ("lossless", "q8"), progress))
"""
    ended = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), timeout=300)
    assert ended.returncode == -signal.SIGKILL
    store = open_store(str(tmp_path / "store"))
    assert asyncio.run(store.names()) == []
    done, manifest = published(store, engine, tokens)
    assert read == [Span(384, 512), Span(512, COUNT)]
    assert drafts.rows(manifest) == drafts.rows(whole)
    assert [entry.manifest for entry in asyncio.run(store.names())] == [done.entry.manifest]


def test_of_two_that_begin_the_same_one_waits_for_the_other(
    engine: LlamaCpp, tokens: Tokens, store: Objects, tmp_path: Path, read: list[Span]
) -> None:
    stages: dict[str, list[str]] = {"a": [], "b": []}

    async def one(name: str, worker: Worker) -> Published:
        def progress(stage: str, done: int, total: int) -> None:
            stages[name].append(stage)

        mine = open_store(str(tmp_path))
        return await publish(mine, engine, worker, name, tokens, "text", PLAIN, progress)

    async def main() -> None:
        worker = Worker()
        first, second = await asyncio.gather(one("a", worker), one("b", worker))
        worker.close()
        assert first.entry.manifest == second.entry.manifest

    asyncio.run(main())
    assert read == [Span(0, 512), Span(512, COUNT)]
    assert sorted(("wait" in told, "encode" in told) for told in stages.values()) == [(False, True), (True, False)]
