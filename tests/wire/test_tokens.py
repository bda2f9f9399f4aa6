import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preread.errors import CorruptData, UsageError
from preread.wire import tokens

IDS = hnp.arrays(np.int32, st.integers(1, 60), elements=st.integers(0, 2**31 - 1))


def test_golden(vectors: Path) -> None:
    ids = tokens.unpack((vectors / "tokens.bin").read_bytes(), 8)
    assert ids.dtype == np.int32 and ids.tolist() == [1, 2, 3, 5, 8, 13, 21, 2**31 - 1]
    assert tokens.unpack(tokens.pack(ids), 8).tolist() == ids.tolist()


@given(IDS)
def test_round_trip_within_the_bound(ids: np.ndarray) -> None:
    data = tokens.pack(ids)
    assert len(data) <= tokens.bound_bytes(ids.size)
    assert np.array_equal(tokens.unpack(data, ids.size), ids)


def test_random_ids_stay_within_the_bound() -> None:
    ids = np.random.default_rng(0).integers(0, 2**31, 300_000, dtype=np.int32)
    assert len(tokens.pack(ids)) <= tokens.bound_bytes(ids.size)


@pytest.mark.parametrize(
    "ids", [np.empty(0, np.int32), np.array([-1], np.int32), np.array([1], np.int64), np.zeros((2, 2), np.int32)]
)
def test_what_is_no_token_list_is_refused(ids: np.ndarray) -> None:
    with pytest.raises(UsageError):
        tokens.pack(ids)


def frame(count: int, raw: bytes, magic: bytes = b"PRTK", version: int = 1) -> bytes:
    return tokens.HEADER.pack(magic, version, count) + zstandard.ZstdCompressor().compress(raw)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "length"),
        (b"PRTK\1\0\1\0\0", "length"),
        (b"PRTK\1\0\1\0\0\0", "zstd"),
        (frame(1, bytes(4), magic=b"PRSG"), "magic"),
        (frame(1, bytes(4), version=2), "version"),
        (frame(0, b""), "length"),
        (frame(3, bytes(8)), "length"),
        (frame(1001, bytes(4004)), "length"),
        (frame(2**32 - 1, bytes(4)), "length"),
        (frame(2, bytes(8)) + b"\0", "zstd"),
        (frame(1, b"\0\0\0\x80"), "range"),
    ],
)
def test_broken(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptData) as caught:
        tokens.unpack(data, 1000)
    assert caught.value.reason == reason


def test_a_bomb_is_not_inflated() -> None:
    bomb = frame(1000, bytes(2**26))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptData):
            tokens.unpack(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def test_truncated_or_flipped(vectors: Path) -> None:
    data = (vectors / "tokens.bin").read_bytes()
    for stop in range(len(data)):
        with pytest.raises(CorruptData):
            tokens.unpack(data[:stop], 8)
    for place in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            try:
                assert tokens.unpack(bytes(broken), 8).size == 8
            except CorruptData:
                continue


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    for candidate in (data, b"PRTK\1\0\2\0\0\0" + data):
        with pytest.raises(CorruptData):
            tokens.unpack(candidate, 10)
