"""Attention in tiles against its definition, and against llama.cpp's own."""

import ctypes
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.engine.attention import Attention, attends_in_tiles
from preread.engine.gate import Gate
from preread.engine.ggml import Tensor, library
from preread.engine.llamacpp import LlamaCpp

F32, F16 = 0, 1
tiled = pytest.mark.skipif(not attends_in_tiles(), reason="this processor has no AVX2, or the compiler was not gcc")
Compute = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
Take = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


@pytest.fixture(scope="module")
def attention() -> Attention:
    return Attention(library())


class Node:
    """A node of attention over a cache of rows (cells, kv_heads, dim), as llama.cpp builds it."""

    def __init__(self, seed: int, dim: int, tokens: int, kv_heads: int, group: int, cells: int) -> None:
        rng = np.random.default_rng(seed)
        heads = kv_heads * group
        self.q = rng.normal(0, 3, (tokens, heads, dim)).astype(np.float32)
        self.k = rng.normal(0, 1, (cells, kv_heads, dim)).astype(np.float16)
        self.v = rng.normal(0, 1, (cells, kv_heads, dim)).astype(np.float16)
        self.seen = rng.random((tokens, cells)) < rng.choice([0.02, 0.5, 1.0], (tokens, 1))
        self.seen[:, : int(rng.integers(0, cells))] = bool(rng.integers(2))
        self.mask = np.where(self.seen, 0, -np.inf).astype(np.float16)
        self.out = np.full((tokens, heads, dim), np.nan, np.float32)
        self.scale = 1 / np.sqrt(dim)
        self.sources = [
            tensor(self.q, F32, (dim, tokens, heads), (4, 4 * heads * dim, 4 * dim)),
            tensor(self.k, F16, (dim, cells, kv_heads), (2, 2 * kv_heads * dim, 2 * dim)),
            tensor(self.v, F16, (dim, cells, kv_heads), (2, 2 * kv_heads * dim, 2 * dim)),
            tensor(self.mask, F16, (cells, tokens, 1), (2, 2 * cells, 2 * cells * tokens)),
        ]
        self.node = tensor(self.out, F32, (dim, heads, tokens), (4, 4 * dim, 4 * heads * dim))
        for i, source in enumerate(self.sources):
            self.node.src[i] = ctypes.addressof(source)
        floats = ctypes.cast(self.node.op_params, ctypes.POINTER(ctypes.c_float))
        floats[0] = self.scale

    def take(self, attention: Attention) -> bool:
        """Whether it is going to be computed by preread."""
        numbers = ctypes.cast(attention.operations, ctypes.POINTER(ctypes.c_int32))
        self.node.op = self.node.op or numbers[0]
        address = attention.take.value
        assert address
        Take(address)(ctypes.addressof(self.node), attention.operations)
        return bool(self.node.op == numbers[1])

    def compute(self, *, threads: int = 1, wide: bool = True) -> npt.NDArray[np.float32]:
        pointers = ctypes.string_at(ctypes.addressof(self.node.op_params), 24)
        function, data = (int.from_bytes(pointers[at : at + 8], "little") for at in (0, 16))
        self.out[:] = np.nan

        def run(thread: int) -> None:
            Compute(function)(ctypes.addressof(self.node), thread, threads, data if wide else None)

        workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return self.out.copy()

    def expected(self) -> npt.NDArray[np.float64]:
        group = self.q.shape[1] // self.k.shape[1]
        k, v = (np.repeat(rows.astype(np.float64), group, axis=1) for rows in (self.k, self.v))
        scores = np.einsum("thd,chd->htc", self.q.astype(np.float64), k) * self.scale
        weights = np.where(self.seen, np.exp(scores - scores.max(axis=2, keepdims=True)), 0)
        total = weights.sum(axis=2, keepdims=True)
        return np.einsum("htc,chd->thd", np.divide(weights, total, where=total > 0, out=weights), v)


def tensor(array: npt.NDArray[np.generic], kind: int, ne: tuple[int, ...], nb: tuple[int, ...]) -> Tensor:
    made = Tensor(type=kind, data=array.ctypes.data)
    made.ne[:], made.nb[:] = (*ne, 1), (*nb, nb[-1] * ne[-1])
    return made


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "dim": st.integers(1, 16).map(lambda n: 8 * n),
        "tokens": st.integers(4, 80),
        "kv_heads": st.integers(1, 3),
        "group": st.sampled_from([1, 2, 3, 7, 8, 33, 64]),
        "cells": st.integers(1, 300),
    }
)


@tiled
@settings(deadline=None, max_examples=150)
@given(shapes, st.booleans(), st.sampled_from([1, 2, 5]))
def test_it_is_softmax_of_the_products_whatever_the_shapes(
    attention: Attention, shape: dict[str, int], wide: bool, threads: int
) -> None:
    node = Node(**shape)
    assert node.take(attention)
    out, expected = node.compute(threads=threads, wide=wide), node.expected()
    assert np.abs(out - expected).max() < 2e-5
    assert node.take(attention)  # a graph that is used again
    assert np.array_equal(node.compute(wide=not wide), out), "neither threads nor the width of registers change a bit"


def small(**changed: int) -> Node:
    return Node(**{"seed": 1, "dim": 64, "tokens": 8, "kv_heads": 2, "group": 7, "cells": 100} | changed)


@tiled
def test_keys_that_tie_and_scores_that_are_far_apart_are_kept_exactly(attention: Attention) -> None:
    node = small(dim=8)
    node.seen[:], node.mask[:] = True, 0
    node.q[:] = node.q * 60  # scores hundreds apart: nearly one cell takes all
    node.k[50] = node.k[3]
    assert node.take(attention)
    assert np.abs(node.compute() - node.expected()).max() < 1e-4


def test_what_it_does_not_know_is_left_to_llama_cpp(attention: Attention) -> None:
    def float_cache(node: Node) -> None:
        node.sources[1].type = F32

    def sinks(node: Node) -> None:
        node.node.src[4] = node.node.src[3]

    def no_mask(node: Node) -> None:
        node.node.src[3] = None

    def soft_cap(node: Node) -> None:
        node.node.op_params[2] = 1

    def alibi(node: Node) -> None:
        node.node.op_params[1] = 1

    def streams(node: Node) -> None:
        node.sources[1].ne[3] = node.sources[2].ne[3] = 2

    def narrow_values(node: Node) -> None:
        node.sources[2].ne[0] = 32

    def strided(node: Node) -> None:
        node.sources[1].nb[0] = 4

    for change in (float_cache, sinks, no_mask, soft_cap, alibi, streams, narrow_values, strided):
        node = small()
        change(node)
        assert not node.take(attention), change.__name__
    for shape in ({"tokens": 3}, {"dim": 136}, {"dim": 60}, {"group": 65}):
        assert not small(**shape).take(attention), shape


TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def logits(path: Path, threads: int, tokens: int) -> npt.NDArray[np.float64]:
    """Of 32 tokens behind a context of 800, computed in a batch of so many."""
    with closing(LlamaCpp.open(path, window_tokens=1024, threads=threads, scored_tokens=tokens)) as engine:
        text = engine.tokenize(TEXT)
        engine.prefill(text[:800])
        return engine.score(text[800 : 800 + tokens])[:32].astype(np.float64)


def divergence(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Mean KL divergence of next-token distributions, in nats."""
    p, q = (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True) for rows in (one, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@tiled
def test_a_model_predicts_with_it_as_without_but_for_what_llama_cpp_differs_from_itself(
    smollm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = logits(smollm, 2, 32)
    assert np.array_equal(logits(smollm, 1, 32), ours), "the number of threads changes no bit"
    assert np.array_equal(logits(smollm, 2, 64), ours), "what else is in the batch changes no bit"
    monkeypatch.setattr(Gate, "prepare", lambda self, attention: None)
    by_rows, by_tiles = logits(smollm, 2, 32), logits(smollm, 2, 64)
    assert 0 < divergence(by_tiles, ours) < 1.5 * divergence(by_tiles, by_rows) < 0.01
