import struct
import tracemalloc

import pytest
import zstandard

from preread.codec.zstd import Zstd
from preread.errors import CorruptData

SKIPPABLE = struct.pack("<II", 0x184D2A50, 64) + b"x" * 64


def run_frame(stated_bytes: int, *run_bytes: int) -> bytes:
    """A frame by hand that states one size and holds runs of any other sizes (RFC 8878, 3.1.1)."""
    last = len(run_bytes) - 1
    blocks = [((i == last) | 1 << 1 | n << 3).to_bytes(3, "little") + b"z" for i, n in enumerate(run_bytes)]
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", stated_bytes) + b"".join(blocks)


def test_round_trip() -> None:
    data = bytes(range(256)) * 9
    assert Zstd(3).decompress(Zstd(3).compress(data), len(data)) == data
    assert Zstd(3).decompress(run_frame(64, 60, 4), 64) == b"z" * 64


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "zstd"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (Zstd(1).compress(b"a" * 65), "length"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"a" * 64), "length"),
        (Zstd(1).compress(b"a" * 64) * 2, "zstd"),
        (SKIPPABLE, "zstd"),
        (SKIPPABLE + Zstd(1).compress(b"a" * 64), "zstd"),
        (run_frame(64, 32), "zstd"),
        (run_frame(64, 64, 64), "zstd"),
        (run_frame(64, *[2**17] * 1000), "zstd"),
        (run_frame(2**31, *[2**17] * 1000), "length"),
    ],
)
def test_anything_else_is_corrupt_and_costs_no_memory(payload: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptData) as caught:
            Zstd(1).decompress(payload, 64)
        assert caught.value.reason == reason
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()
