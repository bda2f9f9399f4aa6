"""A context that was streamed at a thin rung gets better while it is used, and nothing else changes."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preread import Edge
from preread.edge.edge import Answer
from preread.edge.load import Loading, load_spec
from preread.edge.node import Node
from preread.edge.refine import Refinement
from preread.edge.residents import Residents, refinement
from preread.engine.cache import Rows
from preread.errors import EngineError
from preread.testing.beliefs import slow_machine
from preread.testing.proxy import Blackout, Corrupt, Fault, Link, ProxyProcess, Reset, Truncate
from preread.values import ContextId, KVBlock
from preread.wire import manifest as manifests

QUESTION = "What is the code of the pump?"
FAST, SLOW = Link(mbps=400, rtt_ms=2), Link(mbps=2, rtt_ms=2)
TOKENS = 8


class Bench:
    """An edge that streams q8, behind a link that can be broken."""

    def __init__(self, edge: Edge, proxy: ProxyProcess) -> None:
        self.edge, self.proxy = edge, proxy
        self.node = edge.asynchronous.node

    def ask(
        self,
        question: str = QUESTION,
        context: str | None = "manual",
        max_tokens: int = TOKENS,
        *,
        local: bool = False,
    ) -> Answer:
        return self.edge.ask(question, context=context, local=local, max_tokens=max_tokens, temperature=0)

    def cold(self, refine: str | None = "lossless") -> None:
        """A whole link, nothing held, and loading is believed to be far better than computing."""
        self.proxy.set_faults([])
        self.proxy.set_link(FAST)
        self.node.refine = refine
        self.edge.portal.call(self.node.sync)
        self.edge.portal.call(self.node.forget)
        self.node.beliefs = slow_machine()

    @property
    def refinement(self) -> Refinement:
        assert self.node.refinement is not None
        return self.node.refinement

    def refined(self) -> float:
        """The share that is refined, once refining has come to its end."""

        async def wait() -> float:
            while self.refinement.running:
                await asyncio.sleep(0.001)
            return self.refinement.share

        return self.edge.portal.call(wait)

    def rows(self) -> KVBlock:
        """All that the engine holds."""
        (context,) = self.node.core.residents()
        return self.edge.portal.call(self.node.core.export, context)

    def hold_partly_refined(self) -> None:
        """Hold the context with some segments refined and others not, and the refinement at it on a slow link."""
        self.cold(refine=None)
        self.ask()
        self.node.refine = "lossless"
        self.proxy.set_link(SLOW)

        async def begin() -> None:
            node, known = self.node, self.node.contexts.named("manual")
            thin = load_spec(known.rung("q8"), known.tokens, node.preparations)
            rows = await rows_of(node, known.entry.context)
            node.refinement = refinement(known, thin, node, rows)
            self.refinement.go_on()
            while not self.refinement.share:
                await asyncio.sleep(0.001)

        self.edge.portal.call(begin)
        assert 0 < self.refinement.share < 1 and self.refinement.running


@pytest.fixture(scope="module")
def bench(tiny_model: Path, cloud: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    port = int(cloud.url.rpartition(":")[2])
    folder = tmp_path_factory.mktemp("edge")
    with ProxyProcess(port, FAST) as proxy:
        options = {
            "rung": "q8",
            "window_tokens": 512,
            "kv_memory_bytes": 0,
            "folder": folder,
            "sync_s": 3600,
            "threads": 1,
        }
        with Edge(str(tiny_model), proxy.url, **options) as edge:
            edge.portal.call(edge.asynchronous.node.settled)
            yield Bench(edge, proxy)


@pytest.fixture(scope="module")
def thin(bench: Bench) -> tuple[Answer, KVBlock]:
    """What q8 gives: an answer, and the rows that it was made with."""
    bench.cold(refine=None)
    answer = bench.ask()
    assert answer.timings.way == "streamed" and bench.node.refinement is None
    assert (answer.timings.refined_to, answer.timings.refined_share) == (None, 0.0)
    return answer, bench.rows()


@pytest.fixture(scope="module")
def best(bench: Bench, thin: object) -> tuple[Answer, KVBlock]:
    """What this machine computes by itself; that its rows are those of lossless is told by other tests."""
    bench.edge.portal.call(bench.node.forget)
    answer = bench.ask(local=True)
    assert answer.timings.way == "computed"
    return answer, bench.rows()


async def rows_of(node: Node, context: ContextId) -> Rows:
    """The rows of a context that is in the cache."""

    def rows() -> Rows:
        place = node.core._sequences.place(context)
        assert place is not None and place.rows is not None
        return place.rows

    return await node.core.call(rows)


def same(a: KVBlock, b: KVBlock) -> bool:
    return np.array_equal(a.k, b.k) and np.array_equal(a.v, b.v)


def test_the_context_ends_at_the_better_rung_and_the_first_answer_began_on_the_thin_one(
    bench: Bench, thin: tuple[Answer, KVBlock], best: tuple[Answer, KVBlock]
) -> None:
    assert not same(thin[1], best[1])
    bench.cold()
    first = bench.ask(max_tokens=40)
    assert (first.timings.way, first.timings.rung, first.timings.refined_to) == ("streamed", "q8", "lossless")
    assert 0 < first.timings.refined_share <= 1  # while it was answering
    assert first.timings.bytes_received == thin[0].timings.bytes_received
    assert bench.refined() == 1 and same(bench.rows(), best[1])
    again = bench.ask()
    assert (again.text, again.timings.way) == (best[0].text, "resident")
    assert (again.timings.refined_to, again.timings.refined_share) == ("lossless", 1.0)


def test_an_answer_of_one_token_is_followed_by_refinement_too(bench: Bench, best: tuple[Answer, KVBlock]) -> None:
    bench.cold()
    assert bench.ask(max_tokens=1).timings.refined_to == "lossless"
    assert bench.refined() == 1 and same(bench.rows(), best[1])


def test_a_load_that_ends_after_the_first_token_is_followed_by_refinement_too(
    bench: Bench, best: tuple[Answer, KVBlock], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, residents, complete = asyncio.Event(), bench.edge.asynchronous._residents, Loading.complete
    assert residents is not None

    async def late(loading: Loading) -> None:
        await complete(loading)
        await begun.wait()

    def had() -> None:
        Residents.begun(residents)
        begun.set()

    bench.cold()
    monkeypatch.setattr(Loading, "complete", late)
    monkeypatch.setattr(residents, "begun", had)
    bench.ask(max_tokens=40)  # whoever left before the load is complete would end it
    assert bench.refined() == 1 and same(bench.rows(), best[1])


def test_what_was_said_before_is_what_an_unrefined_run_says(bench: Bench, cloud: Any, manual: str) -> None:
    """Where the better segments are gone from the cloud, the whole answer is the thin one's."""
    cloud.publish("only thin", manual[: len(manual) // 2])
    bench.cold(refine=None)
    thin, rows = bench.ask(context="only thin"), bench.rows()
    manifest = bench.node.contexts.named("only thin").manifest
    assert manifest is not None
    for place in manifests.places(manifest, "lossless"):
        (cloud.folder / "segments" / place.ref.id[:2] / place.ref.id).unlink()
    bench.cold()
    answer = bench.ask(context="only thin")
    assert (answer.timings.way, answer.text) == ("streamed", thin.text)
    assert answer.timings.refined_to == "lossless" and bench.refined() == 0 and same(bench.rows(), rows)


@pytest.mark.parametrize("rung", ["q8", "b99", None])
def test_no_better_rung_no_refinement(bench: Bench, thin: tuple[Answer, KVBlock], rung: str | None) -> None:
    bench.cold(refine=rung)
    answer = bench.ask()
    assert (answer.text, answer.timings.way, answer.timings.refined_to) == (thin[0].text, "streamed", None)
    assert bench.node.refinement is None and same(bench.rows(), thin[1])


def test_a_question_interrupts_it_and_after_its_first_token_it_goes_on(
    bench: Bench, best: tuple[Answer, KVBlock]
) -> None:
    bench.hold_partly_refined()
    refinement, seen = bench.refinement, []
    chooser = bench.node.engine.chooser

    def watched(*arguments: Any) -> Any:
        seen.append(refinement.running)
        return chooser(*arguments)

    bench.node.engine.chooser = watched  # type: ignore[method-assign]
    try:
        answer = bench.ask()
    finally:
        del bench.node.engine.chooser
    assert seen == [False] and answer.timings.way == "resident"
    assert bench.refinement is refinement and 0 < answer.timings.refined_share <= 1
    bench.proxy.set_link(FAST)
    assert bench.refined() == 1 and same(bench.rows(), best[1])


def test_a_question_without_context_lets_it_go_on_too(bench: Bench, best: tuple[Answer, KVBlock]) -> None:
    bench.hold_partly_refined()
    alone = bench.ask("Who are you?", None)
    assert (alone.timings.way, alone.timings.refined_to) == ("none", None)
    bench.proxy.set_link(FAST)
    assert bench.refined() == 1 and same(bench.rows(), best[1])


def test_another_context_ends_it_and_gets_none_of_its_rows(bench: Bench, cloud: Any) -> None:
    cloud.publish("lamp", "The red lamp means that the tank is empty. " * 12)
    bench.cold(refine=None)
    bench.ask("What does the red lamp mean?", "lamp")
    lamp = bench.rows()
    bench.hold_partly_refined()
    refinement = bench.refinement
    bench.node.offload.clear()
    bench.proxy.set_link(FAST)
    bench.node.refine = None
    assert bench.ask("What does the red lamp mean?", "lamp").timings.way == "streamed"
    assert not refinement.running and refinement.share < 1 and bench.node.refinement is None
    assert same(bench.rows(), lamp)


def test_a_partly_refined_context_comes_back_from_memory_as_it_was(bench: Bench, cloud: Any) -> None:
    cloud.publish("lamp", "The red lamp means that the tank is empty. " * 12)
    bench.hold_partly_refined()
    bench.edge.portal.call(bench.refinement.pause)
    before = bench.rows()
    bench.proxy.set_link(FAST)
    bench.ask("What does the red lamp mean?", "lamp")
    assert bench.ask().timings.way == "resident" and same(bench.rows(), before)


@pytest.mark.parametrize(
    "fault",
    [Corrupt(at_byte=100_000), Truncate(after_bytes=100_000), Reset(after_bytes=100_000)],
    ids=["corrupt", "truncated", "reset"],
)
def test_a_better_segment_that_is_broken_ends_it_and_nothing_else(
    bench: Bench,
    thin: tuple[Answer, KVBlock],
    best: tuple[Answer, KVBlock],
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench.hold_partly_refined()
    with caplog.at_level(logging.INFO, "preread.edge.refine"):
        bench.proxy.set_faults([fault])
        bench.proxy.set_link(FAST)
        assert 0 < bench.refined() < 1
    assert [record.levelname for record in caplog.records if "not brought to lossless" in record.message] == ["INFO"]
    answer = bench.ask()
    assert answer.timings.way == "resident" and 0 < answer.timings.refined_share < 1 and answer.text
    assert not bench.refinement.running  # it does not try again
    rows = bench.rows()
    manifest = bench.node.contexts.named("manual").manifest
    assert manifest is not None
    from_thin, from_best = (
        np.array([(rows.k == other.k)[:, :, start:stop].all(axis=(1, 2, 3)) for start, stop in manifest.chunks])
        for other in (thin[1], best[1])
    )
    assert (from_thin | from_best).all() and from_best.any() and from_thin.any()  # nothing but whole segments


def test_a_bug_in_refining_leaves_the_answer_as_it_was(
    bench: Bench, thin: tuple[Answer, KVBlock], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    bench.cold()
    monkeypatch.setattr("preread.edge.refine.decoded", fail)
    answer = bench.ask()
    assert (answer.text, answer.timings.way, answer.timings.refined_share) == (thin[0].text, "streamed", 0.0)
    assert bench.refined() == 0 and same(bench.rows(), thin[1])


def test_closing_the_edge_in_the_middle_of_it(bench: Bench, tiny_model: Path, tmp_path: Path) -> None:
    bench.cold()
    options = {"rung": "q8", "refine": "lossless", "window_tokens": 2048, "folder": tmp_path, "threads": 1}
    with Edge(str(tiny_model), bench.proxy.url, **options) as edge:
        edge.asynchronous.node.beliefs = slow_machine()
        assert edge.ask(QUESTION, context="manual", max_tokens=1).timings.way == "streamed"
        bench.proxy.set_faults([Blackout(None)])
        refinement = edge.asynchronous.node.refinement
        assert refinement is not None and refinement.running
    assert not refinement.running


def test_an_engine_that_fails_in_the_middle_of_an_answer_does_not_answer_anew(
    bench: Bench, thin: tuple[Answer, KVBlock]
) -> None:
    bench.cold()
    runner, said = bench.node.engine.runner, []
    run = runner.run

    def failing(slices: Any) -> Any:
        if len(slices[0].tokens) == 1 and len(said) == 3:
            raise EngineError("llama_decode failed")
        said.append(len(slices[0].tokens))
        return run(slices)

    runner.run = failing  # type: ignore[method-assign]
    try:
        with pytest.raises(EngineError, match="llama_decode failed"):
            bench.ask()
    finally:
        del runner.run
    bench.cold(refine=None)
    assert bench.ask().text == thin[0].text
