"""K and V of different widths, and K alone, through every codec that needs no profile."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.codec.ladder import codec
from preread.errors import CorruptData, UsageError
from preread.values import KVBlock, KVShape, Span

SHAPES = st.builds(KVShape, st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(0, 70))


def block_of(shape: KVShape, tokens: int, spare: int, seed: int) -> KVBlock:
    """`spare`: layers of the span that have no rows."""
    draw = np.random.default_rng(seed)
    k, v = (
        draw.normal(size=(shape.layers, shape.kv_heads, tokens, dim)).astype(np.float16)
        for dim in (shape.k_dim, shape.v_dim)
    )
    return KVBlock(Span(7, 7 + tokens), Span(3, 3 + shape.layers + spare), k, v)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 70), st.integers(0, 2), st.integers(0, 99))
def test_lossless_keeps_every_bit(shape: KVShape, tokens: int, spare: int, seed: int) -> None:
    block, step = block_of(shape, tokens, spare, seed), codec("lossless")
    found = step.decode(step.encode(block), block.tokens, block.layers, block.shape)
    assert block.shape == shape == found.shape and (found.tokens, found.layers) == (block.tokens, block.layers)
    assert found.k.tobytes() == block.k.tobytes() and found.v.tobytes() == block.v.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([("q8", 255), ("q4", 15)]), SHAPES, st.integers(1, 70), st.integers(0, 99))
def test_quantised_values_are_off_by_half_a_step(rung: tuple[str, int], shape: KVShape, tokens: int, seed: int) -> None:
    block, step = block_of(shape, tokens, 0, seed), codec(rung[0])
    found = step.decode(step.encode(block), block.tokens, block.layers, shape)
    for half, back in ((block.k, found.k), (block.v, found.v)):
        assert back.shape == half.shape and back.flags.c_contiguous
        most = 10 / rung[1]  # random values span less than 10
        assert not half.size or np.abs(half.astype(np.float32) - back.astype(np.float32)).max() < most


@pytest.mark.parametrize("rung", ["lossless", "q8", "q4"])
def test_what_was_written_for_another_width_is_corrupt(rung: str) -> None:
    block, step = block_of(KVShape(2, 1, 8, 4), 5, 0, 0), codec(rung)
    with pytest.raises(CorruptData, match="states"):
        step.decode(step.encode(block), block.tokens, block.layers, KVShape(2, 1, 4, 8 + 4))


def test_a_shape_of_more_layers_than_the_span_is_refused() -> None:
    block, step = block_of(KVShape(2, 1, 8, 4), 5, 0, 0), codec("lossless")
    with pytest.raises(UsageError):
        step.decode(step.encode(block), block.tokens, Span(0, 1), block.shape)
    with pytest.raises(UsageError, match="does not fit"):
        step.encode(KVBlock(block.tokens, Span(0, 1), block.k, block.v))
