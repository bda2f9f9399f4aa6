"""Mappings between what two models make of a text, and their files, which are checked like any foreign bytes."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align.mapping import Mapping, Read, chosen, features
from preread.align.mapping_bytes import Kept, dumps, loads
from preread.align.ridge import Linear
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint, Geometry, KVBlock, Span

SHAPE, SMALL, LARGE, TOKENS = Geometry(4, 1, 2), 5, 7, 6
INPUTS = 2 * LARGE + 2 * SMALL


def kept(seed: int = 0) -> Kept:
    source = np.random.default_rng(seed)
    shapes = ((INPUTS,), (8,), (INPUTS, 3), (3, 8))
    linear = Linear(*(source.normal(size=shape).astype(np.float32) for shape in shapes))
    mapping = Mapping(2, (3, 5), (SMALL, LARGE), linear)
    return Kept(mapping, Fingerprint("a" * 64), Fingerprint("b" * 64), SHAPE, "a text", 0.012, 0.034, 512)


def read() -> Read:
    source = np.random.default_rng(3)

    def rows(width: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return source.normal(size=(TOKENS, width)).astype(np.float32)

    empty = np.zeros((4, 1, TOKENS, 2), np.float16)
    block = KVBlock(Span(0, TOKENS), Span(0, 4), empty, empty)
    return Read(block, {2: rows(SMALL), 3: rows(SMALL)}, {layer: rows(LARGE) for layer in (1, 3, 5)}, rows(SMALL))


def test_layers_are_mapped_from_what_the_mapping_reads() -> None:
    one, mapping = read(), kept().mapping
    x = np.concatenate([one.large[3], one.large[5], one.known[2], one.embeddings], axis=1)
    np.testing.assert_array_equal(features(one, 2, (3, 5)), x)
    np.testing.assert_allclose(mapping.rows(one), mapping.linear(x), rtol=1e-6)
    # With everything mapped there is no exact layer to read.
    assert features(one, 0, (1,)).shape == (TOKENS, LARGE + SMALL)


def test_a_mapping_that_reads_something_else_is_refused() -> None:
    mapping = kept().mapping
    for change in ({"reads": (3,)}, {"split": 0}, {"widths": (SMALL, LARGE + 1)}):
        with pytest.raises(UsageError, match="does not read what it says"):
            replace(mapping, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be"):
        replace(mapping, reads=(3, -1))


def test_large_layers_are_spread_over_the_partners_of_mapped_ones() -> None:
    path = (1, 1, 2, 4, 4, 6, 9, 9, 12, 14)
    assert chosen(path, 0, 4) == (1, 4, 9, 14) or chosen(path, 0, 4) == (1, 4, 6, 14)
    assert chosen(path, 8, 4) == (12, 14) and chosen(path, 9, 4) == (14,)
    assert all(set(chosen(path, split, 3)) <= set(path[split:]) for split in range(10))


def test_a_file_is_read_as_it_was_written() -> None:
    written, found = kept(), loads(dumps(kept()))
    plain = ("small", "large", "geometry", "text", "dloss", "kl", "tokens")
    assert [getattr(found, name) for name in plain] == [getattr(written, name) for name in plain]
    mine, its = written.mapping, found.mapping
    assert (mine.split, mine.reads, mine.widths) == (its.split, its.reads, its.widths)
    for name in ("mean_x", "mean_y", "inward", "outward"):
        np.testing.assert_array_equal(getattr(mine.linear, name), getattr(its.linear, name))


def changed(**changes: np.ndarray) -> bytes:
    with np.load(io.BytesIO(dumps(kept()))) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def test_matrices_that_do_not_fit_are_refused() -> None:
    for changes in (
        {"inward": np.zeros((INPUTS, 2), np.float32)},  # another rank than outward has
        {"mean_x": np.zeros(INPUTS - 1, np.float32)},
        {"outward": np.full((3, 8), np.inf, np.float32)},
        {"mean_y": np.zeros(8, np.float64)},
        {"mean_x": np.zeros(9, np.float32), "inward": np.zeros((9, 3), np.float32)},
        {"mean_y": np.zeros(6, np.float32), "outward": np.zeros((3, 6), np.float32)},  # one layer too few
    ):
        with pytest.raises(CorruptData) as caught:
            loads(changed(**changes))
        assert caught.value.reason == "shape", changes


def test_a_head_that_is_not_one_is_refused() -> None:
    with pytest.raises(CorruptData) as caught:
        loads(changed(head=np.frombuffer(b'{"format": "other"}', np.uint8)))
    assert caught.value.reason == "schema"


@given(st.integers(0, 1 << 14), st.integers(1, 255), st.integers(0, 64))
def test_damaged_files_are_refused_or_still_a_mapping(at: int, flip: int, cut: int) -> None:
    data = bytearray(dumps(kept()))
    data[at % len(data)] ^= flip
    try:
        found = loads(bytes(data[: len(data) - cut]))
    except CorruptData:
        return
    assert found.mapping.split == 2


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        loads(data)
