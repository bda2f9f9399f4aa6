import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preread.codec.planes import Planes
from preread.codec.state import StateCodec, state_codec, state_codec_by_version, state_rungs
from preread.errors import CorruptData, UsageError
from preread.testing.states import StateCodecContract, sample_state
from preread.values import StateShape

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


class TestF32(StateCodecContract):
    @pytest.fixture
    def codec(self) -> StateCodec:
        return state_codec("f32")


def test_each_codec_is_found_by_its_name_and_by_its_version() -> None:
    assert state_rungs() == ("f32",)
    assert all(state_codec_by_version(state_codec(rung).version) is state_codec(rung) for rung in state_rungs())


def test_unknown_names_name_the_known_ones() -> None:
    with pytest.raises(UsageError, match="f32"):
        state_codec("f8")
    with pytest.raises(CorruptData, match="state-f32/1: upgrade") as caught:
        state_codec_by_version("lossless/1")
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


def test_a_plane_that_says_infinity_is_corrupt() -> None:
    block = sample_state(1, StateShape(1, 1, 1))
    codec = state_codec("f32")
    plain = Planes().pack(block.r, block.s)
    for broken in (b"\xff\0\0\0" + plain[4:], plain[:4] + b"\xff\0\0\1"):
        payload = codec.compressor.compress(broken)  # type: ignore[attr-defined]
        with pytest.raises(CorruptData) as caught:
            codec.decode(payload, block.layers, block.position, StateShape(1, 1, 1))
        assert caught.value.reason == "range"
