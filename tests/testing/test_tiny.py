"""The model of random weights: whether it can stand for a real one where contexts are streamed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preread.bench.ttft import text
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampling
from preread.engine.selftest import self_test
from preread.errors import CorruptData
from preread.plan.match import Tokens
from preread.testing.tiny import LAYERS, write_tiny
from preread.values import KVBlock, Span

SIX = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def engine(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm)
    engine = LlamaCpp.open(path, name="tiny", window_tokens=1024, threads=1)
    yield engine
    engine.close()


def answer(engine: LlamaCpp, prompt: Tokens) -> list[int]:
    return [step.token for step in engine.session.generate(prompt, SIX)]


def inject(engine: LlamaCpp, block: KVBlock) -> None:
    engine.session.reserve(len(block.tokens))
    engine.session.inject(block)
    engine.session.open_layers(LAYERS)


def test_it_can_be_streamed_and_has_the_other_models_vocabulary(engine: LlamaCpp, smollm: Path) -> None:
    assert self_test(engine) and engine.no_injection is None
    other = LlamaCpp.open(smollm, window_tokens=256)
    assert engine.spec.vocabulary == other.spec.vocabulary
    assert engine.spec.fingerprint != other.spec.fingerprint
    other.close()


def test_its_answers_follow_from_the_contexts_kv(engine: LlamaCpp) -> None:
    tokens = engine.tokenize(text()[:3000], special=False)
    prompt, context = np.ascontiguousarray(tokens[:9]), np.ascontiguousarray(tokens[100:400])
    engine.session.prefill(np.ascontiguousarray(tokens[200:500]))
    of_another = answer(engine, prompt)
    engine.session.prefill(context)
    right, block = answer(engine, prompt), engine.session.export(Span(0, 300), Span(0, LAYERS))
    logits = engine.session.logits().copy()
    assert right != of_another
    inject(engine, block)
    assert answer(engine, prompt) == right
    assert np.array_equal(engine.session.logits(), logits)
    spoiled = block.v.copy()
    spoiled[1, :, 150:160] = -spoiled[1, :, 150:160]
    inject(engine, replace(block, v=spoiled))
    answer(engine, prompt)
    assert not np.array_equal(engine.session.logits(), logits)


def test_it_is_the_same_for_a_seed(smollm: Path, tmp_path: Path) -> None:
    one, same, other = (write_tiny(tmp_path / f"{i}", smollm, seed).read_bytes() for i, seed in enumerate((1, 1, 2)))
    assert one == same != other


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no").write_bytes(b"nothing at all")
    with pytest.raises(CorruptData, match="not a GGUF"):
        write_tiny(tmp_path / "tiny.gguf", tmp_path / "no")
