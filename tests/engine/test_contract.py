"""Every engine does what `testing/engine.py` says: llama.cpp, also with windows, and the fake of the loop's tests."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from preread.engine.base import Engine
from preread.engine.llamacpp import LlamaCpp
from preread.testing.engine import EngineContract
from preread.testing.fake_engine import FakeEngine
from preread.testing.families import write_family


class TestFake(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return FakeEngine()


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Engine]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=768, kv_memory_bytes=0)) as engine:
        yield engine


@pytest.fixture(scope="module")
def small(smollm: Path) -> Iterator[Engine]:
    with closing(LlamaCpp.open(smollm, window_tokens=768, kv_memory_bytes=0)) as engine:
        yield engine


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_family(tmp_path_factory.mktemp("families") / "gemma3.gguf", "gemma3")
    with closing(LlamaCpp.open(path, window_tokens=768, kv_memory_bytes=0, trusted=True)) as engine:
        yield engine


class TestTiny(EngineContract):
    rounding_nats, drawn_alike = 0.02, 4

    @pytest.fixture
    def engine(self, tiny: Engine) -> Engine:
        return tiny


class TestWindowed(EngineContract):
    rounding_nats, drawn_alike = 0.02, 4

    @pytest.fixture
    def engine(self, windowed: Engine) -> Engine:
        assert any(windowed.spec.windows)
        return windowed


class TestSmolLM2(EngineContract):
    rounding_nats, drawn_alike = 0.5, 1  # four bits a weight, and what it reads is no language

    @pytest.fixture
    def engine(self, small: Engine) -> Engine:
        return small
