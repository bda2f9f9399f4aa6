"""Better rows reach the cache between two decode steps, one block at a time, and never another context's rows."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.engine.refine import MOST_WAITING, Refinements
from preread.engine.sampling import Sampling
from preread.errors import EngineError
from preread.values import KVBlock, Span

TOKENS = 64
PROMPT = np.arange(700, 712, dtype=np.int32)
OTHER = np.arange(900, 900 + TOKENS, dtype=np.int32)
CONTEXT = (np.arange(TOKENS, dtype=np.int64) * 131 % 40_000 + 300).astype(np.int32)


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[LlamaCpp]:
    engine = LlamaCpp.open(smollm, window_tokens=512, threads=1)
    yield engine
    engine.close()


def whole(engine: LlamaCpp) -> KVBlock:
    return engine.export(Span(0, TOKENS), Span(0, engine.spec.geometry.layers))


@pytest.fixture(scope="module")
def best(engine: LlamaCpp) -> KVBlock:
    engine.prefill(CONTEXT)
    return whole(engine)


def hold_thin(engine: LlamaCpp, best: KVBlock) -> None:
    """Hold the context with rows that are rounded coarsely."""
    engine.reserve(TOKENS)
    k, v = ((np.round(half * 2) / 2).astype(np.float16) for half in (best.k, best.v))
    engine.inject(KVBlock(best.tokens, best.layers, k, v))
    engine.open_layers(len(best.layers))


def parts(best: KVBlock, size: int = 2) -> Iterator[KVBlock]:
    for start in range(0, len(best.layers), size):
        stop = min(start + size, len(best.layers))
        yield KVBlock(best.tokens, Span(start, stop), best.k[start:stop], best.v[start:stop])


def same(a: KVBlock, b: KVBlock) -> bool:
    return np.array_equal(a.k, b.k) and np.array_equal(a.v, b.v)


def first_logits(engine: LlamaCpp) -> np.ndarray:
    next(engine.generate(PROMPT, Sampling(max_tokens=1)))
    return engine.logits()


def test_blocks_are_written_between_steps_one_at_a_time_and_what_was_said_stays(
    engine: LlamaCpp, best: KVBlock
) -> None:
    hold_thin(engine, best)
    sampling = Sampling(max_tokens=24)
    thin = [step.token for step in engine.generate(PROMPT, sampling)]
    thin_logits = first_logits(engine)
    left, written, said = parts(best), [0], []
    futures: list[Future[bool]] = []
    for step in engine.generate(PROMPT, sampling):
        said.append(step.token)
        written.append(sum(future.done() for future in futures))
        if len(said) > 3:
            waiting = len(futures) - written[-1]
            added = [block for _, block in zip(range(2 - waiting), left, strict=False)]
            futures += [engine.refinements.add(block, engine.refinements.epoch) for block in added]
    assert all(0 <= after - before <= 1 for before, after in pairwise(written))
    assert written[-1] == len(futures) == 15 and all(future.result() for future in futures)
    assert said[:4] == thin[:4]  # the first block was written before the step that chose the fifth: that may differ
    assert same(whole(engine), best)
    after = first_logits(engine)
    engine.prefill(CONTEXT)
    assert np.array_equal(after, first_logits(engine))
    assert not np.array_equal(after, thin_logits)


def test_an_answer_sees_better_rows_from_its_next_step_on(engine: LlamaCpp, best: KVBlock) -> None:
    hold_thin(engine, best)
    logits = []
    for block in (None, best):
        steps = engine.generate(PROMPT, Sampling(max_tokens=3))
        next(steps)
        if block is not None:
            engine.refinements.add(block, engine.refinements.epoch)
        next(steps)
        logits.append(engine.logits())
        assert len(list(steps)) == 1
    assert not np.array_equal(logits[0], logits[1])


def test_an_idle_engine_writes_all_that_waits(engine: LlamaCpp, best: KVBlock) -> None:
    hold_thin(engine, best)
    halves = list(parts(best, 15))
    futures = [engine.refinements.add(block, engine.refinements.epoch) for block in halves]
    assert not any(future.done() for future in futures)
    engine.refinements.apply_all()
    assert [future.result(0) for future in futures] == [True, True] and same(whole(engine), best)


def test_a_block_never_reaches_another_context(engine: LlamaCpp, best: KVBlock) -> None:
    """Blocks pour in from another thread, of the epoch in which the old context was held, while contexts change."""
    engine.prefill(OTHER)
    right = whole(engine)
    assert not same(right, best)
    engine.prefill(CONTEXT)
    epoch, futures, enough = engine.refinements.epoch, [], threading.Event()
    poison = KVBlock(best.tokens, Span(0, 1), best.k[:1] * 0, best.v[:1] * 0)

    def pour() -> None:
        while not enough.wait(0.0002):
            try:
                futures.append(engine.refinements.add(poison, epoch))
            except EngineError:
                pass  # as many wait as may wait

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        while len(futures) < MOST_WAITING:
            assert pouring.is_alive()
        for _ in range(3):
            engine.prefill(OTHER)
            for _ in engine.generate(PROMPT, Sampling(max_tokens=3)):
                pass
            engine.refinements.apply_all()
            assert same(whole(engine), right)
    finally:
        enough.set()
        pouring.join()
    assert not any(future.result(0) for future in futures)


@pytest.mark.parametrize("leave", ["clear", "reserve", "prefill"])
def test_whatever_empties_the_cache_drops_what_waits(engine: LlamaCpp, best: KVBlock, leave: str) -> None:
    hold_thin(engine, best)
    epoch = engine.refinements.epoch
    waiting = engine.refinements.add(best, epoch)
    if leave == "clear":
        engine.clear()
    elif leave == "reserve":
        engine.reserve(TOKENS)
    else:
        engine.prefill(CONTEXT)
    assert waiting.result(0) is False and engine.refinements.add(best, epoch).result(0) is False
    engine.clear()


def test_a_block_that_does_not_fit_is_refused_and_the_answer_goes_on(engine: LlamaCpp, best: KVBlock) -> None:
    hold_thin(engine, best)
    before = whole(engine)
    wrong = KVBlock(Span(0, TOKENS), Span(0, 2), best.k[:2, :, :-1], best.v[:2])
    beyond = KVBlock(Span(1, TOKENS + 1), Span(0, 2), best.k[:2], best.v[:2])
    futures = [engine.refinements.add(block, engine.refinements.epoch) for block in (wrong, beyond)]
    assert len(list(engine.generate(PROMPT, Sampling(max_tokens=4)))) == 4
    for future in futures:
        with pytest.raises(EngineError, match="does not fit"):
            future.result(0)
    assert same(whole(engine), before)


def test_a_block_that_was_taken_back_is_not_written(engine: LlamaCpp, best: KVBlock) -> None:
    hold_thin(engine, best)
    before = whole(engine)
    assert engine.refinements.add(best, engine.refinements.epoch).cancel()
    engine.refinements.apply_all()
    assert same(whole(engine), before)


def test_few_blocks_wait_at_once(best: KVBlock) -> None:
    seen: list[KVBlock] = []
    refinements = Refinements(seen.append)
    waiting: list[Future[bool]] = [refinements.add(best, 0) for _ in range(MOST_WAITING)]
    with pytest.raises(EngineError, match="wait"):
        refinements.add(best, 0)
    assert refinements.apply_one() and waiting[0].result(0) and len(seen) == 1
    refinements.add(best, 0)
    refinements.apply_all()
    assert len(seen) == MOST_WAITING + 1 and not refinements.apply_one()
