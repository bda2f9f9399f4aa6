import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData, UsageError
from preread.values import ContextId, KVShape, Span
from preread.wire import segment
from preread.wire.segment import SegmentHeader

HEADER = SegmentHeader(ContextId("0123456789abcdef" * 4), "q4", Span(256, 512), Span(4, 8), KVShape(4, 2, 64, 64))
FRAME = segment.pack(HEADER, b"payload")


def refused(frame: bytes, expected: SegmentHeader = HEADER) -> str:
    with pytest.raises(CorruptData) as caught:
        segment.unpack(frame, expected)
    return caught.value.reason


def test_layout() -> None:
    fields = (b"PRSG", 1, 0, bytes.fromhex(HEADER.context), b"q4", 256, 512, 4, 8, 2, 64, 7)
    assert FRAME == struct.pack("<4sHH32s16sIIHHHHQ", *fields) + b"payload"
    assert segment.HEADER.size == 80


@pytest.mark.parametrize("rung", ["lossless", "q8", "q4"])
def test_golden(vectors: Path, rung: str) -> None:
    frame = (vectors / f"segment-{rung}.bin").read_bytes()
    context = ContextId("0d4c777608629dd651429d2da50d38b68de0922a6c2bc8b348bec2c42d78b8c8")
    header = SegmentHeader(context, rung, Span(0, 8), Span(0, 2), KVShape(2, 1, 8, 8))
    assert segment.pack(header, bytes(segment.unpack(frame, header))) == frame


def test_the_payload_is_a_view() -> None:
    payload = segment.unpack(FRAME, HEADER)
    assert payload == b"payload" and payload.obj is FRAME


@given(st.builds(Span, st.integers(0, 2**31), st.integers(2**31 + 1, 2**32 - 1)), st.binary(min_size=1))
def test_round_trip(tokens: Span, payload: bytes) -> None:
    header = replace(
        HEADER, tokens=tokens, layers=Span(0, 65535), shape=KVShape(65535, 65535, 65535, 65535), rung="a.b-c0123456789z"
    )
    assert segment.unpack(segment.pack(header, payload), header) == payload


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, b"X", "magic"),
        (4, b"\2", "version"),
        (6, b"\1", "version"),
        (8, b"\xff", "context"),
        (39, b"\0", "context"),
        (40, b"r", "rung"),
        (55, b"x", "rung"),
        (56, b"\1", "shape"),
        (60, b"\1", "shape"),
        (64, b"\1", "shape"),
        (66, b"\1", "shape"),
        (68, b"\1", "shape"),
        (70, b"\1", "shape"),
        (72, b"\6", "length"),
        (79, b"\xff", "length"),
    ],
)
def test_each_field_is_checked(place: int, value: bytes, reason: str) -> None:
    assert refused(FRAME[:place] + value + FRAME[place + 1 :]) == reason


def test_every_flipped_bit_of_the_header_is_noticed() -> None:
    fields = {"magic": 4, "version": 4, "context": 32, "rung": 16, "shape": 16, "length": 8}
    reasons = [reason for reason, size in fields.items() for _ in range(size)]
    for place in range(segment.HEADER.size):
        for bit in range(8):
            broken = bytearray(FRAME)
            broken[place] ^= 1 << bit
            assert refused(bytes(broken)) == reasons[place]


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (replace(HEADER, context=ContextId("f" * 64)), "context"),
        (replace(HEADER, rung="q8"), "rung"),
        (replace(HEADER, tokens=Span(0, 256)), "shape"),
        (replace(HEADER, layers=Span(5, 9)), "shape"),
        (replace(HEADER, shape=KVShape(4, 4, 64, 64)), "shape"),
        (replace(HEADER, shape=KVShape(4, 2, 32, 32)), "shape"),
    ],
)
def test_another_segment_is_not_the_expected_one(expected: SegmentHeader, reason: str) -> None:
    assert refused(FRAME, expected) == reason


def test_truncated_or_extended() -> None:
    assert {refused(FRAME[:stop]) for stop in range(len(FRAME))} == {"length"}
    assert refused(FRAME + b"\0") == "length"


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    assert refused(data) in ("length", "magic")
    assert refused(b"PRSG\1\0\0\0" + data) in ("length", "context")


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, context=ContextId("xyz")),
        replace(HEADER, rung=""),
        replace(HEADER, rung="Q4"),
        replace(HEADER, rung="a" * 17),
        replace(HEADER, rung="q4\n"),
        replace(HEADER, tokens=Span(3, 3)),
        replace(HEADER, tokens=Span(-1, 3)),
        replace(HEADER, tokens=Span(0, 2**32)),
        replace(HEADER, layers=Span(0, 2**16), shape=KVShape(2**16, 2, 64, 64)),
        replace(HEADER, layers=Span(2, 2)),
        replace(HEADER, shape=KVShape(4, 0, 64, 64)),
        replace(HEADER, shape=KVShape(4, 2, 0, 0)),
    ],
)
def test_what_cannot_be_written_is_refused(header: SegmentHeader) -> None:
    with pytest.raises(UsageError):
        segment.pack(header, b"payload")


def test_an_empty_payload_is_refused() -> None:
    with pytest.raises(UsageError):
        segment.pack(HEADER, b"")
