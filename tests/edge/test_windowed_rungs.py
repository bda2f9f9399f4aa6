"""Fitted rungs of a model with windows and two rotations, from end to end."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.events import Published
from preread.cloud.profiles import keep
from preread.cloud.serve import EnginePublisher
from preread.edge.edge import AsyncEdge
from preread.edge.request import Ask, Piece, Timings
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampling
from preread.engine.worker import Worker
from preread.fit.codec import profile_groups
from preread.store.objects import open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import serving
from preread.testing.families import LAYERS, VOCABULARY, WINDOW, write_family
from preread.testing.profile import plain_profile
from preread.values import KVBlock, Span

TOKENS, ANSWER = 350, 8
DOCUMENT = np.random.default_rng(1).integers(1, VOCABULARY, TOKENS).tolist()
QUESTION = np.random.default_rng(2).integers(1, VOCABULARY, 9).tolist()
RUNGS = {"b4": (0.01, 0.0001), "b2": (0.1, 0.001)}
"""Steps in units of K and V, and changes of the loss, which nobody measured."""

WINDOWS = (WINDOW, None) * (LAYERS // 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    folder = tmp_path_factory.mktemp("families")
    return write_family(folder / "gemma3.gguf", "gemma3", more={"rope.freq_base": 1e6})


@pytest.fixture(scope="module")
def exact(model: Path) -> KVBlock:
    """What the model caches of the document."""
    with closing(LlamaCpp.open(model, window_tokens=1024, trusted=True)) as engine:
        engine.session.prefill(np.array(DOCUMENT, np.int32))
        return engine.session.export(Span(0, TOKENS), Span(0, LAYERS))


@pytest.fixture(scope="module")
def cloud(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, int]]]:
    """A cloud that publishes the document with a profile, and the bytes of all of each rung."""
    store = open_store(str(tmp_path_factory.mktemp("store")))
    with closing(LlamaCpp.open(model, name="gemma3", window_tokens=1024, trusted=True)) as engine:
        width = engine.embeddings(np.zeros(1, np.int32)).shape[1]
        spec, groups = engine.spec, profile_groups(engine.spec.windows, engine.spec.geometry)
        assert spec.windows == WINDOWS and len({id(rope) for rope in engine.ropes}) == 2
        profile = plain_profile(spec.fingerprint, spec.geometry, width, RUNGS, groups, engine.ropes)
        asyncio.run(keep(store, profile))
        worker = Worker()
        with serving(create_app(store, EnginePublisher(engine, worker, store))) as url:
            *_, published = client.publish(url, "one", tokens=DOCUMENT, form="text")
            assert isinstance(published, Published)
            yield url, published.rung_bytes
        worker.close()


async def ask(edge: AsyncEdge) -> Timings:
    sampling = Sampling(max_tokens=ANSWER, min_tokens=ANSWER)
    async for piece in edge.answer(Ask(prompt=tuple(QUESTION), context="one", sampling=sampling)):
        if not isinstance(piece, Piece):
            return piece.timings
    raise AssertionError("the answer does not end")


def furthest(found: KVBlock, exact: KVBlock) -> float:
    """The largest error in rows that something behind the context looks at."""
    errors = np.abs(np.stack([found.k, found.v]).astype(np.float32) - np.stack([exact.k, exact.v]))
    kept = [errors[:, layer, :, 0 if window is None else 1 - window :] for layer, window in enumerate(WINDOWS)]
    return max(float(part.max()) for part in kept)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_fitted_rung_comes_for_what_windows_see_and_gets_better(
    model: Path, cloud: tuple[str, dict[str, int]], exact: KVBlock, tmp_path: Path, rung: str
) -> None:
    url, sizes = cloud

    async def story() -> None:
        options = {"rung": rung, "window_tokens": 1024, "folder": tmp_path, "refine": None}
        async with AsyncEdge(str(model), url, **options) as edge:
            assert edge.node.engine.no_injection is None
            edge.node.beliefs = slow_machine()
            timings = await ask(edge)
            assert (timings.way, timings.rung) == ("streamed", rung)
            assert timings.bytes_received < 0.75 * sizes[rung]
            (context,) = edge.node.core.residents()
            # A coefficient is off by half a step, or by one where a smaller symbol is cheaper; some are left out.
            error = furthest(await edge.node.core.export(context), exact)
            assert 0 < error < 3 * RUNGS[rung][0] + 0.01
            await edge.node.forget()
            edge.node.refine, edge.node.beliefs = "lossless", slow_machine()
            await ask(edge)
            assert edge.node.refinement is not None
            while edge.node.refinement.running:
                await asyncio.sleep(0.005)
            assert edge.node.refinement.share == 1
            (context,) = edge.node.core.residents()
            assert furthest(await edge.node.core.export(context), exact) == 0

    asyncio.run(story())
