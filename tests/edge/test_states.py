"""Recurrent and hybrid models from end to end: whatever way a context comes, answers are those of local prefill."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.events import Published
from preread.cloud.serve import EnginePublisher
from preread.edge.edge import AsyncEdge
from preread.edge.options import Near, Wishes
from preread.edge.sequences import Sequences
from preread.engine.base import Slice
from preread.engine.llamacpp import LlamaCpp
from preread.engine.states import having_state
from preread.engine.worker import Worker
from preread.errors import EngineError
from preread.store.objects import Objects, open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import serving
from preread.testing.engine import answer, read, step, text
from preread.testing.families import LAYERS, write_family
from preread.values import ContextId, KVBlock, Span

from .answers import ROUNDING_NATS, check, said, words

TRIED = ("falcon-h1", "lfm2", "mamba2", "qwen35")
OTHERS = ("granitehybrid", "jamba", "mamba", "nemotron_h", "qwen3next", "rwkv7")
ANSWER = 8
NAMES = ("one", "two", "three")

ask = partial(said, answer_tokens=ANSWER)

DOCUMENTS = {name: words(350, seed) for seed, name in enumerate(NAMES)}
QUESTION = words(9, 7)


@dataclass(frozen=True)
class Cloud:
    model: Path
    url: str
    store: Objects


@pytest.fixture(scope="module", params=[*TRIED, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    model = write_family(tmp_path_factory.mktemp("families") / f"{request.param}.gguf", request.param)
    store = open_store(str(tmp_path_factory.mktemp("store")))
    with closing(LlamaCpp.open(model, name=request.param, window_tokens=1024, trusted=True)) as engine:
        worker = Worker()
        with serving(create_app(store, EnginePublisher(engine, worker, store, ("lossless", "q8")))) as url:
            for name in NAMES:
                *_, last = client.publish(url, name, tokens=DOCUMENTS[name], form="text")
                assert isinstance(last, Published)
            yield Cloud(model, url, store)
        worker.close()


@pytest.fixture(scope="module")
def engine(cloud: Cloud) -> Iterator[LlamaCpp]:
    """Says what is right: it has nothing but one prompt, computed from its start."""
    with closing(LlamaCpp.open(cloud.model, window_tokens=1024, scored_tokens=256, trusted=True)) as engine:
        yield engine


def opened(cloud: Cloud, folder: Path, url: str | None = "", **options: Any) -> AsyncEdge:
    where = cloud.url if url == "" else url
    return AsyncEdge(str(cloud.model), where, rung="lossless", window_tokens=1024, folder=folder, **options)


def test_a_streamed_context_gives_local_prefills_very_bits(cloud: Cloud, engine: LlamaCpp, tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(cloud, tmp_path) as edge:
            assert edge.node.engine.no_injection is None
            edge.node.beliefs = slow_machine()
            said = await ask(edge, QUESTION, "one")
            assert said.timings.way == "streamed"
            check(engine, said, DOCUMENTS["one"] + QUESTION)
            again = await ask(edge, QUESTION, "one")
            assert again.timings.way == "resident" and again.tokens == said.tokens
            await edge.node.forget()
            local = await ask(edge, QUESTION, "one", local=True)
            assert local.timings.way == "computed"
            assert (local.tokens, local.logprobs) == (said.tokens, said.logprobs), "not the very bits"

    asyncio.run(story())


def test_many_answers_about_many_contexts_are_what_each_would_be_alone(
    cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    """Contexts make way for each other, and go on from their states many times."""

    async def story() -> None:
        async with opened(cloud, tmp_path, kv_memory_bytes=0) as edge:
            edge.node.beliefs = slow_machine()
            asked = [(name, words(1 + 7 * n % 40, 100 * n + len(name))) for n in range(3) for name in NAMES]
            said = await asyncio.gather(*(ask(edge, prompt, name) for name, prompt in asked))
            for (name, prompt), one in zip(asked, said, strict=True):
                check(engine, one, DOCUMENTS[name] + prompt)
            assert edge.node.offload.used_bytes > 0, "nothing had to make way"
            for name in NAMES:  # from memory, if it is not resident
                check(engine, await ask(edge, QUESTION, name), DOCUMENTS[name] + QUESTION)
            turn = asked[0][1] + said[0].tokens + words(5, 1)
            check(engine, await ask(edge, turn, NAMES[0]), DOCUMENTS[NAMES[0]] + turn)

    asyncio.run(story())


def test_a_fast_machine_computes_and_a_slow_link_is_not_waited_for(
    cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    async def story() -> None:
        async with opened(cloud, tmp_path) as edge:
            for name in NAMES:
                said = await ask(edge, QUESTION, name)
                assert said.timings.way in ("streamed", "mixed", "computed")
                check(engine, said, DOCUMENTS[name] + QUESTION)

    asyncio.run(story())


def test_where_what_is_copied_would_be_something_else_nothing_is_computed_beside_what_comes(
    cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    async def story() -> None:
        async with opened(cloud, tmp_path) as edge:
            edge.node.engine.runner.splits_layers = False
            for name in NAMES:
                said = await ask(edge, QUESTION, name)
                assert said.timings.way in ("streamed", "computed")
                check(engine, said, DOCUMENTS[name] + QUESTION)
            core, context = edge.node.core, edge.node.contexts.named("one").entry.context
            await edge.node.forget()
            core._sequences.bring(context, 350)
            await core.reserve(context)
            assert await core.compute(context, np.array(DOCUMENTS["one"][:128], np.int32), 0) is None
            core._sequences.drop(context)

    asyncio.run(story())


def test_without_room_beside_a_context_all_of_it_comes_or_all_is_computed(
    cloud: Cloud, engine: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with opened(cloud, tmp_path) as edge:
            plan = edge.node.core._plan
            monkeypatch.setattr(plan, "spare", lambda _, cells, at_s: not cells)
            for name in NAMES:
                said = await ask(edge, QUESTION, name)
                assert said.timings.way in ("streamed", "computed")
                check(engine, said, DOCUMENTS[name] + QUESTION)

    asyncio.run(story())


def test_contexts_come_back_from_the_disk_and_prompts_that_leave_one_early_are_computed_alone(
    cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    near = Near(disk_bytes=2**26, wishes=Wishes(pins=NAMES))

    async def story() -> None:
        async with opened(cloud, tmp_path, near=near) as edge:
            edge.node.beliefs = slow_machine()
            for name in NAMES:
                check(engine, await ask(edge, QUESTION, name), DOCUMENTS[name] + QUESTION)
            while not all(holds(edge, name) for name in NAMES):
                await asyncio.sleep(0.05)
        async with opened(cloud, tmp_path, None, near=near) as edge:
            edge.node.beliefs = slow_machine()
            said = await ask(edge, DOCUMENTS["two"] + words(5, 8))
            assert said.timings.way == "streamed" and said.timings.context == "two"
            check(engine, said, DOCUMENTS["two"] + words(5, 8))
            for prompt in (DOCUMENTS["two"], DOCUMENTS["two"][:-3] + words(6, 10)):
                alone = await ask(edge, prompt)
                assert alone.timings.cache_n == 0
                check(engine, alone, prompt)

    def holds(edge: AsyncEdge, name: str) -> bool:
        held, known = edge.node.sources.held, edge.node.contexts.named(name)
        assert held is not None
        return all(ref.id in held for place in known.rung("lossless").places for ref in place.refs)

    asyncio.run(story())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    """An engine that many share."""
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(tmp_path_factory.mktemp("families") / "lfm2.gguf", "lfm2")
    with closing(LlamaCpp.open(path, window_tokens=1024, kv_memory_bytes=0, trusted=True)) as engine:
        yield engine


@pytest.mark.parametrize("cuts", [(0, 128, 192), (0, 128, 192, 300)])
def test_a_contexts_beginning_is_computed_beside_what_comes_of_it(shared: LlamaCpp, cuts: tuple[int, ...]) -> None:
    context, tokens, prompt, layers = ContextId("c"), text(shared, 300), text(shared, 9, seed=1), Span(0, LAYERS)
    own, user = shared.sequences[-2:]
    for start, stop in pairwise((0, 128, 192, 300)):
        read(shared, own, tokens[start:stop], start)
    block = shared.cache.export(own, Span(0, 300), layers)
    state = shared.cache.export_state(own, having_state(shared.spec.layers))
    shared.cache.share(own, user, Span(0, 300))
    expected = answer(shared, user, prompt, 300)
    for sequence in (own, user):
        shared.cache.free(sequence)
    sequences = Sequences(shared)
    for sequence in (own, user):
        sequences._free.remove(sequence)
    free = sequences.free
    sequences.bring(context, 300)
    into = sequences.reserve(context)
    given_up = sequences.fill(context, tokens[:128], 0, Future())
    read(shared, given_up.sequence, tokens[:50])
    sequences.undo(given_up)
    if cuts[-1] < 300:
        shared.cache.inject_state(into, state)
    for start, stop in pairwise(cuts):
        fill = sequences.fill(context, tokens[start:stop], start, Future())
        step(shared, Slice(fill.sequence, fill.tokens, start, layers=fill.layers, rows=fill.rows))
        sequences.filled(fill)
    if cuts[-1] < 300:
        at = slice(cuts[-1], 300)
        shared.cache.inject(into, KVBlock(Span(cuts[-1], 300), layers, block.k[:, :, at], block.v[:, :, at]))
    sequences.settle(context)
    place = sequences.place(context)
    assert place is not None
    found = shared.cache.export(place.sequence, Span(0, 300), layers)
    np.testing.assert_allclose(found.k.astype(np.float32), block.k.astype(np.float32), atol=0.02)
    again = shared.cache.export_state(place.sequence, state.layers)
    np.testing.assert_allclose(again.r, state.r, atol=1e-4)
    shared.cache.share(place.sequence, user, Span(0, 300))
    for one, right in zip(answer(shared, user, prompt, 300), expected, strict=True):
        assert one.logprob == pytest.approx(right.logprob, abs=ROUNDING_NATS)
    sequences.drop(context)
    assert sequences.free == free, "what was computed has a sequence still"
    shared.cache.free(user)


def test_no_stretch_is_computed_behind_a_state_that_nobody_has(shared: LlamaCpp) -> None:
    context, sequences = ContextId("c"), Sequences(shared)
    sequences.bring(context, 300)
    sequences.reserve(context)
    with pytest.raises(EngineError, match="behind rows that are not kept"):
        sequences.fill(context, text(shared, 64), 128, Future())
    sequences.drop(context)
    assert sequences.free == len(shared.sequences)
