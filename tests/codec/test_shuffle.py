import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preread.codec.shuffle import Shuffle
from preread.errors import CorruptData

FINITE = st.floats(width=16, allow_nan=False, allow_infinity=False)


def test_every_finite_float16_is_exact() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits[(bits & 0x7C00) != 0x7C00].view(np.float16)
    k = values.reshape(2, 31, 16, 64)
    data = Shuffle().pack(k, k[::-1])
    assert len(data) == Shuffle().size_bytes((*k.shape, k.shape[3]))
    back_k, back_v = Shuffle().unpack(data, (*k.shape, k.shape[3]))
    assert np.array_equal(back_k.view(np.uint16), k.view(np.uint16))
    assert np.array_equal(back_v.view(np.uint16), k[::-1].view(np.uint16))


@settings(max_examples=50)
@given(k=hnp.arrays(np.float16, hnp.array_shapes(min_dims=4, max_dims=4, max_side=3), elements=FINITE))
def test_every_shape_is_exact(k: np.ndarray) -> None:
    back_k, back_v = Shuffle().unpack(Shuffle().pack(k, -k), (*k.shape, k.shape[3]))
    assert np.array_equal(back_k.view(np.uint16), k.view(np.uint16))
    assert np.array_equal(back_v.view(np.uint16), (-k).view(np.uint16))


@pytest.mark.parametrize("place", [0, 2])
def test_infinity_is_corrupt(place: int) -> None:
    data = bytearray(4)
    data[place] = 0x7C
    with pytest.raises(CorruptData) as caught:
        Shuffle().unpack(bytes(data), (1, 1, 1, 1, 1))
    assert caught.value.reason == "range"
