"""Families whose layers keep different things: what they keep goes out and in, bit by bit, whatever it is."""

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import llama_cpp
import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.engine.selftest import exported, self_test
from preread.errors import EngineError
from preread.testing.engine import answer, free, read, text
from preread.testing.families import write_family
from preread.values import KVBlock, RowShape, Span, geometry_of, runs_of

ALL = ("deepseek2", "gemma3n", "gemma4", "minicpm3", "qwen2vl", "qwen3vl")
TOKENS, PROMPT = 90, 12


@pytest.fixture(scope="module", params=ALL)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(tmp_path_factory.mktemp("families") / f"{request.param}.gguf", request.param)
    with closing(LlamaCpp.open(path, name=request.param, window_tokens=512, kv_memory_bytes=0, trusted=True)) as engine:
        yield engine


@pytest.fixture
def engine(family: LlamaCpp) -> Iterator[LlamaCpp]:
    yield family
    free(family)


def test_what_is_injected_layer_by_layer_is_what_was_computed(family: LlamaCpp) -> None:
    assert self_test(family).no_injection is None


def test_a_context_comes_back_to_other_cells_with_the_same_answer(engine: LlamaCpp) -> None:
    context, user, other, *_ = engine.sequences
    read(engine, context, text(engine, TOKENS))
    blocks = exported(engine, context, TOKENS)
    engine.cache.share(context, user, Span(0, TOKENS))
    computed = answer(engine, user, text(engine, PROMPT, seed=1), TOKENS)
    free(engine)
    read(engine, other, text(engine, 30, seed=3))
    rows = engine.cache.reserve(context, TOKENS)
    for block in blocks:
        engine.cache.inject(rows, block)
    found = exported(engine, context, TOKENS)
    assert all(one.k.tobytes() == other.k.tobytes() for one, other in zip(blocks, found, strict=True))
    engine.cache.share(context, user, Span(0, TOKENS))
    again = answer(engine, user, text(engine, PROMPT, seed=1), TOKENS)
    assert [step.token for step in again] == [step.token for step in computed]


def test_rows_of_another_size_are_not_written(engine: LlamaCpp) -> None:
    rows, (run, *_) = engine.cache.reserve(engine.sequences[0], TOKENS), runs_of(engine.spec.layers)
    half = np.zeros((len(run), 1, TOKENS, 8), np.float16)
    with pytest.raises(EngineError, match="does not fit"):
        engine.cache.inject(rows, KVBlock(Span(0, TOKENS), run, half, half))


def test_layers_that_differ_are_not_taken_for_alike(family: LlamaCpp) -> None:
    layers, name = family.spec.layers, family.spec.name
    assert (geometry_of(layers) is None) == (not name.startswith("qwen"))
    assert family.spec.planes == name.startswith("qwen")
    runs = runs_of(layers)
    assert all(left.stop == right.start for left, right in pairwise(runs))
    assert (runs[0].start, runs[-1].stop) == (0, len(layers))
    shapes = {layer.rows for layer in layers}
    if name == "gemma4":
        assert shapes == {RowShape(2, 128, 128), RowShape(2, 256, 256), None}
    if name == "deepseek2":
        assert shapes == {RowShape(1, 96, 0)}, "latent rows, which stand for both"
