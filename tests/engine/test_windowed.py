"""Families with windows: their KV goes out and in, bit by bit, also where llama.cpp's two caches have drifted apart."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import llama_cpp
import pytest

from preread.engine import selftest
from preread.engine.llamacpp import LlamaCpp
from preread.engine.selftest import self_test
from preread.testing.families import LAYERS, WINDOW, write_family


@pytest.fixture(params=["cohere2", "gemma2", "gpt-oss", "olmo2"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LlamaCpp]:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(tmp_path / f"{request.param}.gguf", request.param)
    with closing(LlamaCpp.open(path, window_tokens=512, kv_memory_bytes=0, trusted=True)) as engine:
        yield engine


def test_what_is_injected_is_what_was_computed(engine: LlamaCpp) -> None:
    assert engine.spec.windows == (WINDOW, None) * (LAYERS // 2)
    assert self_test(engine).no_injection is None


def test_the_self_test_sees_rows_that_are_not_where_windows_look_for_them(
    engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject = engine.cache.inject

    def into_one_cache_only(rows: selftest.Rows, block: selftest.KVBlock) -> None:
        inject(selftest.Rows(rows.sequence, rows.cells, rows.cells), block)

    monkeypatch.setattr(engine.cache, "inject", into_one_cache_only)
    why = self_test(engine).no_injection
    assert why is not None and "windows" in why


def test_the_self_test_reads_more_than_a_window_where_that_takes_no_time() -> None:
    lengths = [selftest._context_tokens(windows) for windows in ((None,), (32, None), (128, None), (4096, None))]
    assert lengths == [128, 128, 192, 128]
