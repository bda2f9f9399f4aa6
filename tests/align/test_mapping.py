"""Mappings between rows of two models, and their files, which are checked like any foreign bytes."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align.mapping import Mapping, features
from preread.align.mapping_bytes import Kept, dumps, loads
from preread.align.ridge import Linear
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint, Geometry, Span

SMALL, LARGE, WIDTH = Geometry(4, 1, 2), Geometry(6, 1, 4), 5


def linear(inputs: int, seed: int, rank: int = 3) -> Linear:
    source = np.random.default_rng(seed)
    shapes = ((inputs,), (4,), (inputs, rank), (rank, 4))
    return Linear(*(source.normal(size=shape).astype(np.float32) for shape in shapes))


def kept() -> Kept:
    inputs = 2 * 8 + 1 * 4 + WIDTH
    mapping = Mapping(2, Span(1, 2), (Span(0, 2), Span(4, 6)), (linear(inputs, 0), linear(inputs, 1)))
    return Kept(mapping, Fingerprint("a" * 64), Fingerprint("b" * 64), SMALL, LARGE, "a text", 0.012, 0.034, 512)


def test_a_layer_is_read_from_its_window_the_known_layers_and_the_tokens() -> None:
    source, mapping = np.random.default_rng(3), kept().mapping
    large = [source.normal(size=(7, 8)).astype(np.float32) for _ in range(6)]
    small = [source.normal(size=(7, 4)).astype(np.float32) for _ in range(2)]
    embeddings = source.normal(size=(7, WIDTH)).astype(np.float32)
    rows = mapping.rows(3, large, small, embeddings)
    x = np.concatenate([large[4], large[5], small[1], embeddings], axis=1)
    np.testing.assert_array_equal(features(large, Span(4, 6), small, Span(1, 2), embeddings), x)
    np.testing.assert_allclose(rows, mapping.linears[1](x), rtol=1e-6)
    assert mapping.layers == Span(2, 4)


def test_a_mapping_that_reads_what_is_not_known_is_refused() -> None:
    mapping = kept().mapping
    with pytest.raises(UsageError, match="known below"):
        replace(mapping, known=Span(1, 3))
    with pytest.raises(UsageError, match="for each mapped layer"):
        replace(mapping, windows=mapping.windows[:1])


def test_a_file_is_read_as_it_was_written() -> None:
    written, found = kept(), loads(dumps(kept()))
    plain = ("small", "large", "geometry", "large_geometry", "text", "dloss", "kl", "tokens")
    assert [getattr(found, name) for name in plain] == [getattr(written, name) for name in plain]
    assert (found.mapping.split, found.mapping.known) == (2, Span(1, 2))
    assert found.mapping.windows == written.mapping.windows
    for mine, its in zip(written.mapping.linears, found.mapping.linears, strict=True):
        for name in ("mean_x", "mean_y", "inward", "outward"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))


def changed(**changes: np.ndarray) -> bytes:
    with np.load(io.BytesIO(dumps(kept()))) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def test_layers_that_do_not_fit_are_refused() -> None:
    for name, array in {
        "inward0": np.zeros((25, 2), np.float32),  # another rank than outward has
        "mean_x1": np.zeros(24, np.float32),
        "outward1": np.full((3, 4), np.inf, np.float32),
        "mean_y0": np.zeros(4, np.float64),
    }.items():
        with pytest.raises(CorruptData) as caught:
            loads(changed(**{name: array}))
        assert caught.value.reason == "shape", name
    narrower = {"mean_x1": np.zeros(24, np.float32), "inward1": np.zeros((24, 3), np.float32)}
    with pytest.raises(CorruptData, match="something else"):
        loads(changed(**narrower))


def test_a_head_that_is_not_one_is_refused() -> None:
    with pytest.raises(CorruptData) as caught:
        loads(changed(head=np.frombuffer(b'{"format": "other"}', np.uint8)))
    assert caught.value.reason == "schema"
    text = dumps(replace(kept(), large_geometry=Geometry(5, 1, 4)))
    with pytest.raises(CorruptData, match="lacks"):
        loads(text)


@given(st.integers(0, 1 << 14), st.integers(1, 255), st.integers(0, 64))
def test_damaged_files_are_refused_or_still_a_mapping(at: int, flip: int, cut: int) -> None:
    data = bytearray(dumps(kept()))
    data[at % len(data)] ^= flip
    try:
        found = loads(bytes(data[: len(data) - cut]))
    except CorruptData:
        return
    assert found.mapping.layers == Span(2, 4)


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        loads(data)
