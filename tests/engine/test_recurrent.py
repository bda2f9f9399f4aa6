"""Families with recurrent layers: what they keep goes out and in, bit by bit, and nothing goes wrong silently."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from preread.engine.base import Slice
from preread.engine.cache import Rows
from preread.engine.gate import Gate
from preread.engine.graph import Order
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampled
from preread.engine.selftest import inject_layers, self_test
from preread.engine.states import having_state
from preread.errors import Cancelled, CorruptData, EngineError
from preread.testing.engine import Running, answer, chooser, free, read, step, text
from preread.testing.families import LAYERS, write_family
from preread.values import KVBlock, Span, StateBlock

ALL = ("falcon-h1", "granitehybrid", "jamba", "lfm2", "mamba", "mamba2", "nemotron_h", "qwen35", "qwen3next", "rwkv7")
EARLY = ("granitehybrid", "jamba", "lfm2", "mamba", "mamba2", "nemotron_h", "rwkv7")
"""Those that read a layer's state before the layer below has ended."""
TOKENS, PROMPT = 90, 12


def opened(name: str, folder: Path) -> LlamaCpp:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(folder / f"{name}.gguf", name)
    return LlamaCpp.open(path, window_tokens=512, kv_memory_bytes=0, trusted=True)


@pytest.fixture(scope="module", params=ALL)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    with closing(opened(request.param, tmp_path_factory.mktemp("families"))) as engine:
        yield engine


@pytest.fixture(scope="module", params=["lfm2", "qwen35", "mamba2"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    """With rows and R, with rows and both, and with states alone."""
    with closing(opened(request.param, tmp_path_factory.mktemp("families"))) as engine:
        yield engine


@pytest.fixture
def engine(shared: LlamaCpp) -> Iterator[LlamaCpp]:
    yield shared
    free(shared)


def kept(engine: LlamaCpp, sequence: int, tokens: int = TOKENS) -> tuple[KVBlock, StateBlock]:
    """All that a sequence has."""
    rows = engine.cache.export(sequence, Span(0, tokens), Span(0, LAYERS))
    return rows, engine.cache.export_state(sequence, having_state(engine.spec.layers))


def written(engine: LlamaCpp, sequence: int, what: tuple[KVBlock, StateBlock]) -> Rows:
    """A sequence that gets all of it."""
    rows = engine.cache.reserve(sequence, len(what[0].tokens))
    inject_layers(engine, rows, *what, Span(0, LAYERS))
    return rows


def same(one: tuple[KVBlock, StateBlock], other: tuple[KVBlock, StateBlock]) -> bool:
    """Whether the bits are."""
    (rows, states), (rows_too, states_too) = one, other
    pairs = ((rows.k, rows_too.k), (rows.v, rows_too.v), (states.r, states_too.r), (states.s, states_too.s))
    return states.position == states_too.position and all(a.tobytes() == b.tobytes() for a, b in pairs)


def whole(engine: LlamaCpp, context: int, user: int, prompt: int = PROMPT) -> list[Sampled]:
    """An answer behind a context that is there."""
    engine.cache.share(context, user, Span(0, TOKENS))
    found = answer(engine, user, text(engine, prompt, seed=1), TOKENS)
    engine.cache.free(user)
    return found


def test_what_is_injected_layer_by_layer_is_what_was_computed(family: LlamaCpp) -> None:
    assert self_test(family).no_injection is None


@pytest.mark.parametrize("name", EARLY)
def test_a_gate_that_goes_by_the_ends_of_layers_alone_is_found_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = Gate.follow
    plain = (*range(1, LAYERS + 1), LAYERS)
    monkeypatch.setattr(Gate, "follow", lambda self, order: follow(self, Order(order.end, plain)))
    with closing(opened(name, tmp_path)) as engine:
        why = self_test(engine).no_injection
    assert why is not None and "logits differ" in why


def test_a_context_comes_back_for_each_who_asks(engine: LlamaCpp) -> None:
    context, user, other, *_ = engine.sequences
    read(engine, context, text(engine, TOKENS))
    everything, computed = kept(engine, context), whole(engine, context, user)
    free(engine)
    read(engine, other, text(engine, 30, seed=3))  # so that neither its cells nor its state are the first ones
    written(engine, context, everything)
    assert same(kept(engine, context), everything)
    free(engine)
    written(engine, context, everything)
    for _ in range(2):
        assert whole(engine, context, user) == computed
    assert same(kept(engine, context), everything), "an answer has changed the context"


def test_a_context_is_written_while_others_compute(engine: LlamaCpp) -> None:
    """llama.cpp moves states where several sequences are in a batch."""
    context, user, one, two, three, *_ = engine.sequences
    read(engine, context, text(engine, TOKENS))
    everything, computed = kept(engine, context), whole(engine, context, user)
    free(engine)
    for sequence in (one, two, three):
        read(engine, sequence, text(engine, 10, seed=sequence))
    engine.cache.free(two)
    rows = engine.cache.reserve(context, TOKENS)
    for layer in range(LAYERS):
        inject_layers(engine, rows, *everything, Span(layer, layer + 1))
        step(engine, *(Slice(sequence, text(engine, 1), 10 + layer) for sequence in (three, one)))
    assert same(kept(engine, context), everything)
    for sequence in (one, three):
        engine.cache.free(sequence)
    assert [found.token for found in whole(engine, context, user)] == [found.token for found in computed]


def test_a_sequence_is_shared_whole_and_cut_nowhere(engine: LlamaCpp) -> None:
    context, user, *_ = engine.sequences
    rows = engine.cache.reserve(context, TOKENS)
    for part in (Span(0, TOKENS - 1), Span(1, TOKENS), Span(0, TOKENS + 1)):
        with pytest.raises(EngineError, match="whole"):
            engine.cache.share(context, user, part)
    with pytest.raises(EngineError, match="whole"):
        engine.cache.take(rows, Span(0, 10))
    with pytest.raises(EngineError, match="whole"):
        engine.cache.cut(context, TOKENS - 1)
    engine.cache.cut(context, TOKENS)
    assert engine.cache.export_state(context, having_state(engine.spec.layers)).position == TOKENS
    engine.cache.cut(context, 0)
    with pytest.raises(EngineError):
        engine.cache.export_state(context, having_state(engine.spec.layers))


def test_sharing_nothing_shares_no_state(engine: LlamaCpp) -> None:
    context, user, *_ = engine.sequences
    prompt = text(engine, PROMPT)
    alone = answer(engine, user, prompt)
    engine.cache.free(user)
    read(engine, context, text(engine, TOKENS, seed=2))
    engine.cache.share(context, user, Span(0, 0))
    assert [one.token for one in answer(engine, user, prompt)] == [one.token for one in alone]


@pytest.mark.parametrize("open_layers", [0, 1, 3])
def test_a_step_that_is_cancelled_at_the_gate_can_be_made_again(engine: LlamaCpp, open_layers: int) -> None:
    context, user, *_ = engine.sequences
    read(engine, context, text(engine, TOKENS))
    everything, computed = kept(engine, context), whole(engine, context, user)
    free(engine)
    rows = engine.cache.reserve(context, TOKENS)
    engine.cache.share(context, user, Span(0, TOKENS))
    inject_layers(engine, rows, *everything, Span(0, open_layers))
    engine.runner.arm(open_layers)
    running = Running(engine, [Slice(user, text(engine, PROMPT, seed=1), TOKENS)])
    running.until_waiting()
    engine.runner.cancel()
    with pytest.raises(Cancelled):
        running.result()
    inject_layers(engine, rows, *everything, Span(open_layers, LAYERS))
    assert same(kept(engine, user), everything), "something of the step has stayed"
    assert answer(engine, user, text(engine, PROMPT, seed=1), TOKENS) == computed


def test_a_step_that_is_cancelled_otherwise_leaves_nothing_to_go_on_with(engine: LlamaCpp) -> None:
    context, user, *_ = engine.sequences
    read(engine, context, text(engine, TOKENS))
    before = kept(engine, context)
    engine.cache.share(context, user, Span(0, TOKENS))
    engine.runner.arm()
    engine.runner.cancel()
    with pytest.raises(Cancelled):
        engine.runner.run([Slice(user, text(engine, 300), TOKENS)])
    with pytest.raises(EngineError):
        engine.cache.export_state(user, having_state(engine.spec.layers))
    assert same(kept(engine, context), before)


def test_neither_guesses_nor_several_prompts_behind_the_gate_are_computed(engine: LlamaCpp) -> None:
    one, two, *_ = engine.sequences
    with closing(chooser(engine)) as choosing, pytest.raises(EngineError, match="guesses"):
        step(engine, Slice(one, text(engine, 5), 0, choosing, drafts=2))
    engine.runner.arm(0)
    with pytest.raises(EngineError, match="several"):
        engine.runner.run([Slice(sequence, text(engine, 5), 0) for sequence in (one, two)])


def test_states_that_do_not_fit_are_refused(engine: LlamaCpp) -> None:
    context, *_ = engine.sequences
    read(engine, context, text(engine, TOKENS))
    _, states = kept(engine, context)
    engine.cache.free(context)
    rows = engine.cache.reserve(context, TOKENS)
    attending = tuple({*range(LAYERS + 1)} - {*having_state(engine.spec.layers)})
    for wrong in (
        replace(states, position=TOKENS - 1),
        replace(states, layers=attending[-1:], r=states.r[:1], s=states.s[:1]),
        replace(states, layers=states.layers[:-1]),
        replace(states, r=states.r[:, :-1]),
        replace(states, r=states.r[:-1]),
    ):
        with pytest.raises(EngineError):
            engine.cache.inject_state(rows, wrong)
    poisoned = states.r.copy()
    poisoned[-1, -1] = np.nan
    with pytest.raises(CorruptData, match="not finite"):
        engine.cache.inject_state(rows, replace(states, r=poisoned))


def test_a_context_of_many_steps_of_allocation_is_in_order(engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preread.engine.cells._BLOB_BYTES", 1)
    context, user, other, *_ = engine.sequences
    read(engine, context, text(engine, 400))
    engine.cache.share(context, user, Span(0, 400))
    everything, computed = kept(engine, context, 400), answer(engine, user, text(engine, PROMPT, seed=1), 400)
    free(engine)
    read(engine, other, text(engine, 1))
    written(engine, context, everything)
    assert same(kept(engine, context, 400), everything)
    engine.cache.share(context, user, Span(0, 400))
    found = answer(engine, user, text(engine, PROMPT, seed=1), 400)
    assert [one.token for one in found] == [one.token for one in computed]


def test_one_context_at_a_time_goes_out_and_in(engine: LlamaCpp) -> None:
    session = engine.session
    session.prefill(text(engine, TOKENS))
    rows = session.export(Span(0, TOKENS), Span(0, LAYERS))
    states = session.export_state(having_state(engine.spec.layers))
    expected = session.score(text(engine, 1, seed=1))
    session.reserve(TOKENS)
    if rows.k.size:
        session.inject(rows)
    session.inject_state(states)
    session.open_layers(LAYERS)
    assert np.array_equal(session.score(text(engine, 1, seed=1)), expected)
    with pytest.raises(EngineError, match="whole"):
        session.score(text(engine, 1), reuse=TOKENS - 1)
    session.clear()


@pytest.mark.parametrize("layers", [2, LAYERS])
def test_stretches_are_computed_aside_and_other_layers_come(family: LlamaCpp, layers: int) -> None:
    context, user, *stretches = family.sequences[:4]
    tokens, cuts = text(family, TOKENS), (0, 40, TOKENS)
    for start, stop in pairwise(cuts):
        read(family, context, tokens[start:stop], start)
    everything, computed = kept(family, context), whole(family, context, user)
    free(family)
    rows, before = family.cache.reserve(context, TOKENS), context
    inject_layers(family, rows, *everything, Span(layers, LAYERS))
    for sequence, (start, stop) in zip(stretches, pairwise(cuts), strict=True):
        family.cache.share(before, sequence, Span(0, start))
        aside = family.cache.unplaced(sequence, stop)
        step(family, Slice(sequence, tokens[start:stop], start, layers=layers, rows=aside))
        family.cache.copy(aside, rows, Span(start, stop), layers)
        before = sequence
    for sequence in stretches:
        family.cache.free(sequence)
    found = kept(family, context)
    for one, right in ((found[0].k, everything[0].k), (found[0].v, everything[0].v)):
        np.testing.assert_allclose(one.astype(np.float32), right.astype(np.float32), rtol=2e-3, atol=1e-4)
    for one, right in ((found[1].r, everything[1].r), (found[1].s, everything[1].s)):
        np.testing.assert_allclose(one, right, rtol=1e-3, atol=2e-5)  # cells lie elsewhere: sums have another order
    for one, right in zip(whole(family, context, user)[:1], computed[:1], strict=True):
        assert one.logprob == pytest.approx(right.logprob, abs=0.01)
    free(family)
