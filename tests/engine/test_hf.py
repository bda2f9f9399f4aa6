"""One GGUF file in two engines: PyTorch computes what llama.cpp does, and what is learnt there holds here."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="teaching needs PyTorch: pip install 'preread[cloud]'")
pytest.importorskip("transformers", reason="teaching needs transformers: pip install 'preread[cloud]'")

from preread.align.exchanges import Exchange
from preread.engine.hf import Frozen, load
from preread.engine.learning import Pupil
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.sample import hold
from preread.fit.teach import answers
from preread.values import KVBlock, Span

pytestmark = pytest.mark.filterwarnings("default")  # what these libraries warn of is theirs


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, scored_tokens=64)) as opened:
        yield opened


@pytest.fixture
def frozen(tiny_frozen: Frozen) -> Frozen:
    return tiny_frozen


@pytest.fixture(scope="module")
def context(engine: LlamaCpp) -> Tokens:
    return engine.tokenize(" ".join(str(n * n % 997) for n in range(60)), special=False, start=True)


@pytest.fixture
def exact(engine: LlamaCpp, context: Tokens) -> KVBlock:
    engine.session.prefill(context)
    return engine.session.export(Span(0, len(context)), Span(0, engine.spec.geometry.layers))


def exchanges(engine: LlamaCpp) -> list[Exchange]:
    found = []
    for question, answer in (("What is 7?", "A number."), ("And what is 49 then?", "Its square."), ("Why?", "So.")):
        prompt, its = engine.tokenize(question, special=False), engine.tokenize(answer, special=False)
        rows = np.zeros((len(its), 1), np.float32)
        found.append(Exchange(prompt, its, its[:, None], rows, rows[:, 0]))
    return found


def test_both_engines_say_the_same_of_the_same_kv(engine: LlamaCpp, frozen: Frozen, exact: KVBlock) -> None:
    some = exchanges(engine)
    # Of exact KV, and of any other: half a standard deviation of noise in each channel.
    noise = np.random.default_rng(0).normal(size=exact.v.shape) * exact.v.astype(np.float32).std() / 2
    for block in (exact, KVBlock(exact.tokens, exact.layers, exact.k, (exact.v + noise).astype(np.float16))):
        hold(engine, block)
        ours, theirs = answers(engine, some), Pupil(frozen, block).losses(some)
        for mine, its in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, its, atol=0.05)


def test_order_of_channels_goes_and_comes_back(frozen: Frozen, exact: KVBlock) -> None:
    pupil = Pupil(frozen, exact)
    np.testing.assert_array_equal(pupil.block().k, exact.k)
    np.testing.assert_array_equal(pupil.block().v, exact.v)


def test_a_pupil_learns_and_llama_cpp_agrees(engine: LlamaCpp, frozen: Frozen, exact: KVBlock) -> None:
    some, pupil = exchanges(engine), Pupil(frozen, exact)
    before = np.concatenate(answers(engine, some)).mean()
    told = [pupil.step(some, 0.1) for _ in range(12)]
    assert told[0] == pytest.approx(before, abs=0.05) and told[-1] < told[0] - 0.5
    block = pupil.block()
    np.testing.assert_array_equal(block.v[:, :, :4], exact.v[:, :, :4])  # sinks stay
    hold(engine, block)
    after = np.concatenate(answers(engine, some)).mean()
    assert after == pytest.approx(np.concatenate(pupil.losses(some)).mean(), abs=0.1) and after < before - 0.5


def test_an_interrupted_pupil_goes_on_as_if_nothing_had_been(engine: LlamaCpp, frozen: Frozen, exact: KVBlock) -> None:
    some, whole, first = exchanges(engine), Pupil(frozen, exact), Pupil(frozen, exact)
    for pupil in (whole, first):
        pupil.step(some, 0.1)
    second = Pupil(frozen, exact)
    second.resume(first.state())
    for pupil in (whole, second):
        pupil.step(some[:2], 0.05)
    np.testing.assert_array_equal(whole.block().k, second.block().k)
    np.testing.assert_array_equal(whole.block().v, second.block().v)


def test_a_file_that_transformers_cannot_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "wrong.gguf").write_bytes(b"not a GGUF file, whatever its name")
    with pytest.raises(UsageError, match=r"wrong\.gguf"):
        load(tmp_path / "wrong.gguf", False)
