"""First layers that are computed have local prefill's very bits, or are of no use: wherever their cells come to lie."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing

import llama_cpp
import pytest

from preread.edge.sequences import Sequences
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampled
from preread.engine.selftest import inject_layers
from preread.engine.states import having_state
from preread.plan.step import Part
from preread.testing.engine import answer, free, read, rows, same, text
from preread.testing.families import LAYERS, write_family
from preread.values import ContextId, KVBlock, Span, StateBlock

C = ContextId("c")
BATCH = 512
Kept = tuple[KVBlock, StateBlock | None]


@pytest.fixture(scope="module", params=["llama", "gemma3", "lfm2"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(tmp_path_factory.mktemp("families") / "model.gguf", request.param)
    with closing(LlamaCpp.open(path, window_tokens=2048, kv_memory_bytes=2**25, trusted=True)) as engine:
        yield engine


@pytest.fixture
def engine(shared: LlamaCpp) -> Iterator[LlamaCpp]:
    yield shared
    free(shared)


def kept(engine: LlamaCpp, sequence: int, tokens: int) -> Kept:
    states = having_state(engine.spec.layers)
    return rows(engine, sequence, tokens), engine.cache.export_state(sequence, states) if states else None


def alike(one: Kept, other: Kept) -> bool:
    """Whether the bits are."""
    if not same(one[0], other[0]):
        return False
    pairs = () if one[1] is None or other[1] is None else ((one[1].r, other[1].r), (one[1].s, other[1].s))
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def prefilled(engine: LlamaCpp, tokens: int) -> tuple[Kept, list[Sampled]]:
    """What an empty cache has of a context, and the answer behind it."""
    own, user, *_ = engine.sequences
    document = text(engine, tokens)
    for start in range(0, tokens, BATCH):
        read(engine, own, document[start : start + BATCH], start)
    engine.cache.share(own, user, Span(0, tokens))
    found = kept(engine, own, tokens), answer(engine, user, text(engine, 9, seed=1), tokens)
    free(engine)
    return found


def others(engine: LlamaCpp, sequences: list[int]) -> None:
    """Four are in the cache, and two of them leave."""
    for sequence, count in zip(sequences, (37, 150, 21, 90), strict=True):
        read(engine, sequence, text(engine, count, seed=count))
    for sequence in sequences[::2]:
        engine.cache.free(sequence)


def split(engine: LlamaCpp, sequences: Sequences, tokens: int, layers: int, above: Kept) -> list[bool]:
    """Bring a context of which the first layers are computed; whether each stretch was of use, until one was not."""
    document = text(engine, tokens)
    sequences.bring(C, tokens)
    inject_layers(engine, sequences.reserve(C), *above, Span(layers, LAYERS))
    done = list[bool]()
    for start in range(0, tokens, BATCH):
        fill = sequences.fill(C, document[start : start + BATCH], start, Future(), layers)
        if fill is None:
            return [*done, False]
        engine.runner.arm()
        engine.runner.run([fill.slice(Part(0, len(fill.tokens), False))])
        done.append(sequences.proceed(fill, len(fill.tokens), 0) and sequences.filled(fill))
        if not done[-1]:
            break
    sequences.settle(C)
    return done


@pytest.mark.parametrize("tokens", [150, 300, 1000, 1990])
def test_first_layers_have_prefills_bits_or_are_of_no_use(engine: LlamaCpp, tokens: int) -> None:
    right, said = prefilled(engine, tokens)
    user, *four = engine.sequences[-5:]
    for beside in (False, True):
        for layers in (1, LAYERS // 2):
            if beside:
                others(engine, four)
            sequences = Sequences(engine)
            for sequence in (user, *four):
                sequences._free.remove(sequence)
            spare = sequences.free
            done = split(engine, sequences, tokens, layers, right)
            assert beside or all(done), "in an empty cache there is nothing in the way"
            place = sequences.place(C)
            assert place is not None and done
            if all(done):
                assert alike(kept(engine, place.sequence, tokens), right), (beside, layers)
            if not beside:
                engine.cache.share(place.sequence, user, Span(0, tokens))
                assert answer(engine, user, text(engine, 9, seed=1), tokens) == said
            sequences.drop(C)
            assert sequences.free == spare
            free(engine)


def test_a_stretch_that_did_not_come_to_lie_in_tiles_is_of_no_use(
    engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays: neither rows in the context nor cells."""
    right, _ = prefilled(engine, 150)
    monkeypatch.setattr(engine.cache, "_hold", lambda *_: None)
    sequences = Sequences(engine)
    spare = sequences.free
    assert split(engine, sequences, 150, LAYERS // 2, right) == [False]
    place = sequences.place(C)
    assert place is not None and sequences.free == spare - 1
    found, _ = kept(engine, place.sequence, 150)
    assert not found.v[0].any(), "something was copied"
    sequences.drop(C)
    engine.cache.reserve(engine.sequences[0], engine.cells)


def test_a_stretch_that_goes_in_other_batches_than_prefills_is_of_no_use(engine: LlamaCpp) -> None:
    sequences, document = Sequences(engine), text(engine, 150)
    sequences.bring(C, 150)
    sequences.reserve(C)
    assert sequences.fill(C, document[:86], 0, Future(), 2) is None
    fill = sequences.fill(C, document, 0, Future(), 2)
    assert fill is not None and sequences.proceed(fill, 64, 9) and not sequences.proceed(fill, 30, 9)
    sequences.undo(fill)
    sequences.drop(C)


def test_cells_that_were_held_are_free_again_after_a_step_that_is_cancelled(engine: LlamaCpp) -> None:
    sequences, document = Sequences(engine), text(engine, 300)
    sequences.bring(C, 300)
    sequences.reserve(C)
    fill = sequences.fill(C, document, 0, Future(), 3)
    assert fill is not None
    engine.runner.arm()
    engine.runner.cancel()
    with pytest.raises(Exception, match="cancelled"):
        engine.runner.run([fill.slice(Part(0, 300, False))])
    sequences.undo(fill)
    sequences.drop(C)
    engine.cache.reserve(engine.sequences[0], engine.cells)
