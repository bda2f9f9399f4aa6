"""KV that comes layer by layer and step by step is published as an engine would have done it, object for object."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.cloud.publish import publish
from preread.engine.llamacpp import LlamaCpp
from preread.engine.model import engine_version
from preread.engine.worker import Worker
from preread.store.objects import Objects, open_store
from preread.values import Family, KVBlock, Span
from preread.vllm.checkpoint import Identity
from preread.vllm.plan import Save
from preread.vllm.publishing import Publisher
from preread.vllm.rows import from_cache
from preread.vllm.sides import Storing
from preread.wire.manifest import LOSSLESS

TOKENS = np.arange(700, dtype=np.int32) % 4000
SLOTS = np.zeros(1, np.int64)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024)) as engine:
        yield engine


@pytest.fixture(scope="module")
def whole(engine: LlamaCpp) -> KVBlock:
    engine.session.prefill(TOKENS)
    return engine.session.export(Span(0, len(TOKENS)), Span(0, engine.spec.geometry.layers))


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path / "store"))


def publisher(store: Objects, engine: LlamaCpp) -> Publisher:
    of = engine.spec
    one = Identity(of.name, of.fingerprint, of.vocabulary, of.family or Family(""), of.geometry, True, None)
    return Publisher(store, one, engine.embeddings, (LOSSLESS,), None, engine_version())


def steps(storing: Storing, whole: KVBlock, cuts: list[int], *, bad: bool = False) -> None:
    """What vLLM does: layer after layer of each step, and then its end."""
    for start, stop in zip([0, *cuts], [*cuts, len(TOKENS)], strict=True):
        save = Save("a", "manual", "text", TOKENS, start, stop, SLOTS)
        for layer in range(len(whole.layers)):
            rows = from_cache(whole.k[layer, :, start:stop], whole.v[layer, :, start:stop], near=True)
            k, v = (half.astype(np.float32) for half in rows)
            if bad and start and layer == 3:
                k[0, 0, 0] = np.inf
            storing.put(save, layer, k, v)
        storing.read([save])


@pytest.mark.parametrize("cuts", [[], [512], [100, 101, 300, 699]])
def test_the_objects_are_those_that_an_engine_would_publish(
    store: Objects, engine: LlamaCpp, whole: KVBlock, cuts: list[int], tmp_path: Path
) -> None:
    storing = Storing(publisher(store, engine), near=True)
    steps(storing, whole, cuts)
    storing.close()
    worker, other = Worker(), open_store(str(tmp_path / "other"))
    made = asyncio.run(publish(other, engine, worker, "manual", TOKENS, "text", (LOSSLESS,), lambda *_: None))
    worker.close()
    assert asyncio.run(store.entry("manual")) == made.entry


def test_kv_that_float16_cannot_hold_ends_the_publication_and_nothing_else(
    store: Objects, engine: LlamaCpp, whole: KVBlock, caplog: pytest.LogCaptureFixture
) -> None:
    storing = Storing(publisher(store, engine), near=True)
    steps(storing, whole, [512], bad=True)
    assert "'manual' is not published" in caplog.text
    steps(storing, whole, [512])
    storing.close()
    assert asyncio.run(store.entry("manual")) is not None


def test_a_store_that_cannot_be_written_is_said_and_nobody_waits_for_ever(
    store: Objects, engine: LlamaCpp, whole: KVBlock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    storing = Storing(publisher(store, engine), near=True)
    folder = tmp_path / "store" / "segments"
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where a folder should be")
    steps(storing, whole, [])
    storing.close()
    assert "is not published" in caplog.text and asyncio.run(store.entry("manual")) is None


def test_what_nobody_foresaw_is_said_too(
    store: Objects, engine: LlamaCpp, whole: KVBlock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def put(*_: object) -> None:
        raise ValueError("nobody foresaw this")

    monkeypatch.setattr(store, "put", put)
    storing = Storing(publisher(store, engine), near=True)
    steps(storing, whole, [])
    storing.close()
    assert "'manual' was read, and is not published" in caplog.text and "nobody foresaw this" in caplog.text


def test_what_does_not_begin_here_is_not_published(
    store: Objects, engine: LlamaCpp, whole: KVBlock, caplog: pytest.LogCaptureFixture
) -> None:
    storing = Storing(publisher(store, engine), near=True)
    save = Save("a", "manual", "text", TOKENS, 128, 256, SLOTS)
    rows = np.zeros((128, 1, 64), np.float32)
    storing.put(save, 0, rows, rows)
    storing.read([save])
    storing.close()
    assert "its beginning is not here" in caplog.text
