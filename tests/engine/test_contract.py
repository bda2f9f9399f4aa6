"""Every engine does what `testing/engine.py` says: llama.cpp with two models, and the fake of the loop's tests."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from preread.engine.base import Engine
from preread.engine.llamacpp import LlamaCpp
from preread.testing.engine import EngineContract
from preread.testing.fake_engine import FakeEngine


class TestFake(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return FakeEngine()


class TestTiny(EngineContract):
    rounding_nats = 0.02

    @pytest.fixture(scope="class")
    def engine(self, tiny_model: Path) -> Iterator[Engine]:
        with closing(LlamaCpp.open(tiny_model, window_tokens=768, kv_memory_bytes=0)) as engine:
            yield engine


class TestSmolLM2(EngineContract):
    rounding_nats = 0.1

    @pytest.fixture(scope="class")
    def engine(self, smollm: Path) -> Iterator[Engine]:
        with closing(LlamaCpp.open(smollm, window_tokens=768, kv_memory_bytes=0)) as engine:
            yield engine
