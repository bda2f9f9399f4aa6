"""Models with sliding windows from end to end: whatever way a context comes, answers are those of local prefill."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
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
from preread.edge.live import Live
from preread.edge.load import Segments
from preread.edge.options import Near, Wishes
from preread.edge.sequences import Sequences
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampling
from preread.engine.worker import Worker
from preread.errors import EngineError
from preread.plan.step import Part, Request
from preread.store.objects import open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import serving
from preread.testing.engine import answer, part, read, rows, same, text
from preread.testing.families import write_family
from preread.values import ContextId, Span
from preread.wire.manifest import SegmentPlace

from .answers import ROUNDING_NATS, check, said, words

ANSWER = 10
NAMES = ("one", "two", "three")

ask = partial(said, answer_tokens=ANSWER)

DOCUMENTS = {name: words(350, seed) for seed, name in enumerate(NAMES)} | {"short": words(180, 9)}
QUESTION = words(9, 7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    return write_family(tmp_path_factory.mktemp("families") / "gemma3.gguf", "gemma3")


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaCpp]:
    """Says what is right: it has nothing but one prompt, computed from its start."""
    with closing(LlamaCpp.open(model, window_tokens=1024, scored_tokens=256, trusted=True)) as engine:
        yield engine


@dataclass(frozen=True)
class Cloud:
    url: str
    bytes_of: dict[str, int]


@pytest.fixture(scope="module")
def cloud(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    with closing(LlamaCpp.open(model, name="gemma3", window_tokens=1024, trusted=True)) as engine:
        worker = Worker()
        with serving(create_app(store, EnginePublisher(engine, worker, store, ("lossless", "q8")))) as url:
            sizes = {}
            for name in DOCUMENTS:
                *_, last = client.publish(url, name, tokens=DOCUMENTS[name], form="text")
                assert isinstance(last, Published)
                sizes[name] = last.rung_bytes["lossless"]
            yield Cloud(url, sizes)
        worker.close()


def opened(model: Path, cloud: Cloud | None, folder: Path, **options: Any) -> AsyncEdge:
    url = None if cloud is None else cloud.url
    return AsyncEdge(str(model), url, rung="lossless", window_tokens=1024, folder=folder, **options)


def test_a_streamed_context_gives_local_prefills_answer_for_fewer_bytes(
    model: Path, cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    async def story() -> None:
        async with opened(model, cloud, tmp_path) as edge:
            assert edge.node.engine.no_injection is None
            edge.node.beliefs = slow_machine()
            said = await ask(edge, QUESTION, "one")
            assert said.timings.way == "streamed"
            assert said.timings.bytes_received < 0.75 * cloud.bytes_of["one"]
            check(engine, said, DOCUMENTS["one"] + QUESTION)
            await edge.node.forget()
            local = await ask(edge, QUESTION, "one", local=True)
            assert local.timings.way == "computed"
            assert (local.tokens, local.logprobs) == (said.tokens, said.logprobs), "not the very bits"

    asyncio.run(story())


def test_the_first_layers_are_computed_while_the_others_come(
    model: Path, cloud: Cloud, engine: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context of one chunk, of which computing takes a little longer than its bytes."""
    computed, get = asyncio.Event(), Segments.get

    async def late(segments: Segments, place: SegmentPlace) -> list[bytes]:
        await computed.wait()
        return await get(segments, place)

    async def story() -> None:
        async with opened(model, cloud, tmp_path, kv_memory_bytes=2**24) as edge:
            assert edge.node.engine.runner.splits_layers
            edge.node.beliefs = slow_machine(180.0, cloud.bytes_of["short"] / 0.6)
            core, compute, layers = edge.node.core, edge.node.core.compute, list[int | None]()

            async def computes(*asked: Any) -> float | None:
                layers.append(asked[3])
                try:
                    return await compute(*asked)
                finally:
                    computed.set()

            monkeypatch.setattr(core, "compute", computes)
            monkeypatch.setattr(Segments, "get", late)
            said = await ask(edge, QUESTION, "short")
            assert said.timings.way == "mixed"
            assert layers[0] is not None and 0 < layers[0] < edge.node.engine.spec.geometry.layers
            if len(layers) == 1:  # or this machine was so much faster than was believed that the rest was computed too
                assert 0 < said.timings.bytes_received < cloud.bytes_of["short"]
            check(engine, said, DOCUMENTS["short"] + QUESTION)

    asyncio.run(story())


def test_contexts_come_back_from_memory_and_from_disk(
    model: Path, cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    near = Near(disk_bytes=2**26, wishes=Wishes(pins=NAMES))

    async def story() -> None:
        async with opened(model, cloud, tmp_path, kv_memory_bytes=0, near=near, keep_conversations_s=0) as edge:
            edge.node.beliefs, sizes = slow_machine(), list[int]()
            for name in NAMES * 2:
                said = await ask(edge, QUESTION, name)
                check(engine, said, DOCUMENTS[name] + QUESTION)
                sizes.append(edge.node.offload.used_bytes)
            assert max(sizes) > 0, "nothing had to make way"
            while not all(holds(edge, name) for name in NAMES):
                await asyncio.sleep(0.05)
        async with opened(model, None, tmp_path, near=near) as edge:
            edge.node.beliefs = slow_machine()
            said = await ask(edge, DOCUMENTS["two"] + words(5, 8))
            assert said.timings.way == "streamed" and said.timings.context == "two"
            check(engine, said, DOCUMENTS["two"] + words(5, 8))

    def holds(edge: AsyncEdge, name: str) -> bool:
        held, known = edge.node.sources.held, edge.node.contexts.named(name)
        assert held is not None
        return all(ref.id in held for place in known.rung("lossless").places for ref in place.refs)

    asyncio.run(story())


def test_many_answers_about_many_contexts_in_few_cells_are_what_each_would_be_alone(
    model: Path, cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    """Cells that windows leave behind are given to others all the time, and contexts make way for each other."""

    async def story() -> None:
        async with opened(model, cloud, tmp_path, kv_memory_bytes=0, cache_ram_bytes=2**21) as edge:
            edge.node.beliefs = slow_machine()
            asked = [(name, words(1 + 7 * n % 40, 100 * n + len(name))) for n in range(6) for name in NAMES]
            said = await asyncio.gather(*(ask(edge, prompt, name) for name, prompt in asked))
            for (name, prompt), one in zip(asked, said, strict=True):
                check(engine, one, DOCUMENTS[name] + prompt)
            assert edge.node.engine.no_injection is None
            for n, ((name, prompt), one) in enumerate(zip(asked, said, strict=True)):
                if n % 3 == 1:  # the next turn of what was said, one more, and one that takes back half an answer
                    turn = prompt + one.tokens
                    for kept, goes_on in ((ANSWER, None), (ANSWER, True), (ANSWER // 2, False)):
                        turn = turn[: len(turn) - ANSWER + kept] + words(20, n)
                        said_next = await ask(edge, turn, name)
                        check(engine, said_next, DOCUMENTS[name] + turn)
                        if goes_on is not None:
                            assert (said_next.timings.cache_n > len(DOCUMENTS[name])) == goes_on
                        turn = turn + said_next.tokens

    asyncio.run(story())


def test_a_prompt_that_leaves_a_context_before_its_end_is_computed_alone(
    model: Path, cloud: Cloud, engine: LlamaCpp, tmp_path: Path
) -> None:
    async def story() -> None:
        async with opened(model, cloud, tmp_path) as edge:
            edge.node.beliefs = slow_machine()
            await ask(edge, QUESTION, "one")
            for prompt in (DOCUMENTS["one"], DOCUMENTS["one"][:-3], DOCUMENTS["one"][:-3] + words(6, 10)):
                said = await ask(edge, prompt)
                assert said.timings.way in ("none", "computed") and said.timings.cache_n == 0
                check(engine, said, prompt)

    asyncio.run(story())


@pytest.fixture(scope="module")
def shared(model: Path) -> Iterator[LlamaCpp]:
    """An engine of 512 cells that many share."""
    with closing(LlamaCpp.open(model, window_tokens=512, kv_memory_bytes=0, trusted=True)) as engine:
        yield engine


def test_a_context_is_computed_in_stretches_while_others_take_what_its_windows_leave_behind(shared: LlamaCpp) -> None:
    context, tokens, prompt = ContextId("c"), text(shared, 300), text(shared, 9, seed=1)
    own, user, other = shared.sequences[-3:]
    read(shared, own, tokens)
    block = rows(shared, own, 300)
    shared.cache.share(own, user, Span(0, 300))
    expected = answer(shared, user, prompt, 300)
    for sequence in (own, user):
        shared.cache.free(sequence)
    sequences = Sequences(shared)
    for sequence in (own, user, other):
        sequences._free.remove(sequence)
    sequences.bring(context, 300)
    into = sequences.reserve(context)
    for start, stop in ((0, 128), (128, 192), (192, 256)):
        fill = sequences.fill(context, tokens[start:stop], start, Future())
        read(shared, fill.sequence, fill.tokens, start)
        sequences.filled(fill)
        for seed in range(4):  # in all cells that they can get
            read(shared, other, text(shared, 200, seed=seed))
            shared.cache.free(other)
    shared.cache.inject(into, part(block, Span(256, 300), block.layers))
    sequences.settle(context)
    place = sequences.place(context)
    assert place is not None
    found = rows(shared, place.sequence, 300)
    np.testing.assert_allclose(found.k.astype(np.float32), block.k.astype(np.float32), atol=0.05)
    shared.cache.share(place.sequence, user, Span(0, 300))
    for one, right in zip(answer(shared, user, prompt, 300), expected, strict=True):
        assert one.logprob == pytest.approx(right.logprob, abs=ROUNDING_NATS)
    free = sequences.free
    sequences.drop(context)
    assert sequences.free == free + 1, "what was computed first still has a sequence"
    shared.cache.free(user)


def test_first_layers_are_computed_in_stretches_while_others_take_what_windows_leave_behind(shared: LlamaCpp) -> None:
    """The same bits, whoever else is in the cache, and whatever comes of the other layers meanwhile."""
    context, tokens, prompt = ContextId("c"), text(shared, 192), text(shared, 9, seed=1)
    own, user, other = shared.sequences[-3:]
    read(shared, own, tokens[:96])
    read(shared, own, tokens[96:], 96)
    shared.cache.share(own, user, Span(0, 192))
    block, expected = rows(shared, own, 192), answer(shared, user, prompt, 192)
    for sequence in (own, user):
        shared.cache.free(sequence)
    sequences, layers = Sequences(shared), 2
    for sequence in (own, user, other):
        sequences._free.remove(sequence)
    sequences.bring(context, 192)
    into = sequences.reserve(context)
    for start, stop in ((0, 96), (96, 192)):
        fill = sequences.fill(context, tokens[start:stop], start, Future(), layers)
        shared.runner.arm()
        shared.runner.run([fill.slice(Part(0, stop - start, False))])
        upper = Span(layers, shared.spec.geometry.layers)
        shared.cache.inject(into, part(block, fill.span, upper))
        sequences.filled(fill)
        read(shared, other, text(shared, 60, seed=start))  # in all cells that it can get
        shared.cache.free(other)
    with pytest.raises(EngineError, match="behind rows that are not kept"):
        sequences.fill(context, tokens[191:], 191, Future(), layers + 1)
    sequences.settle(context)
    place = sequences.place(context)
    assert place is not None
    assert same(rows(shared, place.sequence, 192), block)
    shared.cache.share(place.sequence, user, Span(0, 192))
    assert answer(shared, user, prompt, 192) == expected
    free = sequences.free
    sequences.drop(context)
    assert sequences.free == free + 1
    shared.cache.free(user)


def test_no_stretch_is_computed_behind_rows_that_came(shared: LlamaCpp) -> None:
    context, tokens = ContextId("c"), text(shared, 300)
    sequences = Sequences(shared)
    sequences.bring(context, 300)
    sequences.reserve(context)
    with pytest.raises(EngineError, match="behind rows that are not kept"):
        sequences.fill(context, tokens[128:192], 128, Future())
    sequences.drop(context)
    assert sequences.free == len(shared.sequences)


@pytest.mark.parametrize(("kept", "tokens"), [(80, 80), (60, 0)])
def test_a_conversation_is_kept_whole_or_not_at_all(shared: LlamaCpp, kept: int, tokens: int) -> None:
    """More may have been computed than the schedule knows when somebody leaves: its windows have moved on."""
    sequences = Sequences(shared)
    live = Live(Request(0, "anyone", 80, 1), text(shared, 80), text(shared, 0), Sampling(), 80)
    sequences.begin(live)
    assert live.sequence is not None
    read(shared, live.sequence, live.tokens)
    live.done = 80
    conversation = sequences.keep(live, kept)
    assert len(conversation.tokens) == tokens
    sequences.let_go(conversation)
    assert sequences.free == len(shared.sequences)
