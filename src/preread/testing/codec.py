"""The contract of every codec, as a test suite to inherit: `class TestMine(CodecContract)` with a `codec` fixture."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from preread.codec.base import Codec
from preread.errors import CorruptData, UsageError
from preread.values import Geometry, Half, KVBlock, Span

SHAPES = [(1, 1, 1, 1), (2, 1, 8, 8), (1, 3, 63, 5), (2, 2, 64, 64), (3, 1, 65, 80), (1, 2, 129, 128)]
"""(layers, kv_heads, tokens, head_dim): smallest, and around the edges of groups of 64."""


def sample_block(shape: tuple[int, int, int, int], first_token: int = 0, first_layer: int = 0) -> KVBlock:
    """A block like a real cache: normal values, channels of K with scales and offsets of their own."""
    layers, _, tokens, dim = shape
    source = np.random.default_rng(sum(shape))
    offset, scale = source.normal(0, 8, (1, 1, 1, dim)), np.exp(source.normal(0, 1, (1, 1, 1, dim)))
    k = (offset + scale * source.normal(size=shape)).astype(np.float16)
    v = source.normal(0, 0.3, shape).astype(np.float16)
    spans = Span(first_token, first_token + tokens), Span(first_layer, first_layer + layers)
    return KVBlock(*spans, k, v)


class CodecContract:
    """What callers rely on.

    Attributes:
        largest_error: allowed error of any value, as a share of the range of its array.
    """

    largest_error = 0.0

    @pytest.fixture
    def codec(self) -> Codec:
        raise NotImplementedError

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_block_comes_back(self, codec: Codec, shape: tuple[int, int, int, int]) -> None:
        block = sample_block(shape, first_token=512, first_layer=6)
        back = codec.decode(codec.encode(block), block.tokens, block.layers, Geometry(32, shape[1], shape[3]))
        assert (back.tokens, back.layers) == (block.tokens, block.layers)
        for sent, got in ((block.k, back.k), (block.v, back.v)):
            assert got.dtype == np.float16 and got.shape == shape and got.flags.c_contiguous
            self._assert_close(sent, got)

    def _assert_close(self, sent: Half, got: Half) -> None:
        if self.largest_error == 0:
            assert np.array_equal(sent.view(np.uint16), got.view(np.uint16))
            return
        wide = sent.astype(np.float64)
        error = np.abs(got.astype(np.float64) - wide).max()
        assert error <= self.largest_error * np.ptp(wide) + np.abs(wide).max() * 2**-11

    def test_strides_do_not_matter(self, codec: Codec) -> None:
        block = sample_block((2, 2, 16, 8))
        strided = replace(block, k=np.asfortranarray(block.k), v=np.repeat(block.v, 2, axis=2)[:, :, ::2])
        assert codec.encode(strided) == codec.encode(block)

    def test_a_view_of_a_frame_will_do(self, codec: Codec) -> None:
        block = sample_block((1, 1, 8, 8))
        frame = b"header" + codec.encode(block)
        back = codec.decode(memoryview(frame)[6:], block.tokens, block.layers, Geometry(1, 1, 8))
        self._assert_close(block.k, back.k)

    def test_threads_share_it(self, codec: Codec) -> None:
        block = sample_block((2, 2, 64, 64))
        payload = codec.encode(block)

        def both(_: int) -> tuple[bytes, bytes]:
            back = codec.decode(payload, block.tokens, block.layers, Geometry(2, 2, 64))
            return codec.encode(block), back.k.tobytes() + back.v.tobytes()

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(both, range(16)))) == 1

    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("which", ["k", "v"])
    def test_values_that_are_not_finite_are_refused(self, codec: Codec, poison: float, which: str) -> None:
        block = sample_block((1, 1, 4, 4))
        getattr(block, which)[0, 0, 3, 2] = poison
        with pytest.raises(UsageError, match="not finite"):
            codec.encode(block)

    def test_arrays_that_do_not_fit_are_refused(self, codec: Codec) -> None:
        block = sample_block((2, 1, 4, 4))
        wrong = [
            replace(block, k=block.k.astype(np.float32)),
            replace(block, v=block.v[:, :, :3]),
            replace(block, k=block.k[0], v=block.v[0]),
            replace(block, tokens=Span(0, 5)),
            replace(block, layers=Span(0, 1)),
            replace(block, tokens=Span(0, 0), k=block.k[:, :, :0], v=block.v[:, :, :0]),
        ]
        for broken in wrong:
            with pytest.raises(UsageError):
                codec.encode(broken)

    def test_another_shape_is_corrupt(self, codec: Codec) -> None:
        block = sample_block((2, 1, 8, 8))
        payload = codec.encode(block)
        for tokens, layers, heads, dim in ((9, 2, 1, 8), (8, 1, 1, 8), (8, 2, 2, 8), (8, 2, 1, 16), (2**20, 2, 1, 8)):
            with pytest.raises(CorruptData):
                codec.decode(payload, Span(0, tokens), Span(0, layers), Geometry(4, heads, dim))

    def test_spans_outside_the_model_are_refused(self, codec: Codec) -> None:
        for tokens, layers in ((Span(3, 3), Span(0, 1)), (Span(0, 1), Span(2, 1)), (Span(0, 1), Span(3, 5))):
            with pytest.raises(UsageError):
                codec.decode(b"", tokens, layers, Geometry(4, 1, 8))

    def test_truncated_or_extended_is_corrupt(self, codec: Codec) -> None:
        block = sample_block((2, 1, 8, 8))
        payload = codec.encode(block)
        for broken in (*(payload[:stop] for stop in range(len(payload))), payload + b"\0", payload + payload):
            with pytest.raises(CorruptData):
                codec.decode(broken, block.tokens, block.layers, Geometry(2, 1, 8))

    def test_flipped_bits_never_do_worse_than_corrupt(self, codec: Codec) -> None:
        block = sample_block((2, 1, 8, 8))
        payload = codec.encode(block)
        for place in range(len(payload)):
            for bit in range(8):
                broken = bytearray(payload)
                broken[place] ^= 1 << bit
                try:
                    back = codec.decode(bytes(broken), block.tokens, block.layers, Geometry(2, 1, 8))
                except CorruptData:
                    continue
                assert back.k.shape == back.v.shape == block.k.shape
                assert np.isfinite(back.k).all() and np.isfinite(back.v).all()
