"""Aligning the layers of real llama.cpp models; a model with random weights is aligned with itself."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.errors import EngineError
from preread.fit.align import align, matching
from preread.fit.text import Text
from preread.testing.tiny import write_tiny

TEXT = Text("numbers", (" ".join(str(number * number) for number in range(2000)),))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024)) as opened:
        yield opened


def test_a_model_is_matched_with_itself_layer_by_layer(tiny: LlamaCpp) -> None:
    told: list[tuple[int, int]] = []
    found = align(tiny, tiny, TEXT, lambda _, done, total: told.append((done, total)))
    layers = tiny.spec.geometry.layers
    # The first layer has read nothing: it is matched with none, and its own partner is the second.
    assert found.path == (1, *range(1, layers))
    assert found.similarity.shape == (layers, layers) and not found.similarity[:, 0].any()
    np.testing.assert_allclose(np.diag(found.similarity)[1:], 1, atol=1e-6)
    assert found.text == "numbers" and found.tokens > 400
    assert told == sorted(told) and told[-1][0] == told[-1][1]


@pytest.mark.long
def test_tokens_of_another_tokenizer_are_matched_by_what_they_stand_for(
    tiny: LlamaCpp, qwen: Path, tmp_path: Path
) -> None:
    with closing(LlamaCpp.open(write_tiny(tmp_path / "other.gguf", qwen, 1), window_tokens=1024)) as other:
        tokens = tiny.tokenize("Drücke die Taste 1234567 zweimal, bitte.", special=False, start=True)
        theirs, at = matching(tiny, other, tokens)

        def text(engine: LlamaCpp, ids: np.ndarray[tuple[int], np.dtype[np.int32]]) -> bytes:
            return b"".join(engine.piece(int(token)) for token in ids)

        assert text(other, theirs) == text(tiny, tokens)
        for end, match in enumerate(at[1:], 2):
            assert len(text(other, theirs[: match + 1])) <= len(text(tiny, tokens[:end])) or match == 0
        assert at[-1] == len(theirs) - 1 and len(theirs) != len(tokens)
        found = align(tiny, other, TEXT, lambda *_: None, 4)
        assert list(found.path) == sorted(found.path) and len(found.path) == tiny.spec.geometry.layers


def test_a_small_model_whose_kv_cannot_be_read_is_refused(tiny_model: Path, tiny: LlamaCpp) -> None:
    with (
        closing(LlamaCpp.open(tiny_model, window_tokens=1024, cache="q8_0")) as closed,
        pytest.raises(EngineError, match="q8_0"),
    ):
        align(closed, tiny, TEXT, lambda *_: None)
