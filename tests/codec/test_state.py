import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preread.codec.planes import Planes
from preread.codec.state import StateCodec, state_codec, state_codec_beside, state_codec_by_version, state_rungs
from preread.errors import CorruptData, UsageError
from preread.testing.states import SMALL, StateCodecContract, sample_state
from preread.values import StateShape

VECTORS = Path(__file__).parents[1] / "vectors"
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


class TestF32(StateCodecContract):
    @pytest.fixture
    def codec(self) -> StateCodec:
        return state_codec("f32")


class TestS5(StateCodecContract):
    largest_error = 1 / 8 / 2 * 1.01

    @pytest.fixture
    def codec(self) -> StateCodec:
        return state_codec("s5")


class TestS2(StateCodecContract):
    largest_error = 1 / 2 * 1.01

    @pytest.fixture
    def codec(self) -> StateCodec:
        return state_codec("s2")


def test_each_codec_is_found_by_its_name_and_read_by_its_version() -> None:
    assert state_rungs() == ("f32", "s5", "s4", "s3", "s2")
    block = sample_state(*SMALL)
    for rung in state_rungs():
        codec = state_codec(rung)
        assert codec.rung == rung
        payload = codec.encode(block)
        for back in (codec, state_codec_by_version(codec.version, "q8")):
            found = back.decode(payload, block.layers, block.position, SMALL[1])
            assert found.s.tobytes() == codec.decode(payload, block.layers, block.position, SMALL[1]).s.tobytes()


def test_each_rung_takes_fewer_bytes_than_the_one_before_and_errs_by_more() -> None:
    block = sample_state(2, StateShape(384, 256, 128))
    sizes, errors = [], []
    for rung in state_rungs():
        payload = state_codec(rung).encode(block)
        back = state_codec(rung).decode(payload, block.layers, block.position, StateShape(384, 256, 128))
        sizes.append(len(payload))
        errors.append(float(np.abs(back.s - block.s).mean()))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors) and errors[0] == 0


def test_unknown_names_name_the_known_ones() -> None:
    with pytest.raises(UsageError, match="f32"):
        state_codec("f8")
    with pytest.raises(CorruptData, match="state-steps/1: upgrade") as caught:
        state_codec_by_version("lossless/1", "lossless")
    assert caught.value.reason == "codec"


def test_what_is_called_lossless_has_states_that_lose_nothing() -> None:
    assert state_codec_beside("lossless").rung == "f32" and state_codec_beside("b1.2").rung == "s4"
    assert state_codec_by_version("state-f32/1", "lossless").rung == "f32"
    with pytest.raises(CorruptData, match="loses something") as caught:
        state_codec_by_version("state-steps/1", "lossless")
    assert caught.value.reason == "codec"


@settings(max_examples=50)
@given(s=hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=3), elements=FINITE))
def test_planes_of_every_shape_are_exact(s: np.ndarray) -> None:
    r = -s[:, :, 0]
    shape = StateShape(s.shape[1], s.shape[1], s.shape[2])
    data = Planes().pack(r, s)
    assert len(data) == Planes().size_bytes(len(s), shape)
    back_r, back_s = Planes().unpack(data, len(s), shape)
    assert back_r.tobytes() == r.tobytes() and back_s.tobytes() == s.tobytes()


@pytest.mark.parametrize(("name", "error"), [("f32", 0.0), ("steps", 0.125)])
def test_golden_payloads_decode_to_these_values(name: str, error: float) -> None:
    payload = (VECTORS / f"state-{name}.bin").read_bytes()
    back = state_codec_by_version(f"state-{name}/1", "q8").decode(payload, (0, 2), 300, StateShape(6, 4, 8))
    r, s = np.arange(12, dtype=np.float32).reshape(2, 6) / 4 - 1, np.arange(64, dtype=np.float32).reshape(2, 4, 8) - 32
    assert np.abs(back.r - r).max() <= error * 2 and np.abs(back.s - s).max() <= error * 32
    digest = hashlib.sha256(back.r.astype("<f4").tobytes() + back.s.astype("<f4").tobytes()).hexdigest()
    assert digest[:16] == {"f32": "6bf41445e722eac0", "steps": "1993bbb403591ea9"}[name]


def test_a_plane_that_says_infinity_is_corrupt() -> None:
    block = sample_state(1, StateShape(1, 1, 1))
    codec = state_codec("f32")
    plain = Planes().pack(block.r, block.s)
    for broken in (b"\xff\0\0\0" + plain[4:], plain[:4] + b"\xff\0\0\1"):
        payload = codec.compressor.compress(broken)  # type: ignore[attr-defined]
        with pytest.raises(CorruptData) as caught:
            codec.decode(payload, block.layers, block.position, StateShape(1, 1, 1))
        assert caught.value.reason == "range"


def test_steps_and_symbols_that_no_writer_writes_are_corrupt() -> None:
    shape, codec = StateShape(1, 1, 1), state_codec("s4")
    block = sample_state(1, shape)
    steps = np.array([0.5, 0.25], "<f4")
    for bad_steps, symbols in (
        (steps * np.nan, b"\1\1"),
        (steps * np.inf, b"\1\1"),
        (-steps, b"\1\1"),
        (steps * np.float32(2**127), b"\1\1"),
        (steps, b"\x80\1"),
        (steps, b"\1\x80"),
    ):
        payload = codec.compressor.compress(bad_steps.tobytes() + symbols)  # type: ignore[attr-defined]
        with pytest.raises(CorruptData) as caught:
            codec.decode(payload, block.layers, block.position, shape)
        assert caught.value.reason == "range"
    payload = codec.compressor.compress(steps.tobytes() + b"\3\xff")  # type: ignore[attr-defined]
    back = codec.decode(payload, block.layers, block.position, shape)
    assert (back.r.item(), back.s.item()) == (1.5, -0.25)
