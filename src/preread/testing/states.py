"""The contract of every codec of states, to inherit: `class TestMine(StateCodecContract)` with a `codec` fixture."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from preread.codec.state import StateCodec
from preread.errors import CorruptData, UsageError
from preread.values import Single, StateBlock, StateShape

SHAPES = [(1, StateShape(1, 1, 1)), (2, StateShape(12, 0, 0)), (1, StateShape(0, 3, 5)), (3, StateShape(9, 64, 32))]
"""How many layers, and what each keeps: smallest, convolutions only, none, and both; odd numbers too."""

SMALL = 2, StateShape(6, 4, 8)


def sample_state(layers: int, shape: StateShape, position: int = 512) -> StateBlock:
    """A state as gated delta nets have it: rows of very different size."""
    source = np.random.default_rng([layers, shape.r_values, shape.s_rows, shape.s_row_values])
    sizes = np.exp(source.normal(-3, 1.5, (layers, shape.s_rows, 1)))
    s = sizes * source.normal(size=(layers, shape.s_rows, shape.s_row_values))
    r = source.normal(0, 0.5, (layers, shape.r_values))
    return StateBlock(tuple(range(1, 2 * layers, 2)), position, r.astype(np.float32), s.astype(np.float32))


def shape_of(block: StateBlock) -> StateShape:
    return StateShape(block.r.shape[1], block.s.shape[1], block.s.shape[2])


class StateCodecContract:
    """What callers rely on.

    Attributes:
        largest_error: allowed error of a value, as a share of the largest of its layer in R, or in S.
    """

    largest_error = 0.0

    @pytest.fixture
    def codec(self) -> StateCodec:
        raise NotImplementedError

    @pytest.mark.parametrize(("layers", "shape"), SHAPES)
    def test_a_state_comes_back(self, codec: StateCodec, layers: int, shape: StateShape) -> None:
        block = sample_state(layers, shape)
        back = codec.decode(codec.encode(block), block.layers, block.position, shape)
        assert (back.layers, back.position) == (block.layers, block.position)
        for sent, got in ((block.r, back.r), (block.s, back.s)):
            assert got.dtype == np.float32 and got.shape == sent.shape and got.flags.c_contiguous
            self._assert_close(sent, got)

    def _assert_close(self, sent: Single, got: Single) -> None:
        if self.largest_error == 0:
            assert np.array_equal(sent.view(np.uint32), got.view(np.uint32))
        elif sent.size:
            largest = np.abs(sent).max(axis=tuple(range(1, sent.ndim)), keepdims=True)
            assert (np.abs(got - sent) <= self.largest_error * largest + np.finfo(np.float32).tiny).all()

    def test_zeros_and_extremes_come_back(self, codec: StateCodec) -> None:
        layers, shape = SMALL
        block = sample_state(layers, shape)
        most = np.finfo(np.float32).max
        for value in (0.0, -0.0, 1e-45, 1e-30, most):
            block.s[0, 0], block.r[1] = value, value
            block.s[0, 1] = 0
            block.s[0, 1, 3] = -value
            back = codec.decode(codec.encode(block), block.layers, block.position, shape)
            self._assert_close(block.s, back.s)
            self._assert_close(block.r, back.r)

    def test_a_value_that_is_far_larger_than_all_others_comes_back(self, codec: StateCodec) -> None:
        shape = StateShape(64, 64, 64)
        block = sample_state(1, shape)
        block.s[0, 5, 7], block.r[0, 3] = 1000, -1000
        back = codec.decode(codec.encode(block), block.layers, block.position, shape)
        self._assert_close(block.s, back.s)
        self._assert_close(block.r, back.r)

    def test_strides_do_not_matter(self, codec: StateCodec) -> None:
        block = sample_state(*SMALL)
        strided = replace(block, r=np.asfortranarray(block.r), s=np.repeat(block.s, 2, axis=1)[:, ::2])
        assert codec.encode(strided) == codec.encode(block)

    def test_a_view_of_a_frame_will_do(self, codec: StateCodec) -> None:
        block = sample_state(*SMALL)
        frame = b"header" + codec.encode(block)
        back = codec.decode(memoryview(frame)[6:], block.layers, block.position, shape_of(block))
        self._assert_close(block.s, back.s)

    def test_threads_share_it(self, codec: StateCodec) -> None:
        block = sample_state(2, StateShape(96, 64, 64))
        payload = codec.encode(block)

        def both(_: int) -> tuple[bytes, bytes]:
            back = codec.decode(payload, block.layers, block.position, shape_of(block))
            return codec.encode(block), back.r.tobytes() + back.s.tobytes()

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(both, range(16)))) == 1

    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("which", ["r", "s"])
    def test_values_that_are_not_finite_are_refused(self, codec: StateCodec, poison: float, which: str) -> None:
        block = sample_state(*SMALL)
        getattr(block, which)[1, 3] = poison
        with pytest.raises(UsageError, match="not finite"):
            codec.encode(block)

    def test_arrays_that_do_not_fit_are_refused(self, codec: StateCodec) -> None:
        block = sample_state(*SMALL)
        wrong = [
            replace(block, s=block.s.astype(np.float64)),
            replace(block, r=block.r.astype(np.float16)),
            replace(block, r=block.r[:1]),
            replace(block, r=block.r[0]),
            replace(block, s=block.s[:, 0]),
            replace(block, layers=(1,)),
            replace(block, layers=(3, 1)),
            replace(block, layers=(-1, 1)),
            replace(block, layers=()),
            replace(block, position=0),
            replace(block, r=block.r[:, :0], s=block.s[:, :0]),
        ]
        for broken in wrong:
            with pytest.raises(UsageError):
                codec.encode(broken)

    def test_another_shape_is_corrupt(self, codec: StateCodec) -> None:
        block = sample_state(*SMALL)
        payload = codec.encode(block)
        others = (
            StateShape(7, 4, 8),
            StateShape(6, 5, 8),
            StateShape(6, 4, 16),
            StateShape(0, 4, 8),
            StateShape(6, 0, 0),
        )
        for shape in others:
            with pytest.raises(CorruptData):
                codec.decode(payload, block.layers, block.position, shape)
        for layers in ((1,), (1, 3, 5)):
            with pytest.raises(CorruptData):
                codec.decode(payload, layers, block.position, shape_of(block))

    def test_places_that_cannot_be_are_refused(self, codec: StateCodec) -> None:
        shape = StateShape(6, 4, 8)
        for layers, position, of in (
            ((), 1, shape), ((2, 1), 1, shape), ((1, 1), 1, shape), ((-1,), 1, shape), ((1,), 0, shape),
            ((1,), 1, StateShape(0, 0, 0)), ((1,), 1, StateShape(0, 4, 0)), ((1,), 1, StateShape(-1, 4, 8)),
            ((1,), 1, StateShape(0, 2**20, 2**20)), ((1,), 1, StateShape(4, -2, -2)),
        ):  # fmt: skip
            with pytest.raises(UsageError):
                codec.decode(b"", layers, position, of)

    def test_truncated_or_extended_is_corrupt(self, codec: StateCodec) -> None:
        block = sample_state(*SMALL)
        payload = codec.encode(block)
        for broken in (*(payload[:stop] for stop in range(len(payload))), payload + b"\0", payload + payload):
            with pytest.raises(CorruptData):
                codec.decode(broken, block.layers, block.position, shape_of(block))

    def test_flipped_bits_never_do_worse_than_corrupt(self, codec: StateCodec) -> None:
        block = sample_state(*SMALL)
        payload = codec.encode(block)
        for place in range(len(payload)):
            for bit in range(8):
                broken = bytearray(payload)
                broken[place] ^= 1 << bit
                try:
                    back = codec.decode(bytes(broken), block.layers, block.position, shape_of(block))
                except CorruptData:
                    continue
                assert back.r.shape == block.r.shape and back.s.shape == block.s.shape
                assert np.isfinite(back.r).all() and np.isfinite(back.s).all()
