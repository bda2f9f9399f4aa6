"""Attention in tiles against its definition, and against llama.cpp's own."""

import ctypes
import mmap
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread import engine
from preread.engine.attention import Attention, attends_in_tiles
from preread.engine.ggml import Tensor, library
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError

F32, F16, CELLS = 0, 1, 64
tiled = pytest.mark.skipif(not attends_in_tiles(512), reason="this processor has no AVX2")
AVX512 = Path("/proc/cpuinfo").exists() and "avx512vl" in Path("/proc/cpuinfo").read_text().split()
Compute = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
Take = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class Kind:
    """Attention for one kind of processor: `part` is where it is compiled."""

    def __init__(self, bits: int, part: ctypes.CDLL | None = None) -> None:
        attention = Attention(library(), bits)
        address = ctypes.cast(part.preread_attention_take, ctypes.c_void_p) if part else attention.take
        assert address.value
        self.attention, self.operations, self.take = attention, attention.operations, Take(address.value)


NARROW = Kind(256)


@pytest.fixture(scope="module", params=["AVX2", "AVX-512", "AVX-512 in AVX2"])
def kind(request: pytest.FixtureRequest, built: Callable[..., ctypes.CDLL]) -> Kind:
    """The last is the code for AVX-512, whose vectors the compiler makes of two of AVX2: for processors without it."""
    if request.param == "AVX-512 in AVX2":
        return Kind(512, built(Path(engine.__file__).parent, ("attention.c",), {"AVX512": "AVX2"}))
    if request.param == "AVX-512" and not AVX512:
        pytest.skip("this processor has no AVX-512: its code runs as 'AVX-512 in AVX2'")
    return Kind({"AVX2": 256, "AVX-512": 512}[request.param])


class Node:
    """A node of attention over a cache of rows (cells, kv_heads, dim), as llama.cpp builds it."""

    def __init__(
        self,
        seed: int,
        dim: int,
        tokens: int,
        kv_heads: int,
        group: int,
        cells: int,
        seen: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """`seen`: which cells each token sees, (tokens, cells); of its own kind by default."""
        rng = np.random.default_rng(seed)
        heads, self.shape = kv_heads * group, (dim, kv_heads, group, cells)
        self.q = rng.normal(0, 3, (tokens, heads, dim)).astype(np.float32)
        self.k = rng.normal(0, 1, (cells, kv_heads, dim)).astype(np.float16)
        self.v = rng.normal(0, 1, (cells, kv_heads, dim)).astype(np.float16)
        self.seen = rng.random((tokens, cells)) < rng.choice([0.02, 0.5, 1.0], (tokens, 1))
        self.seen[:, : int(rng.integers(0, cells))] = bool(rng.integers(2))
        self.seen = self.seen if seen is None else seen
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

    def of(self, tokens: list[int]) -> "Node":
        """A batch of only these tokens, over the same cache."""
        dim, kv_heads, group, cells = self.shape
        other = Node(0, dim, len(tokens), kv_heads, group, cells, self.seen[tokens])
        other.q[:], other.k[:], other.v[:], other.mask[:] = self.q[tokens], self.k, self.v, self.mask[tokens]
        return other

    def see(self, seen: npt.NDArray[np.bool_]) -> None:
        """Change the mask where it is, as the next decode does."""
        self.seen = seen
        self.mask[:] = np.where(seen, 0, -np.inf)

    def take(self, kind: Kind = NARROW) -> bool:
        """Whether it is going to be computed by preread."""
        numbers = ctypes.cast(kind.operations, ctypes.POINTER(ctypes.c_int32))
        self.node.op = self.node.op or numbers[0]
        kind.take(ctypes.addressof(self.node), kind.operations)
        return bool(self.node.op == numbers[1])

    def compute(self, *, threads: int = 1) -> npt.NDArray[np.float32]:
        pointers = ctypes.string_at(ctypes.addressof(self.node.op_params), 24)
        function, data = (int.from_bytes(pointers[at : at + 8], "little") for at in (0, 16))
        self.out[:] = np.nan

        def run(thread: int) -> None:
            Compute(function)(ctypes.addressof(self.node), thread, threads, data)

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
        "tokens": st.integers(1, 80),
        "kv_heads": st.integers(1, 3),
        "group": st.sampled_from([1, 2, 3, 7, 8, 33, 64]),
        "cells": st.integers(1, 300),
    }
)


@tiled
@settings(deadline=None, max_examples=60)
@given(shapes, st.sampled_from([1, 2, 5]))
def test_it_is_softmax_of_the_products_whatever_the_shapes(kind: Kind, shape: dict[str, int], threads: int) -> None:
    node, other = Node(**shape), Node(**shape)
    assert node.take(kind) and other.take(NARROW)
    out = node.compute(threads=threads)
    assert np.abs(out - node.expected()).max() < 2e-5
    assert np.array_equal(out, other.compute()), "neither threads nor the width of registers change a bit"
    assert node.take(kind)  # a graph that is used again
    assert np.array_equal(node.compute(), out)


@st.composite
def caches(draw: st.DrawFn) -> npt.NDArray[np.bool_]:
    """What tokens see (tokens, cells) of a cache of many contexts.

    Runs that some of them share, gaps, answers that grow side by side, and cells that are seen by chance.
    """
    tokens, cells = draw(st.integers(1, 24)), draw(st.integers(1, 900))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    seen = np.zeros((tokens, cells), bool)
    for _ in range(draw(st.integers(0, 4))):
        start, stop = np.sort(rng.integers(0, cells + 1, 2))
        seen[np.ix_(rng.random(tokens) < rng.choice([0.2, 1]), np.arange(start, stop))] = True
    if draw(st.booleans()):
        start, stop = np.sort(rng.integers(0, cells + 1, 2))
        seen[:, start:stop] = np.arange(start, stop) % tokens == np.arange(tokens)[:, None]
    if draw(st.booleans()):
        seen ^= rng.random((tokens, cells)) < 0.03
    return seen


@tiled
@settings(deadline=None, max_examples=40)
@given(caches(), st.sampled_from([(3, 3), (7, 2), (1, 4), (64, 1)]), st.data())
def test_what_a_token_gets_depends_on_what_it_sees_alone(
    kind: Kind, seen: npt.NDArray[np.bool_], heads: tuple[int, int], data: st.DataObject
) -> None:
    node = Node(7, 24, *seen.shape[:1], heads[1], heads[0], seen.shape[1], seen)
    assert node.take(kind)
    out = node.compute(threads=data.draw(st.sampled_from([1, 2, 9])))
    assert np.abs(out - node.expected()).max() < 2e-5
    some = data.draw(st.lists(st.integers(0, len(seen) - 1), min_size=1, max_size=12))
    other = node.of(some)
    unseen = ~seen[some].any(axis=0)
    other.k[unseen], other.v[unseen] = np.nan, np.inf
    assert other.take(kind)
    assert np.array_equal(other.compute(threads=data.draw(st.sampled_from([1, 3]))), out[some]), "not a bit changes"


@tiled
def test_other_values_of_a_mask_are_added(kind: Kind) -> None:
    node = Node(3, 64, 5, 2, 7, 300, np.random.default_rng(3).random((5, 300)) < [[0.1], [0.3], [0.7], [0.9], [1]])
    bias = np.random.default_rng(4).normal(0, 1, node.seen.shape).astype(np.float16)
    node.mask[:] = np.where(node.seen, bias, -np.inf)
    assert node.take(kind)
    group = node.q.shape[1] // node.k.shape[1]
    k, v = (np.repeat(rows.astype(np.float64), group, axis=1) for rows in (node.k, node.v))
    scores = np.einsum("thd,chd->htc", node.q.astype(np.float64), k) * node.scale + node.mask.astype(np.float64)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = np.einsum("htc,chd->thd", weights / weights.sum(axis=2, keepdims=True), v)
    assert np.abs(node.compute() - expected).max() < 2e-5


@tiled
def test_the_mask_is_looked_at_once_an_evaluation_and_again_in_the_next() -> None:
    first, second = small(), small(seed=2)
    before, after = first.seen, ~first.seen
    second.node.src[3] = first.node.src[3]  # two layers of one graph
    assert first.take() and second.take()
    expected = first.compute()
    first.see(after)
    second.seen = before
    assert np.abs(second.compute() - second.expected()).max() < 2e-5, "it was looked at for the first layer"
    assert first.take() and second.take()  # the graph is used again
    second.seen = after
    assert np.abs(first.compute() - first.expected()).max() < 2e-5
    assert np.abs(second.compute() - second.expected()).max() < 2e-5
    first.see(before)
    assert first.take()  # and again, layer by layer
    assert np.array_equal(first.compute(), expected)
    second.seen = before
    assert second.take()
    assert np.abs(second.compute() - second.expected()).max() < 2e-5


@tiled
def test_layers_of_one_graph_may_have_different_masks() -> None:
    nodes = [small(seed=1), small(seed=2, cells=90), small(seed=3)]
    nodes[2].node.src[3] = nodes[0].node.src[3]
    nodes[2].seen = nodes[0].seen
    for _ in range(2):
        assert all([node.take() for node in nodes])
        for node in nodes:
            assert np.abs(node.compute(threads=2) - node.expected()).max() < 2e-5


@tiled
def test_cells_that_no_token_sees_are_not_read(kind: Kind) -> None:
    """Pages of K and V that nobody has touched stay that way."""
    cells, page, row_bytes = 4096, mmap.PAGESIZE, 128
    seen = np.zeros((3, cells), bool)
    seen[:, 1024:1200], seen[1, 2048:2100], seen[2, 3000:3900:64] = True, True, True
    node = Node(5, 64, 3, 1, 7, cells, seen)
    maps = [mmap.mmap(-1, cells * row_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in "kv"]
    rows = [np.frombuffer(memory, np.float16).reshape(cells, 1, 64) for memory in maps]
    for memory, lazy, values, source in zip(maps, rows, (node.k, node.v), node.sources[1:], strict=False):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        lazy[seen.any(axis=0)] = values[seen.any(axis=0)]
        source.data = lazy.ctypes.data
    assert node.take(kind)
    assert np.abs(node.compute() - node.expected()).max() < 2e-5
    used = np.zeros((cells // CELLS, CELLS), bool)
    used[np.where(seen.any(axis=0))[0] // CELLS] = True  # tiles are read whole
    wanted = used.reshape(-1, page // row_bytes).any(axis=1)
    for lazy in rows:
        resident = (ctypes.c_ubyte * len(wanted))()
        address = ctypes.c_void_p(lazy.ctypes.data)
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(lazy.nbytes), resident) == 0
        touched = np.frombuffer(resident, np.uint8) & 1 != 0
        assert touched.any() and not touched[~wanted].any()


def test_narrower_vectors_than_it_has_code_for_leave_attention_to_llama_cpp(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_VECTOR_BITS", "128")
    with closing(LlamaCpp.open(tiny_model, window_tokens=64)) as opened:
        assert opened.attention is None and opened.no_injection is None
    monkeypatch.setenv("PREREAD_VECTOR_BITS", "1024")
    with pytest.raises(UsageError, match="512, 256 or 128"):
        LlamaCpp.open(tiny_model, window_tokens=64)


def small(**changed: int) -> Node:
    return Node(**{"seed": 1, "dim": 64, "tokens": 8, "kv_heads": 2, "group": 7, "cells": 100} | changed)


@tiled
def test_keys_that_tie_and_scores_that_are_far_apart_are_kept_exactly(kind: Kind) -> None:
    node = small(dim=8)
    node.seen[:], node.mask[:] = True, 0
    node.q[:] = node.q * 60  # scores hundreds apart: nearly one cell takes all
    node.k[50] = node.k[3]
    assert node.take(kind)
    assert np.abs(node.compute() - node.expected()).max() < 1e-4


def test_what_it_does_not_know_is_left_to_llama_cpp() -> None:
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
        assert not node.take(), change.__name__
    for shape in ({"dim": 136}, {"dim": 60}, {"group": 65}):
        assert not small(**shape).take(), shape


TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def logits(opened: LlamaCpp, tokens: int) -> npt.NDArray[np.float64]:
    """Of 32 tokens behind a context of 300, computed in a batch of so many."""
    text = opened.tokenize(TEXT)
    opened.session.prefill(text[:300])
    return opened.session.score(text[300 : 300 + tokens])[:32].astype(np.float64)


def divergence(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Mean KL divergence of next-token distributions, in nats."""
    p, q = (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True) for rows in (one, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@tiled
def test_a_model_predicts_with_it_as_with_llama_cpps_more_precise_attention(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp sums up in float32 where it takes 64 tokens at a time, and in float16 where it takes them one by one.

    A model with quantised weights would not tell: it rounds activations to 8 bits, which makes any two ways of
    rounding differ alike. This one keeps float16.
    """
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, threads=2, scored_tokens=64)) as opened:
        assert opened.attention
        ours, among_others = logits(opened, 32), logits(opened, 64)
        opened.attention.on = False
        by_rows, by_tiles = logits(opened, 32), logits(opened, 64)
    assert np.array_equal(among_others, ours), "what else is in the batch changes no bit"
    assert 0 < divergence(by_tiles, ours) < 0.5 * divergence(by_tiles, by_rows)
    monkeypatch.setenv("PREREAD_VECTOR_BITS", "256")
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, threads=1, scored_tokens=32)) as opened:
        assert np.array_equal(logits(opened, 32), ours), "neither threads nor the width of registers change a bit"


def side_by_side(opened: LlamaCpp, contexts: int, answers: int) -> npt.NDArray[np.float64]:
    """Logits (answers, vocab) of answers that grow side by side for three tokens, behind contexts in one cache."""
    text, memory, batch = opened.tokenize(TEXT), opened.native.memory, opened.native.batch
    opened.session.clear()
    tokens = 80
    for context in range(contexts):
        opened.native.decode(text[context * tokens : (context + 1) * tokens], 0, context)
    for answer in range(answers):
        llama_cpp.llama_memory_seq_cp(memory, answer % contexts, contexts + answer, -1, -1)
    for step in range(3):
        batch.clear()
        for answer in range(answers):
            batch.add(text[step + 7 * answer :][:1], tokens + step, contexts + answer, np.ones(1, bool))
        opened.native.run(gated=False)
    return opened.native.rows(answers).astype(np.float64)


@tiled
@pytest.mark.parametrize(("contexts", "answers"), [(1, 1), (1, 8), (4, 7)])
def test_answers_side_by_side_are_those_of_llama_cpps_own_attention(
    tiny_model: Path, contexts: int, answers: int
) -> None:
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, threads=2)) as opened:
        assert opened.attention
        ours = side_by_side(opened, contexts, answers)
        opened.session.clear()
        opened.attention.on = False
        opened.session.prefill(opened.tokenize(TEXT)[:5])  # so that no graph is used again
        own = side_by_side(opened, contexts, answers)
    assert 0 < divergence(own, ours) < 1e-3
    others = np.roll(own, 1, axis=0) if answers > 1 else own[:, ::-1]
    assert divergence(others, ours) > 0.1, "answers do differ"
