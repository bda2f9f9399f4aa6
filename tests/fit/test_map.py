"""Mapping the KV of one real llama.cpp model from another's; a model with random weights is mapped from itself."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.map import SINK_TOKENS, Fit, fit_mappings, layer_rows, mapped, read
from preread.fit.sample import TAIL_TOKENS, rope, take, windows
from preread.fit.text import Text
from preread.testing.tiny import write_tiny

Told = dict[str, list[tuple[int, int]]]
TEXT = Text("numbers", tuple(" ".join(str(n * n % 9973) for n in range(start, start + 900)) for start in (1, 5000)))


@pytest.fixture(scope="module")
def tiny(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm)
    with closing(LlamaCpp.open(path, window_tokens=1024, scored_tokens=TAIL_TOKENS)) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(tiny: LlamaCpp) -> tuple[tuple[Fit, ...], Told]:
    told: Told = {}
    fits = fit_mappings(tiny, tiny, TEXT, (0, 1), lambda stage, *at: told.setdefault(stage, []).append(at))
    return fits, told


def test_a_model_is_mapped_from_itself_and_hardly_notices(tiny: LlamaCpp, found: tuple[tuple[Fit, ...], Told]) -> None:
    fits, told = found
    layers = tiny.spec.geometry.layers
    assert [fit.mapping.split for fit in fits] == [0, 1]
    assert [len(fit.mapping.linears) for fit in fits] == [layers, layers - 1]
    for fit in fits:
        assert fit.path == tuple(range(layers))
        assert min(fit.explained) > 0.98
        assert fit.held_out.quality.kl < 0.01
    assert list(told) == ["read", "map", "measure"]
    assert all(steps[-1][0] == steps[-1][1] for steps in told.values())


def test_mapped_layers_replace_all_but_sinks(tiny: LlamaCpp, found: tuple[tuple[Fit, ...], Told]) -> None:
    fit = found[0][1]
    (mine,) = take(tiny, windows(tiny, TEXT, 4)[:1], lambda _: None)
    one = read(tiny, tiny, mine, mine.block)
    block = mapped(fit.mapping, one, rope(tiny))
    exact = mine.block.k[1:]
    assert block.layers == fit.mapping.layers and block.k.shape == exact.shape
    np.testing.assert_array_equal(block.k[:, :, :SINK_TOKENS], exact[:, :, :SINK_TOKENS])
    # What is mapped is near what is exact, after K has been rotated back.
    error = np.square(block.k.astype(np.float32) - exact).sum()
    assert 0 < error < 0.05 * np.square(exact.astype(np.float32)).sum()


def test_rows_are_of_one_token_each(tiny: LlamaCpp) -> None:
    (mine,) = take(tiny, windows(tiny, TEXT, 4)[:1], lambda _: None)
    rows = layer_rows(mine.block, rope(tiny))
    shape = tiny.spec.geometry
    assert len(rows) == shape.layers and rows[0].shape == (len(mine.tokens), 2 * shape.kv_heads * shape.head_dim)
    # The first token is not rotated.
    np.testing.assert_allclose(rows[0][0, : shape.head_dim], mine.block.k[0, 0, 0], rtol=1e-3)


def test_models_with_other_tokenizers_are_refused(tiny: LlamaCpp, qwen: Path) -> None:
    with closing(LlamaCpp.open(qwen, window_tokens=1024)) as other, pytest.raises(UsageError, match="tokenizers"):
        fit_mappings(tiny, other, TEXT, (0,), lambda *_: None)
