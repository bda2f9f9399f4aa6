"""What a document would be if it were published: with a real model, and over real HTTP."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.counting import EngineCounter
from preread.cloud.events import Published, Request
from preread.cloud.profiles import keep
from preread.cloud.serve import EnginePublisher
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import Absent, UsageError
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher, serving
from preread.testing.profile import plain_profile

TEXT = "The filter is changed every week. " * 2
WINDOW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Bench:
    """A model, and stores that clouds with it publish to."""

    engine: LlamaCpp
    worker: Worker
    reader: Worker

    def cloud(self, store: Objects, rungs: tuple[str, ...] | None) -> Starlette:
        counter = EngineCounter(self.engine, self.reader, store, rungs)
        return create_app(store, EnginePublisher(self.engine, self.worker, store, rungs), counter=counter)


@pytest.fixture(scope="module")
def bench(tiny_model: Path) -> Iterator[Bench]:
    with closing(LlamaCpp.open(tiny_model, name="tiny", window_tokens=WINDOW_TOKENS)) as engine:
        worker, reader = Worker(), Worker("reader")
        yield Bench(engine, worker, reader)
        reader.close()
        worker.close()


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path))


def published(url: str, name: str, text: str) -> Published:
    *_, last = client.publish(url, name, text=text)
    assert isinstance(last, Published)
    return last


def test_what_is_counted_is_what_is_published(bench: Bench, store: Objects) -> None:
    with serving(bench.cloud(store, ("lossless",))) as url:
        for form in ("auto", "chat", "text"):
            counted = client.count(url, form, text=TEXT, form=form)  # type: ignore[arg-type]
            *_, last = client.publish(url, form, text=TEXT, form=form)  # type: ignore[arg-type]
            assert isinstance(last, Published)
            assert (counted.token_count, counted.context) == (last.entry.token_count, last.entry.context)
            assert (counted.model, counted.most_tokens, counted.current) == ("tiny", WINDOW_TOKENS - 64, False)
        ids = client.count(url, "a", tokens=[5, 6, 7])
        assert ids.token_count == 3 and ids.context is not None


def test_only_what_publishing_would_make_anew_is_current(bench: Bench, store: Objects) -> None:
    with serving(bench.cloud(store, ("lossless",))) as url:
        published(url, "manual", TEXT)
        assert client.count(url, "manual", text=TEXT).current
        assert not client.count(url, "another", text=TEXT).current
        assert not client.count(url, "manual", text=TEXT + ".").current
        assert not client.count(url, "manual", text=TEXT, form="text").current
        assert not client.count(url, "manual", text=TEXT, mode="auto").current
    with serving(bench.cloud(store, ("lossless", "q8"))) as url:
        assert not client.count(url, "manual", text=TEXT).current
        published(url, "manual", TEXT)
        assert client.count(url, "manual", text=TEXT).current
    with serving(bench.cloud(store, ("q8",))) as url:
        assert client.count(url, "manual", text=TEXT).current  # it has that, and more


def test_what_was_published_with_another_profile_is_not_current(bench: Bench, store: Objects) -> None:
    engine = bench.engine
    width = engine.embeddings(engine.tokenize("a")).shape[1]
    profile = plain_profile(engine.spec.fingerprint, engine.spec.geometry, width, {"b4": (0.5, 0.001)})
    with serving(bench.cloud(store, None)) as url:
        assert not client.count(url, "manual", text=TEXT).current  # nor is a profile fitted to tell
        asyncio.run(keep(store, profile))
        published(url, "manual", TEXT)
        assert client.count(url, "manual", text=TEXT).current
        asyncio.run(keep(store, replace(profile, calibration="another text")))
        assert not client.count(url, "manual", text=TEXT).current


def test_what_was_read_with_help_is_not_current(bench: Bench, store: Objects) -> None:
    counter = EngineCounter(bench.engine, bench.reader, store, ("lossless",))
    with serving(bench.cloud(store, ("lossless",))) as url:
        entry = published(url, "manual", TEXT).entry

    async def main() -> None:
        from preread.wire import manifest

        data = await store.read("manifests", entry.manifest.id)
        assert data is not None
        made = manifest.loads(data)
        mapped = msgspec.structs.replace(made, origin=msgspec.structs.replace(made.origin, mode="mapped"))
        ref = await store.put("manifests", manifest.dumps(mapped))
        await store.put_name(msgspec.structs.replace(entry, manifest=manifest.SizedId(ref.id, ref.size_bytes)))
        assert not (await counter(Request("manual", TEXT))).current

    asyncio.run(main())


@pytest.mark.parametrize("words", [400, 4_000, 100_000])
def test_a_document_that_is_too_long_is_counted_as_far_as_it_was_read(bench: Bench, store: Objects, words: int) -> None:
    text = " ".join(str(n) for n in range(words))
    counter = EngineCounter(bench.engine, bench.reader, store, ("lossless",))
    counted = asyncio.run(counter(Request("a", text)))
    tokens = len(bench.engine.tokenize(text))
    assert counted.most_tokens < counted.token_count and not counted.current
    assert (counted.token_count >= tokens) if counted.context else (counted.token_count <= tokens)
    ids = asyncio.run(counter(Request("a", tokens=[1] * words)))
    assert (ids.token_count, ids.context) == (words, None)


def test_what_could_not_be_published_is_not_counted(bench: Bench, store: Objects) -> None:
    with serving(bench.cloud(store, ("lossless",))) as url:
        for text, words in ((" \n", "is empty"), ("", "is empty")):
            with pytest.raises(UsageError, match=words):
                client.count(url, "a", text=text)
        with pytest.raises(UsageError, match="token ids must lie"):
            client.count(url, "a", tokens=[10**6])
        with pytest.raises(UsageError, match="cannot name a context"):
            client.count(url, "a/b", text=TEXT)


def test_counting_does_not_wait_for_what_is_published(bench: Bench, store: Objects) -> None:
    begun, over = threading.Event(), threading.Event()

    def compute() -> None:
        begun.set()
        over.wait(60)

    bench.worker.soon(compute)
    with serving(bench.cloud(store, ("lossless",))) as url:
        assert begun.wait(60)
        assert client.count(url, "a", text=TEXT).token_count > 0
        over.set()


def test_a_key_that_may_only_read_may_not_have_documents_read(store: Objects) -> None:
    publisher = RandomPublisher(store)
    access = Access(Keys.of(("read:r", "publish:p"), "read"))
    with serving(create_app(store, publisher, access, publisher.counted)) as url:
        assert client.count(url, "a", text="abc", api_key="p").token_count == 3
        with pytest.raises(UsageError, match="scope"):
            client.count(url, "a", text="abc", api_key="r")


def test_clouds_that_do_not_count_say_so(store: Objects) -> None:
    of_before = create_app(store, RandomPublisher(store))
    of_before.router.routes[:] = [one for one in of_before.router.routes if getattr(one, "path", "") != "/v1/count"]
    with serving(of_before) as url, pytest.raises(Absent, match="may be older than this command"):
        client.count(url, "a", text="abc")
    with serving(create_app(store, RandomPublisher(store))) as url, pytest.raises(UsageError, match="runs no model"):
        client.count(url, "a", text="abc")
