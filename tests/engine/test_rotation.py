"""How layers rotate K is told from llama.cpp's graph: K of one token, un-rotated, is the same at every position."""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from preread.codec.rope import Ropes, unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.testing.families import LAYERS, write_family
from preread.values import Span

TOKENS = 300
YARN = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 256,
    "rope.freq_base": 500.0,
}  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., LlamaCpp]:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")

    def opened(architecture: str, more: Mapping[str, Any] | None = None) -> LlamaCpp:
        path = write_family(tmp_path / "model.gguf", architecture, more=more or {})
        return LlamaCpp.open(path, window_tokens=512, trusted=True)

    return opened


def moved(engine: LlamaCpp, ropes: Ropes) -> list[float]:
    """How much K of one and the same token differs between positions in each layer, as a share of its size.

    Only the first layer's K depends on the token alone; of the others that of equal tokens all along does, since each
    attends to its equals.
    """
    engine.session.prefill(np.full(TOKENS, 7, np.int32))
    block = engine.session.export(Span(0, TOKENS), Span(0, engine.spec.geometry.layers))
    upright = unrotate(block.k, block.tokens, ropes)
    first = upright[:, :, :1]
    return [float(np.abs(k - k0).max() / np.abs(k0).max()) for k, k0 in zip(upright, first, strict=True)]


FAMILIES: list[tuple[str, dict[str, Any], int]] = [
    ("llama", {}, 1),
    ("llama", YARN, 1),
    ("qwen3", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 1),
    ("gemma2", {}, 1),
    ("gemma3", {"rope.freq_base": 1e6}, 2),
    ("gpt-oss", YARN | {"rope.freq_base": 150_000.0}, 1),
    ("cohere2", {}, 2),
    ("olmo2", YARN, 2),
    ("smollm3", {}, 2),
    ("phi3", {"rope.dimension_count": 96}, 1),
]


@pytest.mark.parametrize(("architecture", "more", "kinds"), FAMILIES)
def test_equal_tokens_have_equal_keys_before_rotation(
    opened: Callable[..., LlamaCpp], architecture: str, more: dict[str, Any], kinds: int
) -> None:
    with closing(opened(architecture, more)) as engine:
        ropes = engine.ropes
        assert len(ropes) == LAYERS and len({id(rope) for rope in ropes}) == kinds
        assert max(moved(engine, ropes)) < 0.05
        turned = moved(engine, (ropes[0],) * LAYERS)
        assert (max(turned) > 0.1) == (kinds > 1), "another layer's angles would not do"


def test_caches_whose_size_chooses_other_factors_are_not_exchanged(tmp_path: Path) -> None:
    """phi3 with long-rope: llama.cpp takes the factors for long contexts where the cache is large, not the context."""
    found = {}
    for architecture in ("phi3", "llama"):
        more = {"rope.scaling.original_context_length": 512}
        path = write_family(tmp_path / f"{architecture}.gguf", architecture, more=more)
        for cells in (512, 1024):
            with closing(LlamaCpp.open(path, window_tokens=cells, trusted=True)) as engine:
                found[architecture, cells] = engine.spec, engine.ropes[0].frequencies
    (short, fast), (long, slow) = found["phi3", 512], found["phi3", 1024]
    assert short.fingerprint != long.fingerprint and short.family is None and not np.allclose(fast, slow)
    assert found["llama", 512][0].fingerprint == found["llama", 1024][0].fingerprint
