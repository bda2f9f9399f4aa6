from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.codec.base import Codec
from preread.codec.ladder import by_version, codec, ladder, needs_profile
from preread.codec.profile import prepare
from preread.errors import CorruptData, UsageError
from preread.testing.codec import CodecContract
from preread.testing.profile import plain_profile
from preread.values import Fingerprint, Geometry, Span
from preread.wire import segment

VECTORS = Path(__file__).parents[1] / "vectors"


class TestLossless(CodecContract):
    @pytest.fixture
    def codec(self) -> Codec:
        return codec("lossless")


class TestQ8(CodecContract):
    largest_error = 1 / 255 / 2 * 1.01

    @pytest.fixture
    def codec(self) -> Codec:
        return codec("q8")


class TestQ4(CodecContract):
    largest_error = 1 / 15 / 2 * 1.01

    @pytest.fixture
    def codec(self) -> Codec:
        return codec("q4")


def test_the_ladder_goes_down() -> None:
    assert ladder() == ("lossless", "q8", "q4")
    assert [codec(rung).version for rung in ladder()] == ["lossless/1", "q8/1", "q4/1"]
    assert all(by_version(codec(rung).version, rung) is codec(rung) for rung in ladder())


def test_unknown_rung_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="lossless, q8, q4"):
        codec("q3")


def test_unknown_version_says_upgrade() -> None:
    with pytest.raises(CorruptData, match="upgrade") as caught:
        by_version("q4/2", "q4")
    assert caught.value.reason == "codec"


@pytest.mark.parametrize(
    ("version", "rung"), [("q4/1", "lossless"), ("lossless/1", "q4"), ("q8/1", "b2"), ("fitted/2", "lossless")]
)
def test_no_codec_passes_under_the_name_of_another(version: str, rung: str) -> None:
    with pytest.raises(CorruptData, match="never called so") as caught:
        by_version(version, rung)
    assert caught.value.reason == "codec"


def test_fitted_rungs_need_a_profile() -> None:
    ready = prepare(
        plain_profile(Fingerprint("f" * 64), Geometry(1, 1, 4), 8, {"b9": (0.1, 0.0)}), np.ones((9, 8), np.float32)
    )
    assert ladder(ready.profile) == ("lossless", "q8", "q4", "b9")
    assert codec("b9", ready).version == "fitted/2" and by_version("fitted/2", "b9", ready).rung == "b9"
    assert needs_profile("fitted/2") and not any(needs_profile(codec(rung).version) for rung in ladder())
    with pytest.raises(UsageError, match="preread fit codec"):
        codec("b9")
    for missing in (None, ready):
        with pytest.raises(CorruptData, match="needs a profile") as caught:
            by_version("fitted/2", "b8" if missing else "b9", missing)
        assert caught.value.reason == "profile"


@pytest.mark.parametrize("rung", ladder())
def test_golden_segments_decode_to_these_values(rung: str, vector_bits: int) -> None:
    frame = (VECTORS / f"segment-{rung}.bin").read_bytes()
    back = codec(rung).decode(frame[segment.HEADER.size :], Span(0, 8), Span(0, 2), Geometry(2, 1, 8))
    # Every group of 8 holds code 0 and code 15, so that steps of 17/64 and of 1/64 are exact at 4 and at 8 bits.
    code = np.array([0, 15, 1, 14, 2, 13, 3, 12]) * 17 / 64
    layer, token, channel = np.arange(2)[:, None, None, None], np.arange(8)[:, None], np.arange(8)
    assert np.array_equal(back.k, -2 + layer / 4 + channel / 8 + code[:, None] + np.zeros((2, 1, 8, 8)))
    assert np.array_equal(back.v, -1 + layer / 4 + token / 8 + code + np.zeros((2, 1, 8, 8)))


@pytest.mark.parametrize("rung", ladder())
@settings(max_examples=150)
@given(payload=st.binary(max_size=400))
def test_arbitrary_bytes_are_corrupt(rung: str, payload: bytes) -> None:
    with pytest.raises(CorruptData):
        codec(rung).decode(payload, Span(0, 8), Span(0, 2), Geometry(2, 1, 8))
