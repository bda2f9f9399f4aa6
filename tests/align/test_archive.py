"""Archives of arrays: what `dumps` writes comes back, and nothing else costs more than its own bytes."""

import io
import zipfile

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align import archive
from preread.errors import CorruptData

KINDS = ("<f4", "<f2", "<f8", "<i4", "<i8", "|u1", "|i1", "|b1")


class Head(msgspec.Struct, frozen=True):
    format: str = "a-test"


def written(**members: bytes) -> bytes:
    """An archive of these files beside a good head, with the table that zipfile writes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened, zipfile.ZipFile(io.BytesIO(archive.dumps(Head(), {}))) as good:
        opened.writestr("head.npy", good.read("head.npy"))
        for name, data in members.items():
            opened.writestr(f"{name}.npy", data)
    return out.getvalue()


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_arrays_come_back_as_they_went_and_can_be_written_to(
    shape: list[int], kind: str, turned: bool, seed: int
) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, shape)
    array = np.asfortranarray(bits.astype(kind)) if turned else bits.astype(kind)
    head, found = archive.loads(archive.dumps(Head(), {"it": array}), Head, "test")
    assert head == Head() and archive.format_of(archive.dumps(Head(), {"it": array})) == "a-test"
    assert found["it"].dtype == array.dtype and found["it"].shape == array.shape and found["it"].flags.writeable
    np.testing.assert_array_equal(found["it"], array)


def test_what_is_compressed_is_refused_before_it_is_expanded() -> None:
    out = io.BytesIO()
    np.savez_compressed(out, head=np.zeros(1, np.uint8), it=np.zeros(10**7, np.uint8))
    assert len(out.getvalue()) < 20_000
    with pytest.raises(CorruptData, match="compressed"):
        archive.loads(out.getvalue(), Head, "test")


@pytest.mark.parametrize(
    "member",
    [
        saved(np.zeros(3, np.uint8)).replace(b"(3,)", b"(9" + b"9" * 11 + b",)"),
        saved(np.zeros(3, np.uint8)).replace(b"(3,)", b"(-3,)"),
        saved(np.zeros(3, np.uint8)) + b"\0",
        saved(np.array([{}], object)),
        saved(np.array(["text"])),
        saved(np.zeros(3, ">f4")),
        b"",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000,
    ],
)
def test_what_is_no_plain_array_of_its_bytes_is_refused(member: bytes) -> None:
    with pytest.raises(CorruptData, match="array"):
        archive.loads(written(it=member), Head, "test")


def test_a_table_of_very_many_members_is_not_read() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for number in range(6000):
            opened.writestr(f"{number}.npy", b"")
    for data in (out.getvalue(), out.getvalue() + b"x"):
        with pytest.raises(CorruptData, match="does not end"):
            archive.loads(data, Head, "test")


def test_a_head_that_is_nested_too_deep_is_refused() -> None:
    deep = np.frombuffer(b'{"format": "a-test", "x": ' + b"[" * 100_000, np.uint8)
    out = io.BytesIO()
    np.savez(out, head=deep)
    with pytest.raises(CorruptData):
        archive.loads(out.getvalue(), Head, "test")
    with pytest.raises(CorruptData):
        archive.format_of(out.getvalue())


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 40))
def test_damaged_archives_are_read_or_refused_and_nothing_else(damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(archive.dumps(Head(), {"it": np.arange(20, dtype=np.float32)}))
    for at, value in damage:
        data[at % len(data)] = value
    for read in (lambda it: archive.loads(it, Head, "test"), archive.format_of):
        try:
            read(bytes(data[: len(data) - cut]))
        except CorruptData as error:
            assert error.reason in ("format", "schema")
