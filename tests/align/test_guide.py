"""What a guide adds to a small model's KV, and its file, which is checked like any foreign bytes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align.guide import NAMES, Guide, Weights
from preread.align.guide_bytes import KeptGuide, Outcome, dumps, loads
from preread.align.projection import leading
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint, Geometry

SHAPE, WIDTH, READ, TOKENS = Geometry(4, 2, 6), 7, 5, 9
FIRST, READS = 1, (3, 8)


def weights(seed: int = 0) -> Weights:
    source, layers, channels = np.random.default_rng(seed), SHAPE.layers - FIRST, 2 * SHAPE.kv_heads * SHAPE.head_dim
    x, heads = WIDTH * len(READS), 2 * SHAPE.kv_heads
    shapes = ((x,), (x, READ), (layers, READ, channels), (layers, channels), (layers, heads))
    return Weights(*(source.normal(size=shape).astype(np.float32) for shape in shapes))


def kept() -> KeptGuide:
    outcome = Outcome(-0.03, (-0.05, -0.01), 0.02, (0.01, 0.03), 0.4, 512)
    guide = Guide(FIRST, READS, weights())
    return KeptGuide(guide, Fingerprint("a" * 64), Fingerprint("b" * 64), SHAPE, "a text", 400, outcome)


def large(seed: int = 3) -> dict[int, np.ndarray]:
    source = np.random.default_rng(seed)
    return {layer: source.normal(size=(TOKENS, WIDTH)).astype(np.float32) for layer in (2, *READS)}


def test_what_is_added_is_what_the_formula_says() -> None:
    w, streams = weights(), large()
    guide = Guide(FIRST, READS, w)
    found = guide.changes(guide.read(streams))
    assert found.shape == (3, 2, 2, TOKENS, 6) and found.dtype == np.float32
    for layer, part, head, token in np.ndindex(3, 2, 2, TOKENS):
        z = (np.concatenate([streams[3][token], streams[8][token]]) - w.mean) @ w.inward
        at, column = part * 2 + head, slice((part * 2 + head) * 6, (part * 2 + head + 1) * 6)
        expected = w.gates[layer, at] * (z @ w.added[layer][:, column]) + w.bias[layer][column]
        np.testing.assert_allclose(found[layer, part, head, token], expected, rtol=1e-3, atol=1e-4)


def test_untrained_means_exact_and_tokens_do_not_see_each_other() -> None:
    w = weights()
    nothing = Guide(FIRST, READS, replace(w, added=np.zeros_like(w.added), bias=np.zeros_like(w.bias)))
    assert not nothing.changes(nothing.read(large())).any()
    guide, streams = Guide(FIRST, READS, w), large()
    whole = guide.changes(guide.read(streams))
    one = guide.changes(guide.read({layer: rows[4:5] for layer, rows in streams.items()}))
    np.testing.assert_allclose(one[..., 0, :], whole[..., 4, :], rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused() -> None:
    w = weights()
    for name in NAMES:
        rows = getattr(w, name)
        for wrong in (rows[..., :-1], rows[None]):
            with pytest.raises(UsageError, match="weights"):
                Guide(FIRST, READS, replace(w, **{name: wrong}))
    for reads in ((), (3, -1)):
        with pytest.raises(UsageError, match="reads no large layer"):
            Guide(FIRST, reads, w)
    with pytest.raises(UsageError, match="do not fit"):
        Guide(FIRST, (3, 8, 9), w)


def test_a_file_gives_back_what_was_written() -> None:
    one = kept()
    again = loads(dumps(one))
    for name in NAMES:
        np.testing.assert_array_equal(getattr(again.guide.weights, name), getattr(one.guide.weights, name))
    assert replace(again, guide=one.guide) == one and (again.guide.first, again.guide.reads) == (FIRST, READS)


def test_a_file_that_says_something_else_is_refused() -> None:
    one = kept()
    for change, why in (
        ({"geometry": Geometry(5, 2, 6)}, "all layers from its first"),
        ({"geometry": Geometry(4, 2, 5)}, "all layers from its first"),
        ({"geometry": Geometry(4, 4, 3)}, "other heads"),
        ({"guide": replace(one.guide, weights=replace(weights(), mean=weights().mean * np.float32(np.nan)))}, "finite"),
        ({"guide": replace(one.guide, weights=replace(weights(), mean=weights().mean.astype(np.float64)))}, "finite"),
    ):
        with pytest.raises(CorruptData, match=why):
            loads(dumps(replace(one, **change)))  # type: ignore[arg-type]


@given(st.binary(max_size=300), st.integers(0, 20_000))
def test_foreign_bytes_are_refused_or_read(data: bytes, at: int) -> None:
    whole = dumps(kept())
    for foreign in (data, whole[:at], whole[:at] + data + whole[at + len(data) :]):
        try:
            loads(foreign)
        except CorruptData as error:
            assert "guide" in str(error)


def test_leading_directions_are_those_of_the_exact_decomposition() -> None:
    source = np.random.default_rng(1)
    rows = (source.normal(size=(400, 6)) * [9, 5, 3, 1, 0.3, 0.1]) @ source.normal(size=(6, 80)) + 50
    rows = (rows + source.normal(size=rows.shape) * 0.01).astype(np.float32)
    mean, inward = leading(rows, 3)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5)
    projected = (rows - mean) @ inward
    np.testing.assert_allclose(projected.std(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(projected.T), np.eye(3), atol=0.02)
    left = np.linalg.svd((rows - mean) / rows.std(axis=0), full_matrices=False)[0][:, :3]
    explained = left @ (left.T @ projected)
    np.testing.assert_allclose(explained, projected, atol=0.05)
    assert leading(rows[:5], 512)[1].shape == (80, 5)  # no more than there are samples
