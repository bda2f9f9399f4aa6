"""The engine's loop, with an engine that is exact: each answer must be, token by token, what it is alone."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from preread.edge import core
from preread.edge.core import Core, Generation
from preread.edge.offload import Blocks
from preread.edge.sequences import Fill
from preread.engine.base import Slice, Tokens
from preread.engine.sampling import Sampled, Sampling
from preread.engine.worker import Worker
from preread.errors import Cancelled, CorruptData, EngineError, PrereadError
from preread.plan.residency import Residency
from preread.plan.schedule import Schedule
from preread.plan.step import Request
from preread.plan.step_cost import StepCost
from preread.testing.engine import read, same, step
from preread.testing.fake_engine import FakeEngine
from preread.values import ContextId, KVBlock, Span, StateBlock

CELLS, WINDOW = 256, 192
LAYERS = FakeEngine().spec.geometry.layers
ROOMY = 2048
"""Cells of a cache in which first layers can be computed by themselves."""
SIZES = (24, 60, 33, 47, 90)
CONTEXTS = tuple(ContextId(str(number) * 64) for number in range(len(SIZES)))


def text(tokens: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).integers(1, 96, tokens).astype(np.int32)


def context_tokens(context: ContextId) -> Tokens:
    number = CONTEXTS.index(context)
    return text(SIZES[number], 1000 + number)


@dataclass(frozen=True)
class Question:
    """What somebody asks. `reuse`: of the context, all if None."""

    prompt_tokens: int = 8
    seed: int = 0
    context: ContextId | None = None
    reuse: int | None = None
    most: int = 6
    temperature: float = 0.0
    caller: str = ""
    echo: bool = False
    guest: bool = False

    @property
    def prompt(self) -> Tokens:
        return text(self.prompt_tokens, self.seed)

    @property
    def beginning(self) -> Tokens:
        return text(0, 0) if self.context is None else context_tokens(self.context)[: self.reuse]

    @property
    def sampling(self) -> Sampling:
        top = 1 if self.echo else None
        return Sampling(
            max_tokens=self.most, temperature=self.temperature, seed=self.seed, top_logprobs=top, prompt_logprobs=True
        )

    @property
    def request(self) -> Request:
        request = Request(0, self.caller, self.prompt_tokens, self.most, echo=self.echo)
        if self.context is None:
            return request
        return replace(
            request,
            context=self.context,
            context_tokens=len(context_tokens(self.context)),
            reuse_tokens=len(self.beginning),
            guest=self.guest,
        )


@lru_cache(maxsize=4096)
def alone(question: Question) -> tuple[int, ...]:
    """The answer's tokens when nobody else asks anything."""
    engine = FakeEngine(WINDOW)
    sequence, tokens = engine.sequences[0], np.concatenate([question.beginning, question.prompt])
    choosing = engine.chooser(question.sampling, question.prompt)
    (steps,) = step(engine, Slice(sequence, tokens, 0, choosing))
    while not (steps[-1].end or choosing.ended or len(tokens) + len(steps) >= WINDOW):
        last = np.array([steps[-1].token], np.int32)
        steps += step(engine, Slice(sequence, last, len(tokens) + len(steps) - 1, choosing))[0]
    return tuple(one.token for one in steps)


@lru_cache(maxsize=16)
def published(context: ContextId) -> KVBlock:
    """A context's KV."""
    engine, tokens = FakeEngine(WINDOW), context_tokens(context)
    read(engine, engine.sequences[0], tokens)
    return engine.cache.export(engine.sequences[0], Span(0, len(tokens)), Span(0, LAYERS))


def rows_of(context: ContextId, tokens: Span | None = None, layers: Span | None = None) -> KVBlock:
    block = published(context)
    tokens, layers = tokens or block.tokens, layers or block.layers
    at = slice(layers.start, layers.stop), slice(None), slice(tokens.start, tokens.stop)
    return KVBlock(tokens, layers, block.k[at], block.v[at])


class Bench:
    """A loop, and who brings contexts: as `residents.py` does it, but from where a test says."""

    def __init__(self, cells: int = CELLS, answers: int = 8, contexts: int = 8) -> None:
        self.engine, self.worker = FakeEngine(cells, answers + contexts + 4, WINDOW), Worker()
        self.plan = Schedule(Residency(cells, contexts), StepCost.guessed(2000.0), answers)
        self.core = Core(self.engine, self.worker, self.plan)
        self.way: Callable[[ContextId], Coroutine[Any, Any, None]] = self.computed
        self.offload: dict[ContextId, KVBlock | StateBlock] = {}
        self.brought: list[ContextId] = []
        self.evictions: list[ContextId] = []
        self.keeping, self.crowded = False, 0
        self._asking: dict[ContextId, int] = {}
        self._tasks: dict[ContextId, asyncio.Task[None]] = {}
        self.core.begin(self)

    # What the loop calls

    def bring(self, context: ContextId) -> None:
        self.brought.append(context)
        if not self._asking.get(context):
            self.core.lost(context)
            return
        self._tasks[context] = asyncio.create_task(self._brought(context))

    def evicted(self, context: ContextId, blocks: Blocks) -> None:
        self.evictions.append(context)
        if blocks:
            (self.offload[context],) = blocks

    def keeps(self, context: ContextId, size_bytes: int) -> bool:
        return self.keeping

    def observed(self, position: int, tokens: int, seconds: float) -> None:
        assert tokens > 0 and seconds >= 0

    async def _brought(self, context: ContextId) -> None:
        try:
            await self.way(context)
            self.core.ready(context)
        except asyncio.CancelledError:
            self.core.lost(context)
            raise
        except PrereadError as error:
            self.core.lost(context, error)
        finally:
            del self._tasks[context]

    # From where contexts come

    async def computed(self, context: ContextId) -> None:
        await self.core.compute(context, context_tokens(context), 0)

    async def streamed(self, context: ContextId) -> None:
        rows = await self.core.reserve(context)
        self.core.answerable(context)
        for layer in range(LAYERS):
            await asyncio.sleep(0)
            self.core.inject(rows, rows_of(context, layers=Span(layer, layer + 1)))
            self.core.open(context, layer + 1)

    async def mixed(self, context: ContextId) -> None:
        """The beginning computed in two stretches, the rest injected."""
        rows, half = await self.core.reserve(context), len(context_tokens(context)) // 2
        await self.core.compute(context, context_tokens(context)[: half // 2], 0)
        self.core.inject(rows, rows_of(context, Span(half, len(context_tokens(context)))))
        await self.core.compute(context, context_tokens(context)[half // 2 : half], half // 2)

    async def layered(self, context: ContextId) -> None:
        """The first layers computed in two stretches while the others come, or all where that cannot be."""
        rows, half, tokens = (
            await self.core.reserve(context),
            len(context_tokens(context)) // 2,
            context_tokens(context),
        )
        self.core.inject(rows, rows_of(context, layers=Span(2, LAYERS)))
        self.engine.cache.tiled = len(self.brought) % 3 != 2
        for start, stop in ((0, half), (half, len(tokens))):
            if await self.core.compute(context, tokens[start:stop], start, 2) is None:
                await self.core.compute(context, tokens[start:stop], start)
                self.crowded += 1

    async def interrupted(self, context: ContextId) -> None:
        """A computation that is given up for what comes after all."""
        rows = await self.core.reserve(context)
        computing = asyncio.ensure_future(self.core.compute(context, context_tokens(context), 0))
        await asyncio.sleep(0)
        self.core.interrupt(context)
        try:
            await computing
        except Cancelled:
            self.core.inject(rows, rows_of(context))

    async def taken_back(self, context: ContextId) -> None:
        """Prompts may be computed, and then they may not: a stretch is computed first."""
        rows, half = await self.core.reserve(context), len(context_tokens(context)) // 2
        self.core.answerable(context)
        self.core.inject(rows, rows_of(context, layers=Span(0, 1)))
        self.core.open(context, 1)
        for _ in range(20):
            await self.core.call(lambda: None)
        self.core.answerable(context, now=False)
        await self.core.compute(context, context_tokens(context)[:half], 0)
        self.core.inject(rows, rows_of(context, Span(half, len(context_tokens(context)))))

    async def restarted(self, context: ContextId) -> None:
        """Prompts may be computed, and then loading fails."""
        rows = await self.core.reserve(context)
        self.core.answerable(context)
        self.core.inject(rows, rows_of(context, layers=Span(0, 1)))
        self.core.open(context, 1)
        for _ in range(20):
            await self.core.call(lambda: None)
        await self.core.restart(context)
        await self.core.compute(context, context_tokens(context), 0)

    async def from_offload(self, context: ContextId) -> None:
        rows = await self.core.reserve(context)
        self.core.inject(rows, self.offload.pop(context, published(context)))

    async def failing(self, context: ContextId) -> None:
        await self.core.reserve(context)
        raise EngineError(f"nothing brings {context[:1]}")

    # Who asks

    @contextmanager
    def asking(self, context: ContextId | None) -> Iterator[None]:
        if context is None:
            yield
            return
        self._asking[context] = self._asking.get(context, 0) + 1
        try:
            yield
        finally:
            self._asking[context] -= 1
            if not self._asking[context] and context in self._tasks:
                asyncio.get_running_loop().call_soon(self._tasks[context].cancel)

    @asynccontextmanager
    async def generation(self, question: Question) -> AsyncIterator[Generation]:
        with self.asking(question.context):
            asked = question.request, question.prompt, question.beginning, question.sampling
            async with self.core.generation(*asked) as generation:
                yield generation

    async def steps(self, question: Question, most_steps: int | None = None) -> list[Sampled]:
        """The whole answer, or the beginning after which whoever asks leaves."""
        found: list[Sampled] = []
        async with self.generation(question) as generation:
            while most_steps is None or len(found) < most_steps:
                steps = await generation.steps.get()
                if isinstance(steps, BaseException):
                    raise steps
                if steps is None:
                    break
                found += steps
        return found

    async def ask(self, question: Question) -> tuple[int, ...]:
        """Ask, and see that the answer is exact; its tokens."""
        steps = await self.steps(question)
        given = [one.token for one in steps if one.given]
        answer = tuple(one.token for one in steps if not one.given)
        assert answer == alone(question)
        if question.echo and not question.guest:
            assert given == question.prompt.tolist()
            assert [one.given for one in steps] == sorted((one.given for one in steps), reverse=True)
        return answer

    # What is left

    async def settle(self) -> None:
        """Nobody asks any more: only contexts have cells, and these are whole."""
        while not self.core.idle:
            await asyncio.sleep(0.001)
        while self._tasks:
            await asyncio.sleep(0)
        await self.core.call(lambda: None)
        sizes = self.plan.residency.sizes
        assert self.plan.residency.claimed_cells == 0
        assert self.engine.cache.free_cells == self.engine.cells - sum(sizes.values())
        assert self.core.stats().free_sequences == len(self.engine.sequences) - len(sizes)
        assert not self.core._live and not self.core._fills
        for key in sizes:
            assert same(await self.core.export(ContextId(key)), published(ContextId(key)))

    async def close(self) -> None:
        await self.settle()
        await self.core.forget()
        assert self.engine.cache.free_cells == self.engine.cells
        assert self.core.stats().free_sequences == len(self.engine.sequences)
        await self.core.close()
        self.worker.close()

    def abandon(self) -> None:
        """End the engine's thread whatever it does: a test has failed."""
        with self.core._lock:
            self.core._closing = True
            self.core._cancel()
            self.core._lock.notify()


class Hold:
    """Holds the engine in front of the first layer of a step that fits, until it is let go."""

    def __init__(self, engine: FakeEngine, fits: Callable[[Sequence[Slice], int], bool]) -> None:
        self._loop, self._fits, self._reached, self._go = (
            asyncio.get_running_loop(),
            fits,
            asyncio.Event(),
            threading.Event(),
        )
        self._engine, self._once = engine, False
        engine.runner.before_layer = self._before

    def _before(self, slices: Sequence[Slice], layer: int) -> None:
        if not self._once and self._fits(slices, layer):
            self._once = True
            self._loop.call_soon_threadsafe(self._reached.set)
            assert self._go.wait(30)

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), 30)

    def go(self) -> None:
        self._go.set()


def run(story: Callable[[Bench], Coroutine[Any, Any, None]], **sizes: int) -> None:
    async def told() -> None:
        bench = Bench(**sizes)
        try:
            await story(bench)
            await bench.close()
        except BaseException:
            bench.abandon()
            raise

    asyncio.run(asyncio.wait_for(told(), 60))


WAYS = ("computed", "streamed", "mixed", "layered", "interrupted", "taken_back", "restarted", "from_offload")


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_is_exact_however_its_context_came(way: str) -> None:
    async def story(bench: Bench) -> None:
        bench.way = getattr(bench, way)
        question = Question(context=CONTEXTS[1])
        await asyncio.gather(*(bench.ask(replace(question, seed=seed)) for seed in range(3)))
        await bench.ask(replace(question, seed=4, reuse=50))
        assert bench.brought == [CONTEXTS[1]]

    run(story, cells=ROOMY)


def test_many_answers_over_shared_contexts_are_those_that_each_gets_alone() -> None:
    async def story(bench: Bench) -> None:
        questions = [
            Question(5 + seed % 9, seed, (None, *CONTEXTS[:3])[seed % 4], temperature=seed % 2, echo=seed % 5 == 0)
            for seed in range(24)
        ]
        assert await asyncio.gather(*map(bench.ask, questions)) == [*map(alone, questions)]

    run(story)


def test_a_first_token_goes_out_before_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an answer: the engine's thread lets whoever waits for it have the interpreter's lock."""

    async def story(bench: Bench) -> None:
        came, waits = threading.Event(), list[bool]()

        def sleep(_: float) -> None:
            waits.append(came.wait(30))

        monkeypatch.setattr(core, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        async with bench.generation(Question(most=4)) as generation:
            while (steps := await generation.steps.get()) is not None:
                assert not isinstance(steps, BaseException)
                came.set()
        assert waits == [True]

    run(story)


def test_contexts_make_way_and_are_brought_again() -> None:
    async def story(bench: Bench) -> None:
        bench.keeping = True
        for context in (*CONTEXTS, *CONTEXTS):
            bench.way = bench.from_offload if context in bench.offload else bench.computed
            await bench.ask(Question(context=context))
        assert len(bench.evictions) >= 3 and len(bench.brought) > len(CONTEXTS)
        await bench.settle()

    run(story, cells=200)


def stopped(bench: Bench) -> list[int]:
    """The answers that make way from now on."""
    stops: list[int] = []
    stop, bench.core._stop = bench.core._stop, lambda id: (stops.append(id), stop(id))[1]  # type: ignore[method-assign]
    return stops


def test_an_answer_that_makes_way_goes_on_where_it_was() -> None:
    async def story(bench: Bench) -> None:
        stops = stopped(bench)
        questions = [Question(10, seed, most=80, temperature=1, caller=str(seed)) for seed in range(6)]
        await asyncio.gather(*map(bench.ask, questions))
        assert stops

    run(story, cells=250)


def test_a_prompt_that_made_way_is_told_once() -> None:
    """Not again when its answer goes on, nor its answer as if it had been asked."""

    async def story(bench: Bench) -> None:
        stops = stopped(bench)
        questions = [
            Question(30, seed, most=80, temperature=1, echo=seed % 2 == 0, caller=str(seed)) for seed in range(6)
        ]
        for question, steps in zip(questions, await asyncio.gather(*map(bench.steps, questions)), strict=True):
            told = question.prompt.tolist() if question.echo else []
            assert [one.token for one in steps] == [*told, *alone(question)]
        assert stops

    run(story, cells=250)


# Leaving


async def leave(bench: Bench, question: Question, when: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Ask, and leave at some time."""
    asking = asyncio.ensure_future(bench.steps(question))
    await when()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


@pytest.mark.parametrize("beside", [False, True])
def test_leaving_while_queued(beside: bool) -> None:
    async def story(bench: Bench) -> None:
        hold = Hold(bench.engine, lambda slices, layer: True)
        other = asyncio.ensure_future(bench.ask(Question(seed=1, most=20)))
        await hold.reached()
        context = CONTEXTS[0] if beside else None
        await leave(bench, Question(seed=2, context=context), lambda: asyncio.sleep(0))
        hold.go()
        assert await other == alone(Question(seed=1, most=20)) and not bench.brought

    run(story, answers=1)


@pytest.mark.parametrize("way", ["load", "fill"])
def test_leaving_while_the_context_comes(way: str) -> None:
    async def story(bench: Bench) -> None:
        begun = asyncio.Event()

        async def load(context: ContextId) -> None:
            await bench.core.reserve(context)
            begun.set()
            await asyncio.Event().wait()

        if way == "load":
            bench.way = load
            await leave(bench, Question(context=CONTEXTS[0]), lambda: asyncio.wait_for(begun.wait(), 30))  # type: ignore[arg-type]
        else:
            hold = Hold(bench.engine, lambda slices, layer: layer == 1)
            await leave(bench, Question(context=CONTEXTS[0]), hold.reached)
            hold.go()
        await bench.settle()
        assert bench.engine.runner.steps == 0 and not bench.plan.residency.sizes
        bench.way = bench.computed
        await bench.ask(Question(context=CONTEXTS[0]))

    run(story)


def test_leaving_at_the_gate() -> None:
    async def story(bench: Bench) -> None:
        async def stuck(context: ContextId) -> None:
            rows = await bench.core.reserve(context)
            bench.core.answerable(context)
            bench.core.inject(rows, rows_of(context, layers=Span(0, 1)))
            bench.core.open(context, 1)
            await asyncio.Event().wait()

        bench.way = stuck
        await leave(bench, Question(context=CONTEXTS[0]), lambda: waiting(bench))
        await bench.settle()
        assert bench.engine.runner.steps == 0

    run(story)


async def waiting(bench: Bench) -> None:
    while not bench.engine.runner.waiting:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("phase", ["prompt", "answer"])
@pytest.mark.parametrize("beside", [False, True])
def test_leaving_while_computing(phase: str, beside: bool) -> None:
    """Alone, the step that is under way is given up; with somebody beside, it is the last."""

    async def story(bench: Bench) -> None:
        size = 8 if phase == "prompt" else 1
        mine = Question(seed=2, most=50, context=CONTEXTS[0])
        await bench.ask(replace(mine, seed=3, most=1))
        count = 2 if beside else 1
        hold = Hold(bench.engine, lambda s, layer: layer == 1 and len(s) == count and len(s[-1].tokens) == size)
        async with bench.core.paused():
            others = [asyncio.ensure_future(bench.ask(replace(mine, seed=1)))] if beside else []
            asking = asyncio.ensure_future(bench.steps(mine))
            await asyncio.sleep(0)
        await hold.reached()
        steps = bench.engine.runner.steps
        asking.cancel()
        await asyncio.wait([asking])
        seen: list[int] = []
        bench.engine.runner.before_layer = lambda slices, layer: seen.append(len(slices))
        hold.go()
        await asyncio.gather(*others)
        await bench.settle()
        if not beside:
            assert bench.engine.runner.steps == steps
        assert set(seen[LAYERS:]) <= {1}

    run(story)


def test_a_step_that_all_have_left_one_after_the_other_is_given_up() -> None:
    async def story(bench: Bench) -> None:
        mine = Question(seed=2, most=50, context=CONTEXTS[0])
        await bench.ask(replace(mine, seed=3, most=1))
        hold = Hold(bench.engine, lambda s, layer: layer == 1 and len(s) == 2 and len(s[-1].tokens) == 1)
        async with bench.core.paused():
            asking = [asyncio.ensure_future(bench.steps(replace(mine, seed=seed))) for seed in (1, 2)]
            await asyncio.sleep(0)
        await hold.reached()
        steps = bench.engine.runner.steps
        for one in asking:
            one.cancel()
            await asyncio.wait([one])
        hold.go()
        await bench.settle()
        assert bench.engine.runner.steps == steps

    run(story)


class HoldAtArm:
    """Holds the engine's thread when a step is decided, and the gate knows nothing of it yet."""

    def __init__(self, bench: Bench) -> None:
        self._runner, self._arm, self._bench = bench.engine.runner, bench.engine.runner.arm, bench
        self._loop, self._reached, self._go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        self._runner.arm = self._held  # type: ignore[method-assign]

    def _held(self, open_layers: int | None = None) -> None:
        self._runner.arm = self._arm  # type: ignore[method-assign]
        self._loop.call_soon_threadsafe(self._reached.set)
        assert self._go.wait(30)
        self._arm(open_layers)

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), 30)

    def go(self) -> None:
        self._go.set()


def test_leaving_just_before_a_step_begins() -> None:
    async def story(bench: Bench) -> None:
        hold = HoldAtArm(bench)
        await leave(bench, Question(), hold.reached)
        hold.go()
        await bench.settle()
        assert bench.engine.runner.steps == 0

    run(story)


def test_layers_that_open_just_before_a_step_begins_are_not_waited_for() -> None:
    async def story(bench: Bench) -> None:
        async def late(context: ContextId) -> None:
            rows, hold = await bench.core.reserve(context), HoldAtArm(bench)
            bench.core.answerable(context)
            await hold.reached()
            bench.core.inject(rows, rows_of(context))
            bench.core.open(context, LAYERS)
            hold.go()
            while not bench.engine.runner.steps:
                await asyncio.sleep(0.001)

        bench.way = late
        assert await bench.ask(Question(context=CONTEXTS[0])) == alone(Question(context=CONTEXTS[0]))

    run(story)


# Failures


def test_a_step_that_fails_reaches_only_who_was_in_it() -> None:
    async def story(bench: Bench) -> None:
        await bench.ask(Question(context=CONTEXTS[0], most=1))
        failed: list[int] = []

        def fail(slices: Sequence[Slice], layer: int) -> None:
            if not failed and layer == 1 and len(slices) == 2:
                failed.extend(one.sequence for one in slices)
                raise EngineError("the engine has a fault")

        bench.engine.runner.before_layer = fail
        first, second = (Question(seed=seed, context=CONTEXTS[0], most=40, temperature=1) for seed in (1, 2))
        results = await asyncio.gather(bench.ask(first), bench.ask(second), return_exceptions=True)
        assert [str(result) for result in results] == ["the engine has a fault"] * 2
        await asyncio.gather(bench.ask(first), bench.ask(second))

    run(story)


def test_a_bug_in_a_step_reaches_only_who_was_in_it() -> None:
    async def story(bench: Bench) -> None:
        bench.way = bench.mixed
        bugs = 1

        def fail(slices: Sequence[Slice], layer: int) -> None:
            nonlocal bugs
            if bugs and len(slices[0].tokens) == 8 and layer == 2:
                bugs = 0
                raise ZeroDivisionError("nobody foresaw this")

        bench.engine.runner.before_layer = fail
        with pytest.raises(EngineError, match="nobody foresaw this"):
            await bench.ask(Question(context=CONTEXTS[1]))
        await bench.ask(Question(context=CONTEXTS[1]))

    run(story)


def test_a_context_that_cannot_be_computed_fails_for_who_asks_about_it_alone() -> None:
    async def story(bench: Bench) -> None:
        def fail(slices: Sequence[Slice], layer: int) -> None:
            if any(one.chooser is None for one in slices):
                raise EngineError("no context can be computed")

        bench.engine.runner.before_layer = fail
        await bench.ask(Question())
        for _ in range(2):
            with pytest.raises(EngineError, match="no context"):
                await bench.ask(Question(context=CONTEXTS[0]))
            await bench.settle()
        bench.engine.runner.before_layer = lambda slices, layer: None
        await bench.ask(Question(context=CONTEXTS[0]))

    run(story)


def test_a_context_that_does_not_come_fails_for_who_asks_about_it() -> None:
    async def story(bench: Bench) -> None:
        bench.way = bench.failing
        questions = [Question(seed=seed, context=CONTEXTS[seed % 2]) for seed in range(4)] + [Question()]
        *results, last = await asyncio.gather(*map(bench.ask, questions), return_exceptions=True)
        assert [str(result) for result in results] == [f"nothing brings {seed % 2}" for seed in range(4)]
        assert last == alone(questions[-1])

    run(story)


def test_a_request_that_cannot_begin_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(bench: Bench) -> None:
        make = bench.engine.chooser

        def chooser(sampling: Sampling, prompt: Tokens) -> Any:
            if sampling.seed == 2:
                raise ValueError("no such sampling")
            return make(sampling, prompt)

        monkeypatch.setattr(bench.engine, "chooser", chooser)
        async with bench.core.paused():
            asking = [asyncio.ensure_future(bench.ask(Question(seed=seed))) for seed in range(5)]
            await asyncio.sleep(0)
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(results.pop(2), EngineError)
        assert results == [alone(Question(seed=seed)) for seed in (0, 1, 3, 4)]

    run(story)


def test_a_stretch_that_cannot_be_reserved_again_fails_its_load_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(bench: Bench) -> None:
        def refuse(*_: object) -> None:
            raise EngineError("no cells are free")

        monkeypatch.setattr(bench.engine.cache, "put_back", refuse)

        async def broken(context: ContextId) -> None:
            await bench.core.reserve(context)
            hold = Hold(bench.engine, lambda slices, layer: True)
            computing = asyncio.ensure_future(bench.core.compute(context, context_tokens(context), 0))
            await hold.reached()
            bench.core.interrupt(context)
            hold.go()
            await computing

        bench.way = broken
        with pytest.raises(EngineError, match="no cells are free"):
            await bench.ask(Question(context=CONTEXTS[0]))
        bench.way = bench.computed
        await bench.ask(Question(context=CONTEXTS[0]))

    run(story)


@pytest.mark.parametrize("error", [EngineError("nobody knows where it is"), CorruptData("values", "it is not finite")])
def test_layers_that_cannot_be_copied_fail_their_load_and_nothing_else(
    error: PrereadError, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(bench: Bench) -> None:
        def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(bench.engine.cache, "copy", refuse)
        bench.way = bench.layered
        with pytest.raises(type(error)):
            await bench.ask(Question(context=CONTEXTS[0]))
        bench.way = bench.computed
        await bench.ask(Question(context=CONTEXTS[0]))

    run(story, cells=ROOMY)


@pytest.mark.parametrize("layers", [None, 2])
def test_a_stretch_that_begins_while_its_load_is_stopped_is_not_computed_into_the_next_one(
    layers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(bench: Bench) -> None:
        begun, go, fill = asyncio.Event(), threading.Event(), bench.core._sequences.fill
        loop = asyncio.get_running_loop()

        def held(*of: Any) -> Fill:
            loop.call_soon_threadsafe(begun.set)
            assert go.wait(30)
            return fill(*of)

        async def stopped(context: ContextId) -> None:
            await bench.core.reserve(context)
            monkeypatch.setattr(bench.core._sequences, "fill", held)
            computing = asyncio.ensure_future(bench.core.compute(context, context_tokens(context), 0, layers))
            await begun.wait()
            monkeypatch.setattr(bench.core._sequences, "fill", fill)
            computing.cancel()
            await asyncio.wait([computing])
            restarting = asyncio.ensure_future(bench.core.restart(context))
            await asyncio.sleep(0)
            go.set()
            await restarting
            await bench.core.compute(context, context_tokens(context), 0)

        bench.way = stopped
        await bench.ask(Question(context=CONTEXTS[1]))

    run(story, cells=ROOMY)


@pytest.mark.parametrize(("answers", "crowded"), [(8, 0), (12, 2)])
def test_no_stretch_is_computed_aside_in_a_sequence_that_others_may_want(answers: int, crowded: int) -> None:
    async def story(bench: Bench) -> None:
        bench.plan._most_answers = answers
        bench.way = bench.layered
        await bench.ask(Question(context=CONTEXTS[1]))
        assert bench.crowded == crowded

    run(story, cells=ROOMY)


def test_what_fails_between_two_steps_ends_no_loop() -> None:
    async def story(bench: Bench) -> None:
        def fail() -> None:
            raise ZeroDivisionError("nobody foresaw this")

        bench.core._post(fail)
        with pytest.raises(ZeroDivisionError):
            await bench.core.call(fail)
        await bench.ask(Question())

    run(story)


def test_a_context_that_cannot_be_read_leaves_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(bench: Bench) -> None:
        def refuse(*_: object) -> KVBlock:
            raise EngineError("it cannot be read")

        bench.keeping = True
        export = bench.engine.cache.export
        monkeypatch.setattr(bench.engine.cache, "export", refuse)
        for context in CONTEXTS:
            await bench.ask(Question(context=context))
        assert bench.evictions and not bench.offload
        monkeypatch.setattr(bench.engine.cache, "export", export)

    run(story, cells=200)


@pytest.mark.parametrize("early", [False, True])
def test_first_layers_that_lie_elsewhere_are_computed_in_vain(early: bool) -> None:
    """It is told before anything is computed, or after; nothing of it stays, and the context comes without that."""

    async def story(bench: Bench) -> None:
        cache, told = bench.engine.cache, list[float | None]()

        async def vain(context: ContextId) -> None:
            tokens, rows = context_tokens(context), await bench.core.reserve(context)
            looked = iter([not early, False])
            cache.is_tiled = lambda *_: next(looked)  # type: ignore[method-assign]
            sequences = bench.core._sequences.free
            told.append(await bench.core.compute(context, tokens, 0, 2))
            assert len([*looked]) == early, "it was not looked at"
            assert bench.core._sequences.free == sequences and not bench.core._fills
            bench.core.inject(rows, rows_of(context))

        bench.way = vain
        await bench.ask(Question(context=CONTEXTS[0]))
        assert told == [None]

    run(story, cells=ROOMY)


# Contexts that go while somebody has begun


@pytest.mark.parametrize("error", [False, True])
def test_a_context_that_is_lost_behind_the_gate(error: bool) -> None:
    """Whoever came meanwhile gets it anew, or the error."""

    async def story(bench: Bench) -> None:
        async def lost(context: ContextId) -> None:
            rows = await bench.core.reserve(context)
            bench.core.answerable(context)
            bench.core.inject(rows, rows_of(context, layers=Span(0, 2)))
            bench.core.open(context, 2)
            await waiting(bench)
            bench.way = bench.computed
            if error:
                raise EngineError("it does not come")
            raise asyncio.CancelledError

        bench.way = lost
        questions = [Question(seed=seed, context=CONTEXTS[1]) for seed in range(2)]
        results = await asyncio.gather(*map(bench.ask, questions), return_exceptions=True)
        if error:
            assert [str(result) for result in results] == ["it does not come"] * 2
        else:
            assert results == [*map(alone, questions)]
        await bench.ask(Question(context=CONTEXTS[1]))

    run(story)


def test_a_context_is_rewritten_between_two_steps_while_it_is_the_same() -> None:
    async def story(bench: Bench) -> None:
        kept: list[Any] = []

        async def spoilt(context: ContextId) -> None:
            kept.append(await bench.core.reserve(context))

        bench.way, context = spoilt, CONTEXTS[0]
        await bench.steps(Question(context=context))
        assert await bench.core.rewrite(context, kept[0], rows_of(context))
        await bench.ask(Question(context=context))
        await bench.core.forget()
        assert not await bench.core.rewrite(context, kept[0], rows_of(context))
        bench.way = bench.computed
        await bench.ask(Question(context=context))
        assert not await bench.core.rewrite(context, kept[0], rows_of(context)), "it has other cells now"

    run(story)


# All of it


def test_forgetting_waits_for_who_asks() -> None:
    async def story(bench: Bench) -> None:
        hold = Hold(bench.engine, lambda slices, layer: len(slices[0].tokens) == 1)
        asking = asyncio.ensure_future(bench.ask(Question(context=CONTEXTS[0])))
        await hold.reached()
        forgetting = asyncio.ensure_future(bench.core.forget())
        await asyncio.sleep(0)
        hold.go()
        await forgetting
        assert bench.engine.cache.free_cells == bench.engine.cells and not bench.core.residents()
        await asking
        await bench.ask(Question(context=CONTEXTS[0]))
        assert bench.brought == [CONTEXTS[0]] * 2

    run(story)


def test_no_step_begins_while_paused() -> None:
    async def story(bench: Bench) -> None:
        async with bench.core.paused():
            asking = asyncio.ensure_future(bench.ask(Question()))
            async with bench.core.paused():
                pass
            for _ in range(20):
                await bench.core.call(lambda: None)
            assert bench.engine.runner.steps == 0 and not asking.done()
        await asking

    run(story)


def test_a_step_that_waits_for_a_link_keeps_nobody() -> None:
    """Neither what is done between two steps, nor who has something to compute."""

    async def story(bench: Bench) -> None:
        go_on = asyncio.Event()

        async def slow(context: ContextId) -> None:
            rows = await bench.core.reserve(context)
            bench.core.answerable(context)
            await go_on.wait()
            bench.core.inject(rows, rows_of(context))
            bench.core.open(context, LAYERS)

        bench.way = slow
        asking = asyncio.ensure_future(bench.ask(Question(context=CONTEXTS[0])))
        await waiting(bench)
        await bench.core.call(lambda: None)
        await waiting(bench)
        await bench.ask(Question(seed=1))
        await waiting(bench)
        async with bench.core.paused():
            assert not asking.done()
        go_on.set()
        assert await asking == alone(Question(context=CONTEXTS[0]))

    run(story)


def test_closing_waits_for_who_asks_and_then_takes_nobody() -> None:
    async def story(bench: Bench) -> None:
        asking = asyncio.ensure_future(bench.ask(Question(most=20)))
        await asyncio.sleep(0)
        await bench.core.close()
        assert asking.done()
        await asking
        assert not bench.core._live
        with pytest.raises(EngineError, match="being closed"):
            await bench.ask(Question())
        with pytest.raises(EngineError, match="being closed"):
            await bench.core.call(lambda: None)
        bench.worker.close()

    async def told() -> None:
        await story(Bench())

    asyncio.run(asyncio.wait_for(told(), 60))


@pytest.mark.parametrize("seed", range(12))
def test_in_any_order_every_answer_is_exact_and_nothing_is_left(seed: int) -> None:
    chance = np.random.default_rng(seed)

    def asked(number: int) -> Question:
        context = None if chance.random() < 0.25 else CONTEXTS[int(chance.integers(len(CONTEXTS)))]
        size = 0 if context is None else SIZES[CONTEXTS.index(context)]
        reuse = int(chance.integers(1, size + 1)) if context and chance.random() < 0.3 else None
        return Question(
            int(chance.integers(1, 30)),
            number,
            context,
            reuse,
            int(chance.integers(1, 40)),
            float(chance.integers(2)),
            "abc"[chance.integers(3)],
            chance.random() < 0.2,
            chance.random() < 0.2,
        )

    async def story(bench: Bench) -> None:
        bench.keeping = bool(seed % 2)

        async def any_way(context: ContextId) -> None:
            await getattr(bench, WAYS[int(chance.integers(len(WAYS)))])(context)

        async def one(number: int) -> bool:
            """Whether whoever asks stays until the end."""
            question = asked(number)
            for _ in range(int(chance.integers(60))):
                await bench.core.call(lambda: None)
            if chance.random() < 0.6:
                return await bench.ask(question) == alone(question)
            asking = asyncio.ensure_future(bench.steps(question, int(chance.integers(1, 20))))
            for _ in range(int(chance.integers(80))):
                await bench.core.call(lambda: None)
            asking.cancel()
            await asyncio.wait([asking])
            return False

        bench.way = any_way
        stayed = await asyncio.gather(*map(one, range(24)))
        await bench.settle()
        assert any(stayed) and not all(stayed)

    run(story, cells=220 if seed % 3 else ROOMY, answers=5, contexts=4)
