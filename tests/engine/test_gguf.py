"""What is read of a GGUF header, and what is refused."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine import gguf
from preread.engine.gguf import Long, Unfinished, parse
from preread.errors import CorruptData

STRING, ARRAY = 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)


def header(pairs: dict[str, bytes], tensors: Sequence[bytes] = (), magic: bytes = b"GGUF", version: int = 3) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(pairs))
    return magic + counts + b"".join(text(key) + value for key, value in pairs.items()) + b"".join(tensors)


def tensor(name: str = "t", shape: tuple[int, ...] = (4, 2), axes: int | None = None) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape) if axes is None else axes, *shape, 1, 64)


GOOD = header(
    {
        "a.name": struct.pack("<I", STRING) + text("Grüße"),
        "a.count": struct.pack("<II", 4, 7),
        "a.base": struct.pack("<If", 6, 0.5),
        "a.flag": struct.pack("<I?", 7, True),
        "a.heads": array(4, [struct.pack("<I", head) for head in (0, 2, 0)]),
        "a.flags": array(7, [b"\1", b"\0", b"\1"]),
        "a.tokens": array(STRING, [text("x"), text("yz")]),
        "a.scores": array(6, [struct.pack("<f", 0.0)] * 2000),
    },
    [tensor()],
)


def test_a_header_is_read_and_long_arrays_are_passed_over() -> None:
    found = parse(GOOD)
    assert found.text("a.name") == "Grüße" and found.text("a.none") == "" and found.text("a.count") == ""
    assert found.number("a.count") == 7 and found.number("a.none", 3) == 3
    assert found.numbers("a.heads", 3) == (0, 2, 0) and found.numbers("a.count", 2) == (7, 7)
    assert found.numbers("a.flags", 2) == (1, 0)
    assert found.metadata["a.base"] == 0.5
    assert found.metadata["a.tokens"] == Long(2) and found.metadata["a.scores"] == Long(2000)
    assert [(one.name, one.shape, one.kind, one.offset_bytes) for one in found.tensors] == [("t", (4, 2), 1, 64)]
    assert found.data_start % 32 == 0 and 0 <= found.data_start - len(GOOD) < 32


@pytest.mark.parametrize("key", ["a.name", "a.base", "a.heads"])
def test_what_is_no_number_is_not_taken_for_one(key: str) -> None:
    with pytest.raises(CorruptData, match=key):
        parse(GOOD).number(key)
    with pytest.raises(CorruptData, match="each of 4 layers"):
        parse(GOOD).numbers("a.heads", 4)


@given(st.integers(0, len(GOOD) - 1))
def test_a_beginning_says_that_there_is_more(stop: int) -> None:
    with pytest.raises(Unfinished) as caught:
        parse(GOOD[:stop])
    assert caught.value.needed_bytes == stop


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header({}, magic=b"GGML"), "magic"),
        (header({}, version=1), "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "gguf"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "gguf"),
        (header({"a": struct.pack("<I", 13)}), "gguf"),
        (header({"a": array(13, [])}), "gguf"),
        (header({"a": struct.pack("<IIQ", ARRAY, ARRAY, 1)}), "gguf"),
        (header({"a": struct.pack("<IIQ", ARRAY, 4, 2**60)}), "gguf"),
        (header({"a": struct.pack("<IQ", STRING, 2**60)}), "gguf"),
        (header({"k" * 2000: struct.pack("<II", 4, 7)}), "gguf"),
        (header({}, [tensor(axes=5)]), "gguf"),
        (header({}, [tensor(axes=0)]), "gguf"),
        (header({"general.alignment": struct.pack("<II", 4, 0)}), "gguf"),
    ],
)
def test_a_header_that_no_sound_file_has_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptData) as caught:
        parse(data)
    assert caught.value.reason == reason


def test_an_array_that_claims_more_than_a_header_may_have_is_refused_before_it_is_read() -> None:
    with pytest.raises(CorruptData) as caught:
        parse(header({"a": struct.pack("<IIQ", ARRAY, 12, gguf.MAX_HEADER_BYTES)}))
    assert caught.value.reason == "gguf"


@given(st.data())
def test_changed_bytes_are_a_header_or_refused(data: st.DataObject) -> None:
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CorruptData):
        assert parse(bytes(changed)).data_start < len(changed) + 2**16, "it goes on behind them"


def test_a_real_models_header_is_read_from_its_beginning(smollm: Path) -> None:
    with smollm.open("rb") as file:
        found = parse(file.read(2**23))
    assert found.text("general.architecture") == "llama" and found.number("llama.block_count") == 30
    assert {one.name for one in found.tensors} >= {"token_embd.weight", "blk.29.ffn_down.weight"}
