import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preread.codec.quantise import GROUP, Quantiser
from preread.errors import CorruptData
from preread.values import Half

FINITE = st.floats(width=16, allow_nan=False, allow_infinity=False)

BITS = [8, 4]


def assert_within_half_a_step(sent: Half, got: Half, axis: int, bits: int) -> None:
    """Error of each value ≤ step/2 of its group, and half a unit in the last place of float16."""
    for start in range(0, sent.shape[axis], GROUP):
        index = [slice(None)] * 4
        index[axis] = slice(start, start + GROUP)
        wide, back = sent[tuple(index)].astype(np.float64), got[tuple(index)].astype(np.float64)
        step = np.ptp(wide, axis=axis, keepdims=True) / (2**bits - 1)
        # the step is rounded up to float16, by less than 2**-10 of itself or one subnormal
        half_step = (step * (1 + 2**-10) + 2.0**-24 * (step > 0)) / 2
        rounding = np.maximum(np.abs(back) * 2**-11, 2.0**-25) * (step > 0)
        assert (np.abs(back - wide) <= half_step * (1 + 1e-5) + rounding).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 64, 64), (1, 2, 65, 63), (1, 1, 130, 128), (1, 1, 5, 80)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_error_is_at_most_half_a_step(
    bits: int, shape: tuple[int, int, int, int], scale: float, vector_bits: int
) -> None:
    source = np.random.default_rng(7)
    k, v = (np.clip(scale * source.normal(size=shape), -65504, 65504).astype(np.float16) for _ in range(2))
    data = Quantiser(bits).pack(k, v)
    assert len(data) == Quantiser(bits).size_bytes((*shape, shape[3]))
    back_k, back_v = Quantiser(bits).unpack(data, (*shape, shape[3]))
    assert_within_half_a_step(k, back_k, 2, bits)
    assert_within_half_a_step(v, back_v, 3, bits)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=50)
@given(k=hnp.arrays(np.float16, hnp.array_shapes(min_dims=4, max_dims=4, max_side=3), elements=FINITE))
def test_error_is_at_most_half_a_step_for_any_finite_values(bits: int, k: Half) -> None:
    back_k, back_v = Quantiser(bits).unpack(Quantiser(bits).pack(k, k), (*k.shape, k.shape[3]))
    assert_within_half_a_step(k, back_k, 2, bits)
    assert_within_half_a_step(k, back_v, 3, bits)


def read_plainly(data: bytes, tokens: int, dim: int, bits: int) -> tuple[list[list[float]], list[list[float]]]:
    """K as [channel][token] and V as [token][channel] of one head, value by value as the module's docstring says."""
    k_groups, v_groups = dim * -(-tokens // 64), tokens * -(-dim // 64)
    scales = struct.unpack_from(f"<{2 * (k_groups + v_groups)}e", data)
    planes = data[4 * (k_groups + v_groups) :]
    half = len(planes) // 2

    def row(plane: bytes, first_scale: int, groups: int, index: int, length: int) -> list[float]:
        per_row = -(-length // 64)
        values = []
        for i in range(length):
            place, group = index * length + i, first_scale + index * per_row + i // 64
            code = plane[place] if bits == 8 else plane[place % half] >> 4 * (place // half) & 15
            values.append(scales[group] + scales[group + groups] * code)
        return values

    k = [row(planes[:half], 0, k_groups, channel, tokens) for channel in range(dim)]
    v = [row(planes[half:], 2 * k_groups, v_groups, token, dim) for token in range(tokens)]
    return k, v


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("tokens", "dim"), [(3, 5), (64, 66), (130, 65), (65, 128)])
def test_the_layout_is_as_documented(bits: int, tokens: int, dim: int) -> None:
    source = np.random.default_rng(2)
    k, v = (source.normal(size=(1, 1, tokens, dim)).astype(np.float16) for _ in range(2))
    data = Quantiser(bits).pack(k, v)
    plain_k, plain_v = read_plainly(data, tokens, dim, bits)
    back_k, back_v = Quantiser(bits).unpack(data, (*k.shape, k.shape[3]))
    assert np.allclose(back_k[0, 0].T, plain_k, rtol=2**-10, atol=1e-7)
    assert np.allclose(back_v[0, 0], plain_v, rtol=2**-10, atol=1e-7)


def test_half_a_bit_a_value_goes_to_scales() -> None:
    assert Quantiser(4).size_bytes((4, 2, 256, 64, 64)) * 8 == 4.5 * 2 * 4 * 2 * 256 * 64
    assert Quantiser(8).size_bytes((4, 2, 256, 64, 64)) * 8 == 8.5 * 2 * 4 * 2 * 256 * 64


@pytest.mark.parametrize("bits", BITS)
def test_constant_groups_are_exact(bits: int) -> None:
    row = np.array([0, -0.1, 6e-8, 65504], dtype=np.float16)
    k = np.ascontiguousarray(np.broadcast_to(row, (1, 1, 70, 4)))
    v = np.ascontiguousarray(np.broadcast_to(row[:, None], (1, 1, 4, 70)))
    assert np.array_equal(Quantiser(bits).unpack(Quantiser(bits).pack(k, k), (*k.shape, k.shape[3]))[0], k)
    assert np.array_equal(Quantiser(bits).unpack(Quantiser(bits).pack(v, v), (*v.shape, v.shape[3]))[1], v)


@pytest.mark.parametrize("bits", BITS)
def test_one_outlier_does_not_spoil_other_channels_of_k_or_other_tokens_of_v(bits: int) -> None:
    k = np.random.default_rng(1).normal(size=(1, 1, 64, 64)).astype(np.float16)
    spoilt_k, spoilt_v = k.copy(), k.copy()
    spoilt_k[0, 0, :, 5] += 500
    spoilt_v[0, 0, 5, :] += 500
    back_k, back_v = Quantiser(bits).unpack(Quantiser(bits).pack(spoilt_k, spoilt_v), (*k.shape, k.shape[3]))
    others = np.arange(64) != 5
    assert np.abs(back_k - k)[..., others].max() < 0.25
    assert np.abs(back_v - k)[0, 0, others].max() < 0.25


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, -1.0])
def test_hostile_scales_are_corrupt(bits: int, place: int, poison: float) -> None:
    scales = [0.0] * 4  # low and step of K, low and step of V
    scales[place] = poison
    data = struct.pack("<4e", *scales) + bytes(2)
    if place in (0, 2) and poison == -1.0:
        assert Quantiser(bits).unpack(data, (1, 1, 1, 1, 1))[place // 2].item() == -1
        return
    with pytest.raises(CorruptData) as caught:
        Quantiser(bits).unpack(data, (1, 1, 1, 1, 1))
    assert caught.value.reason == "range"


@pytest.mark.parametrize("bits", BITS)
def test_hostile_scales_cannot_overflow(bits: int) -> None:
    data = struct.pack("<4e", 65504, 65504, 65504, 65504) + b"\xff\xff"
    k, v = Quantiser(bits).unpack(data, (1, 1, 1, 1, 1))
    assert k.item() == v.item() == 65504


def to_half(values: np.ndarray) -> Half:
    """What decoding makes of groups of one value each, that is, of their lows."""
    scales = np.concatenate([values, np.zeros_like(values)])
    return Quantiser(8)._restore(scales, np.zeros(values.size, np.uint8), values.size, 1)


def test_rounding_to_half_agrees_with_numpy(vector_bits: int) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    halves = np.sort(bits[(bits & 0x7C00) != 0x7C00].view(np.float16).astype(np.float32))
    ties = (halves[1:] + halves[:-1]) / 2
    # above 2**-13 rounding is the same for all neighbours of a tie, below it only up to the tie itself
    normal = ties[np.abs(ties) > 2**-13]
    beside = [np.nextafter(normal, np.float32(side)) for side in (-np.inf, np.inf)]
    for values in (halves, ties, *beside):
        values = values + np.float32(0)  # the sum of low and step * code is never -0
        assert np.array_equal(to_half(values).view(np.uint16), values.astype(np.float16).view(np.uint16))
