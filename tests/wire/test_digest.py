import numpy as np
import pytest
from blake3 import blake3

from preread.values import Fingerprint
from preread.wire.digest import context_id, is_id, object_id

FINGERPRINT = Fingerprint("0123456789abcdef" * 4)


def test_object_id_is_plain_blake3() -> None:
    # the digest of no bytes, from the BLAKE3 test vectors
    assert object_id(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_context_id_is_the_digest_of_these_bytes() -> None:
    tokens = np.array([1, 258, 2**31 - 1], dtype=np.int32)
    written = b"\x01\0\0\0" + b"\x02\x01\0\0" + b"\xff\xff\xff\x7f"
    expected = blake3(b"preread context 1\n" + FINGERPRINT.encode() + b"\n" + written).hexdigest()
    assert context_id(FINGERPRINT, tokens) == expected


def test_context_id_golden() -> None:
    tokens = np.array([1, 2, 3, 5, 8, 13, 21, 2**31 - 1], dtype=np.int32)
    assert context_id(FINGERPRINT, tokens) == "0d4c777608629dd651429d2da50d38b68de0922a6c2bc8b348bec2c42d78b8c8"


def test_context_id_sees_values_and_not_memory_layout() -> None:
    tokens = np.arange(20, dtype=np.int32)
    assert context_id(FINGERPRINT, tokens[::2]) == context_id(FINGERPRINT, tokens[::2].astype(">i4"))
    assert context_id(FINGERPRINT, tokens[::2]) != context_id(FINGERPRINT, tokens[::-2])


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "٣" * 64, None, b"a" * 64]
)
def test_is_id_refuses(text: object) -> None:
    assert not is_id(text)


def test_is_id_accepts() -> None:
    assert is_id(object_id(b"x")) and is_id(FINGERPRINT)
