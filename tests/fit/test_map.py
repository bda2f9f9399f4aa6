"""Mapping the KV of one real llama.cpp model from what another reads; one of random weights is mapped from itself."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.fit.map import SINK_TOKENS, Fit, fit_mappings, mapped, read, targets
from preread.fit.sample import TAIL_TOKENS, windows
from preread.fit.text import Text
from preread.testing.tiny import write_tiny

Told = dict[str, list[tuple[int, int]]]
TEXT = Text("numbers", tuple(" ".join(str(n * n % 9973) for n in range(start, start + 900)) for start in (1, 5000)))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024, scored_tokens=TAIL_TOKENS)) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(tiny: LlamaCpp) -> tuple[tuple[Fit, ...], Told]:
    told: Told = {}
    fits = fit_mappings(tiny, tiny, TEXT, (0, 3), lambda stage, *at: told.setdefault(stage, []).append(at), 6)
    return fits, told


def test_a_model_is_mapped_from_itself_and_hardly_notices(tiny: LlamaCpp, found: tuple[tuple[Fit, ...], Told]) -> None:
    fits, told = found
    layers = tiny.spec.geometry.layers
    assert [fit.mapping.split for fit in fits] == [0, 3]
    assert [len(fit.explained) for fit in fits] == [layers, layers - 3]
    for fit in fits:
        assert fit.path == (1, *range(1, layers))
        # What a layer reads is given for every other one; the others follow from those around them, roughly.
        assert max(fit.explained) > 0.99 and min(fit.explained) > 0.5
        assert fit.held_out.quality.kl < 0.1
    assert list(told) == ["align", "read", "map", "measure"]
    assert all(steps[-1][0] == steps[-1][1] for steps in told.values())


def test_mapped_layers_replace_all_but_sinks(tiny: LlamaCpp, found: tuple[tuple[Fit, ...], Told]) -> None:
    mapping = found[0][1].mapping
    tokens, _ = windows(tiny, TEXT, 4)[0]
    one = read(tiny, tiny, tokens, (3,), mapping.reads)
    block, exact = mapped(mapping, one, tiny.ropes), one.block.k[3:]
    assert (block.layers.start, block.layers.stop) == (3, tiny.spec.geometry.layers) and block.k.shape == exact.shape
    np.testing.assert_array_equal(block.k[:, :, :SINK_TOKENS], exact[:, :, :SINK_TOKENS])
    # What is mapped is near what is exact, after K has been rotated back.
    error = np.square(block.k.astype(np.float32) - exact).sum()
    assert 0 < error < 0.1 * np.square(exact.astype(np.float32)).sum()
    # The small model holds the exact context.
    np.testing.assert_array_equal(tiny.session.export(block.tokens, block.layers).k, exact)


def test_a_layers_kv_is_linear_in_what_it_reads(tiny: LlamaCpp) -> None:
    tokens, _ = windows(tiny, TEXT, 4)[1]
    layer = 5
    one = read(tiny, tiny, tokens, (layer,), (layer,))
    y = targets(one.block, tiny.ropes, layer)[:, : 2 * tiny.spec.geometry.head_dim][SINK_TOKENS:]
    x = one.known[layer][SINK_TOKENS:]
    np.testing.assert_array_equal(one.large[layer][SINK_TOKENS:], x)
    solution = np.linalg.lstsq(x[:400], y[:400], rcond=None)[0]
    error = np.square(x[400:] @ solution - y[400:]).sum() / np.square(y[400:] - y[400:].mean(axis=0)).sum()
    assert error < 0.01


def test_targets_are_rows_of_one_token_each(tiny: LlamaCpp) -> None:
    tokens, _ = windows(tiny, TEXT, 4)[0]
    one, shape = read(tiny, tiny, tokens, (), (1,)), tiny.spec.geometry
    rows = targets(one.block, tiny.ropes, 0)
    assert rows.shape == (len(tokens), shape.layers * 2 * shape.kv_heads * shape.head_dim)
    # The first token is not rotated.
    np.testing.assert_allclose(rows[0, : shape.head_dim], one.block.k[0, 0, 0], rtol=1e-3)
    second = 2 * shape.kv_heads * shape.head_dim
    np.testing.assert_allclose(rows[0, second : second + shape.head_dim], one.block.k[1, 0, 0], rtol=1e-3)


@pytest.mark.long
def test_a_model_of_another_tokenizer_is_read_too(tiny: LlamaCpp, qwen: Path, tmp_path: Path) -> None:
    with closing(LlamaCpp.open(write_tiny(tmp_path / "qwen.gguf", qwen, hidden=256), window_tokens=1024)) as other:
        tokens, _ = windows(tiny, TEXT, 4)[0]
        one = read(tiny, other, tokens, (), (1, 2))
        assert one.large[2].shape[0] == len(tokens) and np.isfinite(one.large[2]).all()
