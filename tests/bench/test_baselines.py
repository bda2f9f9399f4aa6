from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.bench.baselines import KIVI_BITS, Kivi
from preread.bench.cachegen import STEPS, CacheGen, fit
from preread.codec.base import Codec
from preread.values import Geometry, KVBlock, Span

GEOMETRY = Geometry(layers=6, kv_heads=2, head_dim=16)
WHOLE = Span(0, 6)


def block(seed: int, tokens: int, layers: Span = WHOLE, start: int = 0) -> KVBlock:
    """Like KV: channels with offsets, neighbours in time alike."""
    noise = np.random.default_rng(seed)
    shape = (len(layers), GEOMETRY.kv_heads, tokens, GEOMETRY.head_dim)
    offset = np.random.default_rng(99).normal(0, 3, (*shape[:2], 1, shape[3]))
    k, v = (
        (offset + noise.normal(0, 0.3, shape).cumsum(axis=2) / 3 + noise.normal(0, 0.3, shape)).astype(np.float16)
        for _ in range(2)
    )
    return KVBlock(Span(start, start + tokens), layers, k, v)


def through(codec: Codec, given: KVBlock) -> KVBlock:
    found = codec.decode(codec.encode(given), given.tokens, given.layers, GEOMETRY)
    assert found.tokens == given.tokens and found.layers == given.layers
    assert found.k.shape == given.k.shape and found.k.dtype == found.v.dtype == np.float16
    return found


def error(given: KVBlock, found: KVBlock) -> float:
    return float(np.abs(given.k.astype(float) - found.k).mean() + np.abs(given.v.astype(float) - found.v).mean())


@cache
def levels() -> tuple[CacheGen, ...]:
    return fit([block(seed, 400) for seed in range(3)])


@pytest.mark.parametrize("bits", KIVI_BITS)
def test_kivi_is_off_by_half_a_step_at_most_and_keeps_the_last_tokens(bits: int) -> None:
    given = block(7, 64 + 32 + 5)
    found = through(Kivi(bits), given)
    assert np.array_equal(found.k[:, :, 96:], given.k[:, :, 96:])
    assert np.array_equal(found.v[:, :, 96:], given.v[:, :, 96:])
    for span in (slice(0, 64), slice(64, 96)):
        group, back = given.k[:, :, span].astype(float), found.k[:, :, span]
        step = np.ptp(group, axis=2, keepdims=True) / (2**bits - 1)
        assert (np.abs(group - back) <= 0.51 * step + 0.01).all()
    group, back = given.v[:, :, :96].astype(float), found.v[:, :, :96]
    step = np.ptp(group, axis=3, keepdims=True) / (2**bits - 1)
    assert (np.abs(group - back) <= 0.51 * step + 0.01).all()


@pytest.mark.parametrize("bits", KIVI_BITS)
def test_kivi_costs_its_bits_and_half_a_bit_for_scales(bits: int) -> None:
    geometry = Geometry(2, 2, 64)
    k, v = np.random.default_rng(0).normal(size=(2, 2, 2, 128, 64)).astype(np.float16)
    size_bytes = len(Kivi(bits).encode(KVBlock(Span(0, 128), Span(0, 2), k, v)))
    assert 8 * size_bytes / (128 * geometry.values_per_token) == bits + 0.5


@given(tokens=st.integers(1, 90), first=st.integers(0, 4), count=st.integers(1, 2), level=st.integers(0, 2))
def test_cachegen_reads_what_it_wrote(tokens: int, first: int, count: int, level: int) -> None:
    given = block(tokens, tokens, Span(first, first + count))
    found, tables = through(levels()[level], given), levels()[level].k
    anchors = np.abs(given.k[:, :, ::10].astype(float)).max(axis=3, keepdims=True) / 127
    assert (np.abs(given.k[:, :, ::10].astype(float) - found.k[:, :, ::10]) <= 0.51 * anchors + 0.01).all()
    between = np.arange(tokens) % 10 != 0
    step = tables.step[first : first + count]
    off = np.abs(given.k.astype(float) - found.k)[:, :, between]
    assert (off <= 0.51 * step + 0.01).all()


def test_cachegen_steps_grow_over_the_layers_thirds() -> None:
    spread = levels()[0].k.step.ravel() / (STEPS["fine"] * np.array([0.5, 0.5, 1, 1, 1.5, 1.5]))
    assert np.ptp(spread) < 0.2 * spread.mean()  # what is left is the layers' own deviation, which is alike here


def test_coarser_levels_cost_less_and_lose_more() -> None:
    given = block(7, 200)
    sizes = [len(level.encode(given)) for level in levels()]
    errors = [error(given, through(level, given)) for level in levels()]
    assert [level.rung for level in levels()] == ["cachegen-fine", "cachegen-middle", "cachegen-coarse"]
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)


def test_the_coder_is_close_to_the_entropy_of_its_symbols() -> None:
    given, codec = block(8, 400), levels()[1]
    bits = 0.0
    found = through(codec, given)
    for half, back, tables in ((given.k, found.k, codec.k), (given.v, found.v, codec.v)):
        base = np.repeat(back[:, :, ::10].astype(np.float32), 10, axis=2)
        codes = np.rint((half.astype(np.float32) - base) / tables.step)[:, :, np.arange(400) % 10 != 0]
        for row in codes.transpose(0, 1, 3, 2).reshape(-1, 360):
            share = np.unique(row, return_counts=True)[1] / row.size
            bits -= row.size * (share * np.log2(share)).sum()
    anchors_bits = 2 * 6 * 2 * 40 * (16 * 8 + 16)
    assert 8 * len(codec.encode(given)) < 1.1 * bits + anchors_bits
