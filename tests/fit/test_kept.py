"""What two models made of a window is kept in a folder, and found again by the next fit."""

from pathlib import Path

import numpy as np
import pytest

from preread.align.mapping import Read
from preread.errors import UsageError
from preread.fit.kept import kept, name
from preread.values import Fingerprint, KVBlock, Span

MODELS = Fingerprint("a" * 64), Fingerprint("b" * 64)
TOKENS = np.arange(5, dtype=np.int32)


def made(calls: list[int]) -> Read:
    calls.append(1)
    source = np.random.default_rng(0)
    k, v = (source.normal(size=(3, 1, 5, 2)).astype(np.float16) for _ in "kv")
    rows = [source.normal(size=(5, width)).astype(np.float32) for width in (4, 7, 7, 4)]
    return Read(KVBlock(Span(0, 5), Span(0, 3), k, v), {2: rows[0]}, {1: rows[1], 6: rows[2]}, rows[3])


def test_what_was_read_once_is_not_read_again(tmp_path: Path) -> None:
    path, calls = tmp_path / "new" / name(MODELS, TOKENS, (2,), (1, 6)), []
    first = kept(path, lambda: made(calls))
    second = kept(path, lambda: made(calls))
    assert len(calls) == 1 and [*path.parent.iterdir()] == [path]
    for one in (first, second):
        assert (one.block.tokens, one.block.layers) == (Span(0, 5), Span(0, 3))
        np.testing.assert_array_equal(one.block.k, made([]).block.k)
        np.testing.assert_array_equal(one.block.v, made([]).block.v)
        assert list(one.known) == [2] and list(one.large) == [1, 6]
        np.testing.assert_allclose(one.large[6], made([]).large[6], rtol=1e-3)
        np.testing.assert_array_equal(one.embeddings, first.embeddings)


def test_a_file_that_is_no_file_of_this_is_made_anew(tmp_path: Path) -> None:
    path, calls = tmp_path / "one.npz", []
    kept(path, lambda: made(calls))
    for damaged in (b"", path.read_bytes()[:-300], b"no archive"):
        path.write_bytes(damaged)
        kept(path, lambda: made(calls))
    assert len(calls) == 4


def test_names_tell_texts_models_and_layers_apart() -> None:
    others = [
        name(MODELS, TOKENS, (2,), (1, 6)),
        name(MODELS[::-1], TOKENS, (2,), (1, 6)),
        name(MODELS, TOKENS + 1, (2,), (1, 6)),
        name(MODELS, TOKENS, (2, 1), (6,)),
        name(MODELS, TOKENS, (2,), (1,)),
    ]
    assert len(set(others)) == len(others)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        kept(tmp_path / "file" / "one.npz", lambda: made([]))
