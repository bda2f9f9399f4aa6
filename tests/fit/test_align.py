"""Aligning the layers of real llama.cpp models; a model with random weights is aligned with itself."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.errors import EngineError, UsageError
from preread.fit.align import align
from preread.fit.text import Text
from preread.testing.tiny import write_tiny

TEXT = Text("numbers", (" ".join(str(number * number) for number in range(2000)),))


@pytest.fixture(scope="module")
def tiny_model(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024)) as opened:
        yield opened


def test_a_model_is_matched_with_itself_layer_by_layer(tiny: LlamaCpp) -> None:
    told: list[tuple[int, int]] = []
    found = align(tiny, tiny, TEXT, lambda _, done, total: told.append((done, total)))
    layers = tiny.spec.geometry.layers
    assert found.path == tuple(range(layers))
    assert found.similarity.shape == (layers, layers)
    np.testing.assert_allclose(np.diag(found.similarity), 1, atol=1e-6)
    assert found.text == "numbers" and found.tokens > 400
    assert told == sorted(told) and told[-1][0] == told[-1][1]


def test_models_with_other_tokenizers_are_refused(tiny: LlamaCpp, qwen: Path) -> None:
    with closing(LlamaCpp.open(qwen, window_tokens=1024)) as other, pytest.raises(UsageError, match="tokenizers"):
        align(tiny, other, TEXT, lambda *_: None)


def test_a_model_whose_kv_cannot_be_read_is_refused(tiny_model: Path, tiny: LlamaCpp) -> None:
    with (
        closing(LlamaCpp.open(tiny_model, window_tokens=1024, cache="q8_0")) as closed,
        pytest.raises(EngineError, match="q8_0"),
    ):
        align(tiny, closed, TEXT, lambda *_: None)
