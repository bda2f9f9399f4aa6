"""Slot files: what is learnt of a saved one writes any other, and what is not understood is refused."""

import struct
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.attach.slot_file import Bytes, Form, learn
from preread.errors import CorruptData
from preread.values import Geometry, KVBlock, Span

LAYERS, HEADS, WIDTH = 3, 2, 4
GEOMETRY = Geometry(LAYERS, HEADS, WIDTH)
MAGIC = b"qsgg\x04\x00\x00\x00"


def _tokens(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng([count, seed]).integers(1000, 50_000, count).astype(np.int32)


def _block(count: int, seed: int = 0) -> KVBlock:
    source = np.random.default_rng([count, seed])
    k, v = (source.standard_normal((LAYERS, HEADS, count, WIDTH)).astype(np.float16) for _ in "kv")
    return KVBlock(Span(0, count), Span(0, LAYERS), k, v)


def _saved(
    count: int, *, plain: bool = False, streams: int = 1, transposed: bool = False, rotations: tuple[int, ...] = (0, 0),
    kind: int = 1, tail: bytes = b"", cell: tuple[int, ...] = (),
) -> Bytes:  # fmt: skip
    """A slot file as llama-server writes it, written down apart from the code that is tested."""
    tokens, block = _tokens(count).tolist(), _block(count)
    packed = tokens if plain else [-1, 1, count, *tokens, 0]
    out = MAGIC + struct.pack(f"<I{len(packed)}i", len(packed), *packed)
    out += struct.pack("<II", streams, count)
    for position in range(count):
        out += struct.pack(f"<iI{len(cell)}ii", position, 1, *cell, 0)
    out += struct.pack(f"<II{len(rotations)}I", transposed, LAYERS, *rotations)
    for layer in range(LAYERS):
        out += struct.pack("<iQ", kind, 2 * HEADS * WIDTH)
        out += b"".join(block.k[layer][:, token].tobytes() for token in range(count))
    for layer in range(LAYERS):
        if transposed:
            out += struct.pack("<iII", kind, 2, HEADS * WIDTH)
            out += b"".join(block.v[layer][head, :, i].tobytes() for head in range(HEADS) for i in range(WIDTH))
        else:
            out += struct.pack("<iQ", kind, 2 * HEADS * WIDTH)
            out += b"".join(block.v[layer][:, token].tobytes() for token in range(count))
    return np.frombuffer(out + bytes(4 * (streams - 1)) + tail, np.uint8)


@cache
def _learnt(**how: Any) -> Form:
    return learn([(_saved(count, **how), _tokens(count)) for count in (7, 12)], GEOMETRY)


FORMS = st.fixed_dictionaries(
    {
        "plain": st.booleans(),
        "streams": st.integers(1, 8),
        "transposed": st.booleans(),
        "rotations": st.sampled_from([(), (0,), (0, 0)]),
    }
)


@settings(max_examples=40)
@given(FORMS, st.integers(1, 40), st.data())
def test_what_is_learnt_of_two_files_writes_a_third_in_any_order_of_pieces(
    how: dict[str, Any], count: int, data: st.DataObject
) -> None:
    form, block = _learnt(**how), _block(count)
    file = np.zeros(form.size_bytes(count), np.uint8)
    form.frame(_tokens(count), file)
    cut, layer = data.draw(st.integers(0, count)), data.draw(st.integers(0, LAYERS))
    pieces = [
        KVBlock(
            Span(a, b), Span(c, d), block.k[c:d, :, a:b], block.v[c:d, :, a:b]
        )
        for a, b in ((0, cut), (cut, count))
        for c, d in ((0, layer), (layer, LAYERS))
        if a < b and c < d
    ]  # fmt: skip
    for piece in data.draw(st.permutations(pieces)):
        form.put(file, count, piece)
    np.testing.assert_array_equal(file, _saved(count, **how))


@settings(max_examples=40)
@given(FORMS, st.integers(1, 30), st.data())
def test_rows_are_read_as_they_were_computed(how: dict[str, Any], count: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count - 1))
    rows = _learnt(**how).rows(_saved(count, **how), count, Span(start, count), Span(1, LAYERS))
    np.testing.assert_array_equal(rows.k, _block(count).k[1:, :, start:])
    np.testing.assert_array_equal(rows.v, _block(count).v[1:, :, start:])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"kind": 8}, "type"),
        ({"rotations": (64, 64)}, "type"),
        ({"tail": b"\0\0\0\0"}, "length"),
        ({"cell": (5, 0, 0)}, "cells"),
    ],
)
def test_a_file_that_is_not_understood_to_the_last_byte_is_refused(how: dict[str, Any], reason: str) -> None:
    with pytest.raises(CorruptData) as refused:
        _learnt(**how)
    assert refused.value.reason == reason


def test_a_file_of_another_model_is_refused() -> None:
    files = [(_saved(count), _tokens(count)) for count in (7, 12)]
    for other in (Geometry(LAYERS + 1, HEADS, WIDTH), Geometry(LAYERS, HEADS, 2 * WIDTH)):
        with pytest.raises(CorruptData):
            learn(files, other)


def test_files_of_one_length_do_not_tell_what_follows_from_the_length() -> None:
    with pytest.raises(CorruptData, match="different numbers"):
        learn([(_saved(7), _tokens(7))] * 2, GEOMETRY)


def test_files_of_other_tokens_are_refused() -> None:
    with pytest.raises(CorruptData, match="tokens that were computed"):
        learn([(_saved(7), _tokens(7, seed=1)), (_saved(12), _tokens(12, seed=1))], GEOMETRY)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_of_the_frame_is_noticed_or_is_a_row(at: int, byte: int) -> None:
    first, second = _saved(7).copy(), _saved(12)
    first[min(at, len(first) - 1)] = byte
    try:
        form = learn([(first, _tokens(7)), (second, _tokens(12))], GEOMETRY)
    except CorruptData:
        return
    assert form == _learnt()


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(CorruptData):
        learn([(np.frombuffer(data, np.uint8), _tokens(7)), (_saved(12), _tokens(12))], GEOMETRY)
