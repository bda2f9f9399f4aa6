"""The edge's story over real sockets and llama.cpp: whatever happens on the link, the answer is the same."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from preread import Edge
from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.publish import refuse
from preread.edge.edge import Answer, AsyncEdge
from preread.edge.request import Ask, Done, Piece, TokenOdds
from preread.engine.cache import Rows
from preread.engine.sampling import Sampling
from preread.errors import TooLong, Unavailable, UnknownContext, UsageError
from preread.store.objects import Objects, open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import serving
from preread.testing.proxy import Blackout, Corrupt, Fault, Link, ProxyProcess, Refuse, Reset, Truncate
from preread.values import ContextId, Fingerprint, KVBlock, ObjectRef
from preread.wire import manifest as manifests
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id
from preread.wire.fields import SizedId
from preread.wire.tokens import unpack

QUESTION = "What is the code of the pump?"
FAST = Link(mbps=400, rtt_ms=2)
ROUNDING = 0.2
"""Nats by which a step's size changes a token's odds, at most: a model of random weights has nearly equal ones."""

SLOW_TOKENS_S = 400.0

Computed = tuple[Answer, KVBlock]


class Bench:
    """An edge behind a link that can be broken."""

    def __init__(self, edge: Edge, proxy: ProxyProcess) -> None:
        self.edge, self.proxy = edge, proxy
        self.node = edge.asynchronous.node
        self._found = self.node.beliefs

    def ask(self, question: str = QUESTION, context: str | None = "manual", *, local: bool = False) -> Answer:
        return self.edge.ask(question, context=context, local=local, max_tokens=8, temperature=0)

    @property
    def held(self) -> bool:
        """Whether the engine holds a context."""
        return bool(self.node.core.residents())

    def rows(self) -> KVBlock:
        """All that the engine holds."""
        (context,) = self.node.core.residents()
        return self.edge.portal.call(self.node.core.export, context)

    def cold(self) -> None:
        """A whole link, nothing held, nothing known of the link, and of computing what the self-test found."""
        self.proxy.set_faults([])
        self.proxy.set_link(FAST)
        self.edge.portal.call(self.node.sync)
        self.edge.portal.call(self.node.forget)
        self.node.beliefs = self._found.without_link()

    def trust(self) -> None:
        """The link is believed to be far better than computing: nothing is computed unless it fails."""
        self.node.beliefs = slow_machine()


@pytest.fixture(scope="module")
def bench(tiny_model: Path, cloud: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    port = int(cloud.url.rpartition(":")[2])
    folder = tmp_path_factory.mktemp("edge")
    with ProxyProcess(port, FAST) as proxy:
        options = {"rung": "lossless", "window_tokens": 2048, "kv_memory_bytes": 0, "folder": folder, "sync_s": 3600}
        with Edge(str(tiny_model), proxy.url, **options) as edge:
            edge.portal.call(edge.asynchronous.node.settled)
            yield Bench(edge, proxy)


@pytest.fixture(scope="module")
def local(bench: Bench) -> Answer:
    """The answer that this machine computes by itself."""
    bench.edge.portal.call(bench.node.forget)
    answer = bench.ask(local=True)
    assert answer.timings.way == "computed" and answer.timings.reason == "it was to be computed here"
    return answer


@pytest.fixture(scope="module")
def long(cloud: Any, manual: str) -> str:
    """The name of a context that takes long enough for a link's rate to show."""
    cloud.publish("long", "\n".join(f"Edition {n}. {manual}" for n in range(3)))
    return "long"


@pytest.fixture(scope="module")
def computed_long(bench: Bench, long: str) -> Computed:
    """What this machine computes of it by itself: an answer, and all rows."""
    bench.cold()
    return bench.ask(context=long, local=True), bench.rows()


def test_a_streamed_context_gives_the_answer_of_local_prefill(bench: Bench, local: Answer) -> None:
    bench.cold()
    bench.trust()
    answer = bench.ask()
    timings = answer.timings
    assert answer.text == local.text and answer.text
    assert (timings.way, timings.rung, timings.reason) == ("streamed", "lossless", None)
    assert timings.cache_n == timings.context_n > 250
    assert timings.prompt_n == answer.prompt_tokens - timings.context_n
    manifest = bench.node.contexts.named("manual").manifest
    assert manifest is not None
    assert timings.bytes_received == sum(place.ref.size_bytes for place in manifests.places(manifest, "lossless"))


def test_over_a_link_that_would_save_nothing_all_is_computed_and_nothing_is_fetched(
    bench: Bench, local: Answer
) -> None:
    bench.cold()
    before = bench.proxy.stats.bytes_down
    bench.node.beliefs = slow_machine(prefill_tokens_s=1e6, link_bytes_s=1e3)
    answer = bench.ask()
    assert (answer.text, answer.timings.way, answer.timings.bytes_received) == (local.text, "computed", 0)
    assert answer.timings.reason == "computing it here was expected to be as soon, or nearly so"
    assert bench.proxy.stats.bytes_down == before


def test_a_second_question_costs_no_transfer(bench: Bench, local: Answer) -> None:
    bench.cold()
    bench.ask()
    before = bench.proxy.stats.bytes_down
    answer = bench.ask()
    assert (answer.text, answer.timings.way, answer.timings.bytes_received) == (local.text, "resident", 0)
    assert bench.proxy.stats.bytes_down == before


@pytest.mark.parametrize(
    "faults",
    [[Corrupt(at_byte=60_000)], [Truncate(after_bytes=60_000)], [Reset(after_bytes=60_000)]],
    ids=["corrupt", "truncated", "reset"],
)
def test_a_broken_transfer_ends_in_the_same_answer(bench: Bench, local: Answer, faults: list[Fault]) -> None:
    """What is asked for again may come; what does not come is computed."""
    bench.cold()
    before = bench.proxy.stats.bytes_down
    bench.proxy.set_faults(faults)
    answer = bench.ask()
    assert (answer.text, bench.held) == (local.text, True)
    assert bench.proxy.stats.bytes_down > before, "it was tried"
    # the next request is not harmed: neither what is held now, nor streaming again
    assert bench.ask().text == local.text
    bench.cold()
    bench.trust()
    again = bench.ask()
    assert again.text == local.text and again.timings.way in ("streamed", "mixed")


def test_a_bug_in_loading_ends_in_the_same_answer_too(
    bench: Bench, local: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    bench.cold()
    monkeypatch.setattr("preread.edge.load.decoded", fail)
    answer = bench.ask()
    assert (answer.text, answer.timings.way) == (local.text, "computed")
    assert answer.timings.reason == "nobody foresaw this"


def test_a_blackout_costs_bounded_time_and_the_second_request_nothing(bench: Bench, local: Answer) -> None:
    bench.cold()
    bench.trust()
    bench.proxy.set_faults([Blackout(None)])
    answer = bench.ask()
    assert (answer.text, answer.timings.way) == (local.text, "computed")
    # A machine so slow that the link's own patience ran out meanwhile says that instead.
    assert re.search("nothing (came|more)", answer.timings.reason or "")
    # The black link was noticed, so nothing is asked, or at most a single request that is not waited for.
    assert bench.node.beliefs.breaker.tripped
    bench.edge.portal.call(bench.node.forget)
    second = bench.ask()
    assert (second.text, second.timings.way) == (local.text, "computed")
    assert bench.node.beliefs.breaker.tripped
    bench.cold()


def test_a_slow_link_gives_way_to_computing(bench: Bench, local: Answer) -> None:
    bench.cold()
    bench.proxy.set_link(Link(mbps=0.1, rtt_ms=2))  # a segment takes seconds
    answer = bench.ask()
    assert (answer.text, answer.timings.way) == (local.text, "computed")
    assert re.search("(computing was sooner|nothing came)", answer.timings.reason or "")


def test_a_links_rate_is_learnt_from_what_takes_long_enough_for_it_to_show(bench: Bench, long: str) -> None:
    bench.cold()
    bench.node.beliefs = slow_machine(link_bytes_s=None)  # so that nothing is computed instead
    bench.proxy.set_link(Link(mbps=8, rtt_ms=2))
    assert bench.ask(context=long).timings.way == "streamed"
    link = bench.node.beliefs.last_link
    assert link is not None and link.bytes_s < 2e6


def test_a_mix_of_computed_and_streamed_gives_the_answer_of_local_prefill(
    bench: Bench, long: str, computed_long: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link brings the end of the context while its beginning is computed: all rows are those of local prefill."""
    runner = bench.node.engine.runner
    run = runner.run

    def slowly(slices: Any) -> Any:
        time.sleep(sum(len(one.tokens) for one in slices) / SLOW_TOKENS_S)
        return run(slices)

    bench.cold()
    bench.node.beliefs = slow_machine(SLOW_TOKENS_S, None)
    monkeypatch.setattr(runner, "run", slowly)
    bench.proxy.set_link(Link(mbps=8, rtt_ms=2))  # some 600 tokens a second
    mixed = bench.ask(context=long)
    rows = bench.rows()
    assert mixed.timings.way == "mixed" and mixed.timings.reason is None
    assert 0 < mixed.timings.cache_n < mixed.timings.context_n and mixed.timings.context_ms > 0
    assert mixed.timings.prompt_n == mixed.prompt_tokens - mixed.timings.cache_n
    alone, computed = computed_long
    assert mixed.text == alone.text
    assert np.array_equal(rows.k, computed.k) and np.array_equal(rows.v, computed.v)


def test_requests_leave_before_the_engine_makes_room(
    bench: Bench, local: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes over a link cannot be had sooner; rows are not needed before it is here."""
    reserve, link, seen = bench.node.core.reserve, bench.node.link, list[str]()
    assert link is not None
    get = link.get

    async def reserved(context: ContextId) -> Rows:
        seen.append("reserved")
        return await reserve(context)

    async def got(ref: ObjectRef) -> bytes:
        seen.append("asked")
        return await get(ref)

    bench.cold()
    bench.trust()
    monkeypatch.setattr(bench.node.core, "reserve", reserved)
    monkeypatch.setattr(link, "get", got)
    answer = bench.ask()
    assert (answer.text, answer.timings.way) == (local.text, "streamed")
    assert "asked" in seen[: seen.index("reserved")]


def test_what_is_taken_back_before_the_context_has_its_rows_is_not_computed_beside_what_comes(
    bench: Bench, local: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan begins to compute, the link turns out faster, and only then the engine has made room."""
    reserve = bench.node.core.reserve

    async def late(context: ContextId) -> Rows:
        await asyncio.sleep(0.5)
        return await reserve(context)

    bench.cold()
    bench.node.beliefs = slow_machine(SLOW_TOKENS_S, None)
    monkeypatch.setattr(bench.node.core, "reserve", late)
    answer = bench.ask()
    assert (answer.text, answer.timings.way) == (local.text, "streamed")


def test_a_refused_connection_is_remembered_until_the_next_sync(bench: Bench, local: Answer) -> None:
    bench.cold()
    bench.edge.portal.call(bench.node.link.aclose)  # type: ignore[union-attr]
    bench.proxy.set_faults([Refuse()])
    first = bench.ask()
    assert (first.text, first.timings.way) == (local.text, "computed")
    assert bench.node.contexts.unreachable


def test_the_edge_notices_by_itself_that_a_prompt_begins_with_a_context_that_it_holds(
    bench: Bench, local: Answer, manual: str
) -> None:
    bench.cold()
    bench.ask()
    messages = ({"role": "system", "content": manual}, {"role": "user", "content": QUESTION})
    ask = Ask(messages=messages, sampling=Sampling(max_tokens=8))
    done, text = bench.edge.portal.call(_collect, bench.edge.asynchronous, ask)
    assert text == local.text
    assert (done.timings.context, done.timings.way) == ("manual", "resident")


@pytest.mark.parametrize("end", ["\n", " ", "\r\n", "\n\nBe brief.", None])
def test_a_context_with_another_end_is_taken_as_far_as_it_is_the_same(
    bench: Bench, manual: str, end: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = manual[:-1] if end is None else manual + end
    messages = ({"role": "system", "content": system}, {"role": "user", "content": QUESTION})
    ask = Ask(messages=messages, sampling=Sampling(max_tokens=8))
    bench.ask()
    done, text = bench.edge.portal.call(_collect, bench.edge.asynchronous, ask)
    known = len(bench.node.contexts.named("manual").tokens)
    assert (done.timings.context, done.timings.way, done.timings.reason) == ("manual", "resident", None)
    assert known - 4 <= done.timings.cache_n < known
    bench.cold()
    monkeypatch.setattr(bench.node.contexts, "own", lambda: [])
    alone, expected = bench.edge.portal.call(_collect, bench.edge.asynchronous, ask)
    assert alone.timings.way == "none" and text == expected


def test_whoever_nearly_meant_a_context_is_told(bench: Bench, manual: str) -> None:
    bench.ask()

    def near(system: str) -> str:
        messages = ({"role": "system", "content": system}, {"role": "user", "content": QUESTION})
        ask = Ask(messages=messages, sampling=Sampling(max_tokens=1))
        done, _ = bench.edge.portal.call(_collect, bench.edge.asynchronous, ask)
        assert done.timings.way == "none" and done.timings.context is None
        return done.timings.reason or ""

    assert "'manual' is another after" in near(manual[: len(manual) // 2])
    assert "'manual' ends its lines with" in near(manual.replace("\n", "\r\n"))
    assert near("Something else.") == ""


def test_control_tokens_of_a_published_text_are_matched_in_a_completion(bench: Bench, cloud: Any) -> None:
    text = "Chats are written <|im_start|>user and <|im_end|>. " + "They end by themselves. " * 20
    *_, _ = client.publish(cloud.url, "chats", text=text, form="text")
    named = bench.ask("Which?", "chats")
    assert named.timings.context == "chats"
    ask = Ask(prompt=text + "\n\nWhich? <|im_end|>", sampling=Sampling(max_tokens=1))
    done, _ = bench.edge.portal.call(_collect, bench.edge.asynchronous, ask)
    assert (done.timings.context, done.timings.way) == ("chats", "resident")
    assert done.timings.cache_n >= done.timings.context_n - 1, "all but what the line break is one token with"


def test_a_prompt_that_is_the_context_itself(bench: Bench) -> None:
    bench.cold()
    bench.ask()
    tokens = tuple(int(token) for token in bench.node.contexts.named("manual").tokens)
    done, _ = bench.edge.portal.call(
        _collect, bench.edge.asynchronous, Ask(prompt=tokens, sampling=Sampling(max_tokens=4))
    )
    assert done.prompt_tokens == len(tokens)
    assert done.timings.cache_n == len(tokens) - 1 and done.timings.prompt_n == 1


def test_a_context_comes_back_from_memory(bench: Bench, local: Answer, cloud: Any) -> None:
    bench.cold()
    cloud.publish("other", "The red lamp means that the tank is empty. " * 12)
    bench.ask()
    bench.trust()
    other = bench.ask("What does the red lamp mean?", "other")  # published a moment ago: found by a sync of its own
    assert other.timings.way == "streamed"
    back = bench.ask()
    assert (back.text, back.timings.way, back.timings.bytes_received) == (local.text, "resident", 0)


def test_a_prompt_without_context_leaves_the_context_where_it_is(bench: Bench, local: Answer) -> None:
    bench.cold()
    bench.ask()
    assert bench.ask("Who are you?", None).timings.way == "none"
    assert bench.ask().timings.way == "resident"


def test_closing_a_stream_frees_the_engine(bench: Bench, local: Answer) -> None:
    bench.cold()
    stream = bench.edge.stream("Tell me everything.", context="manual", max_tokens=1500)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    answer = bench.ask()
    assert (answer.text, answer.timings.way) == (local.text, "resident")


def test_leaving_while_the_context_loads_frees_the_engine(bench: Bench, local: Answer) -> None:
    bench.cold()
    bench.trust()
    bench.proxy.set_link(Link(mbps=8, rtt_ms=2))

    async def leave() -> None:
        asking = asyncio.ensure_future(
            bench.edge.asynchronous.ask(QUESTION, context="manual", max_tokens=8, temperature=0)
        )
        while bench.node.engine.session.waiting_for_layer < 0 and not asking.done():
            await asyncio.sleep(0.001)
        assert not asking.done()
        asking.cancel()
        await asyncio.wait([asking])
        while not bench.node.core.idle:
            await asyncio.sleep(0.001)
        assert bench.node.core.residents() == []

    bench.edge.portal.call(leave)
    bench.proxy.set_link(FAST)
    assert bench.ask().text == local.text


def test_requests_at_the_same_time_are_each_answered_right(bench: Bench) -> None:
    """But for rounding: where the likeliest tokens are nearly alike, another may come."""
    bench.cold()
    sampling = Sampling(max_tokens=8, top_logprobs=5)
    prompts = [(QUESTION, "manual"), ("What is the code of the lid?", "manual"), ("Who are you?", None)]
    asks = [Ask(prompt=prompt, context=context, sampling=sampling) for prompt, context in prompts]
    edge = bench.edge.asynchronous

    async def odds(ask: Ask) -> list[TokenOdds]:
        return [one async for piece in edge.answer(ask) if isinstance(piece, Piece) for one in piece.odds]

    async def all_at_once() -> list[list[TokenOdds]]:
        return await asyncio.gather(*map(odds, asks))

    alone = [bench.edge.portal.call(odds, ask) for ask in asks]
    bench.cold()
    for before, together in zip(alone, bench.edge.portal.call(all_at_once), strict=True):
        for expected, found in zip(before, together, strict=True):
            assert abs((expected.logprob or 0) - (found.logprob or 0)) < ROUNDING
            if expected.data != found.data:
                assert found.data in [one.data for one in expected.top]
                break


def test_what_cannot_be_answered_is_refused(bench: Bench) -> None:
    with pytest.raises(UnknownContext, match=r"unknown context 'nothing'.*manual"):
        bench.ask(context="nothing")
    with pytest.raises(TooLong, match="maximum context length is 2048 tokens"):
        bench.ask("word " * 3000)
    with pytest.raises(UsageError, match="not open"):
        Edge("smollm2-135m-instruct").ask("?")


def test_after_a_restart_without_a_cloud_known_contexts_are_computed(
    bench: Bench, local: Answer, cloud: Any, tiny_model: Path, tmp_path: Path
) -> None:
    options = {"rung": "lossless", "window_tokens": 2048, "kv_memory_bytes": 0, "folder": tmp_path}
    with Edge(str(tiny_model), cloud.url, **options) as edge:
        edge.portal.call(edge.asynchronous.node.settled)
    (kept,) = tmp_path.glob(f"catalogue/*/{bench.node.contexts.named('manual').entry.tokens.id}")
    assert kept.stat().st_mode & 0o077 == 0
    with Edge(str(tiny_model), "http://127.0.0.1:9", **options) as edge:
        answer = edge.ask(QUESTION, context="manual", max_tokens=8, temperature=0)
        assert (answer.text, answer.timings.way) == (local.text, "computed")
        assert "cannot be reached" in (answer.timings.reason or "")
    kept.write_bytes(b"damaged")
    with (
        Edge(str(tiny_model), "http://127.0.0.1:9", **options) as edge,
        pytest.raises(Unavailable, match="cannot be reached"),
    ):
        edge.ask(QUESTION, context="manual", max_tokens=1)


def test_contexts_that_cannot_be_streamed_here(
    bench: Bench, local: Answer, cloud: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """Of another build of the model, of another model, with a manifest from the future, without its segments."""
    known = bench.node.contexts.named("manual")
    store = open_store(str(tmp_path / "store"))
    asyncio.run(_strange_contexts(store, cloud.store, known.entry))
    for segment in (tmp_path / "store" / "segments").glob("*/*"):
        segment.unlink()
    with serving(create_app(store, refuse)) as url:

        async def ask_all() -> dict[str, Answer]:
            async with AsyncEdge(
                str(tiny_model), url, rung="lossless", window_tokens=2048, folder=tmp_path / "edge"
            ) as edge:
                with pytest.raises(UsageError, match="published for tiny, whose tokens differ"):
                    await edge.ask(QUESTION, context="other-model", max_tokens=8, temperature=0)
                return {
                    name: await edge.ask(QUESTION, context=name, max_tokens=8, temperature=0)
                    for name in ("other-build", "newer", "missing")
                }

        answers = asyncio.run(ask_all())
    assert {answer.text for answer in answers.values()} == {local.text}
    assert "other weights" in (answers["other-build"].timings.reason or "")
    assert "upgrade" in (answers["newer"].timings.reason or "")
    # "missing" has the same context id as "newer", which was computed a moment ago
    assert answers["missing"].timings.way in ("resident", "computed")


async def _strange_contexts(store: Objects, source: Objects, entry: Entry) -> None:
    data = await source.read("manifests", entry.manifest.id)
    packed = await source.read("tokens", entry.tokens.id)
    assert data is not None and packed is not None
    await store.put("tokens", packed)
    manifest = manifests.loads(data)
    for id in {cell.id for rung in manifest.rungs for cell in rung.segments}:
        segment = await source.read("segments", id)
        assert segment is not None
        await store.put("segments", segment)
    other = Fingerprint("0" * 64)
    moved = msgspec.structs.replace(
        manifest,
        context=context_id(other, unpack(packed, 10**6)),
        model=msgspec.structs.replace(manifest.model, fingerprint=other),
    )
    newer = msgspec.json.encode(msgspec.json.decode(data) | {"version": 3}, order="sorted")
    for name, written, changes in (
        ("other-build", manifests.dumps(moved), {"fingerprint": other, "context": moved.context}),
        ("other-model", manifests.dumps(moved), {"fingerprint": other, "context": moved.context, "vocabulary": other}),
        ("newer", newer, {}),
        ("missing", data, {}),
    ):
        ref = await store.put("manifests", written)
        await store.put_name(
            msgspec.structs.replace(entry, name=name, manifest=SizedId(ref.id, ref.size_bytes), **changes)
        )


async def _collect(edge: AsyncEdge, ask: Ask) -> tuple[Done, str]:
    texts = []
    async with aclosing(edge.answer(ask)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Done):
                return piece, "".join(texts)
            texts.append(piece.text)
    raise AssertionError("no end")
