"""Models whose layers keep different things, from end to end: cloud, wire, edge, and local prefill's very bits."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import llama_cpp
import pytest

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.events import Published, Request
from preread.cloud.publish import needed
from preread.cloud.serve import EnginePublisher
from preread.edge.edge import AsyncEdge
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.store.objects import Objects, open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import serving
from preread.testing.families import write_family
from preread.wire import manifest as manifests

from .answers import said, words

KINDS = {
    "gemma4": "windows, two sizes of heads, half of the layers without KV of their own",
    "gemma3n": "windows, and layers that read another's KV",
    "minicpm3": "K wider than V",
    "deepseek2": "latent rows, which stand for K and V (MLA)",
    "qwen2vl": "positions of several axes (M-RoPE)",
}
RUNGS = ("lossless", "q8", "q4")
ANSWER = 6


ask = partial(said, answer_tokens=ANSWER)

DOCUMENT, QUESTION = words(230, 1), words(9, 2)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(tmp_path_factory.mktemp("families") / f"{request.param}.gguf", request.param)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return open_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def url(model: Path, store: Objects) -> Iterator[str]:
    with closing(LlamaCpp.open(model, window_tokens=512, trusted=True)) as engine:
        worker = Worker()
        with serving(create_app(store, EnginePublisher(engine, worker, store, RUNGS))) as url:
            *_, last = client.publish(url, "document", tokens=DOCUMENT, form="text")
            assert isinstance(last, Published) and set(last.rung_bytes) == {*RUNGS}
            yield url
        worker.close()


def opened(model: Path, url: str, folder: Path, rung: str) -> AsyncEdge:
    return AsyncEdge(str(model), url, rung=rung, window_tokens=512, folder=folder)


def test_a_streamed_context_gives_the_very_bits_of_local_prefill(model: Path, url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(model, url, tmp_path / "one", "lossless") as edge:
            assert edge.node.engine.no_injection is None
            edge.node.beliefs = slow_machine()
            streamed = await ask(edge, QUESTION, "document")
        async with opened(model, url, tmp_path / "other", "lossless") as edge:  # whose cells lie as the first one's did
            local = await ask(edge, QUESTION, "document", local=True)
            assert (streamed.timings.way, local.timings.way) == ("streamed", "computed")
            assert (streamed.tokens, streamed.logprobs) == (local.tokens, local.logprobs)

    asyncio.run(story())


def test_coarser_rungs_come_and_are_near(model: Path, url: str, tmp_path: Path) -> None:
    async def story() -> None:
        for rung, most in (("q8", 0.02), ("q4", 0.2)):
            async with opened(model, url, tmp_path / rung, rung) as edge:
                edge.node.beliefs = slow_machine()
                coded = await ask(edge, QUESTION, "document")
                await edge.node.forget()
                exact = await ask(edge, QUESTION, "document", local=True)
                assert (coded.timings.way, coded.timings.rung) == ("streamed", rung)
                if model.stem == "gemma4":  # its attention is unscaled: of random weights it looks at one token only
                    continue
                assert abs(coded.logprobs[0] - exact.logprobs[0]) < most

    asyncio.run(story())


def test_manifests_say_layer_by_layer_what_they_must(model: Path, url: str, store: Objects) -> None:
    async def read() -> manifests.Manifest:
        (entry,) = await store.names()
        data = await store.read("manifests", entry.manifest.id)
        assert data is not None and (b'"version":2' in data) == (model.stem != "qwen2vl")
        return manifests.loads(data)

    manifest = asyncio.run(read())
    with closing(LlamaCpp.open(model, window_tokens=512, trusted=True)) as engine:
        assert [layer.rows for layer in manifest.model.layers] == [layer.rows for layer in engine.spec.layers]
    if model.stem == "gemma4":
        assert {layer.rows and layer.rows.k_dim for layer in manifest.model.layers} == {128, 256, None}


def test_without_rungs_to_choose_a_context_is_published_losslessly(model: Path) -> None:
    with closing(LlamaCpp.open(model, window_tokens=512, trusted=True)) as engine:
        assert needed(None, engine.spec.layers) == (model.stem == "qwen2vl"), "a profile would be fitted"
        assert needed(("b2",), engine.spec.layers) and not needed(RUNGS, engine.spec.layers)
        if needed(None, engine.spec.layers):
            return
        worker, store = Worker(), open_store("memory:")
        try:
            ask = Request(name="plain", tokens=[*DOCUMENT[:80]], form="text")
            published = asyncio.run(EnginePublisher(engine, worker, store, None)(ask, lambda *_: None))
        finally:
            worker.close()
    assert [*published.rung_bytes] == ["lossless"]
