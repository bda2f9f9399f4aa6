from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.codec.rope import unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS, take, windows
from preread.fit.text import Text, calibration, evaluation, read
from preread.values import Span

PARTS = tuple(" ".join(str(number * seed) for number in range(4000)) for seed in (1, 7))


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(smollm, window_tokens=1024)) as opened:
        yield opened


def test_windows_do_not_overlap_and_tails_follow(engine: LlamaCpp) -> None:
    text = Text("numbers", PARTS)
    chosen = windows(engine, text, 6)
    assert len(chosen) == 6
    size = WINDOW_TOKENS + TAIL_TOKENS
    first = engine.tokenize(PARTS[0], special=False, start=True)
    for n, (tokens, tail) in enumerate(chosen[::2]):  # documents take turns
        assert np.array_equal(np.concatenate([tokens, tail]), first[n * size : (n + 1) * size])


def test_too_little_text_is_refused(engine: LlamaCpp) -> None:
    with pytest.raises(UsageError, match="too short"):
        windows(engine, Text("little", ("a few words",)), 4)


def test_rotation_is_undone(engine: LlamaCpp) -> None:
    """In the first layer, K before rotation depends on the token alone: wherever it stands, it is the same."""
    tokens = np.tile(engine.tokenize("one two three four", special=False), 40)[:120]
    period = len(engine.tokenize("one two three four", special=False))
    (window,) = take(engine, [(tokens, tokens[:2])], lambda _: None)
    k = unrotate(window.block.k[:1], Span(0, len(tokens)), engine.ropes[:1])[0]
    there, far = k[:, period : 2 * period], k[:, 20 * period : 21 * period]
    cached = window.block.k[0].astype(np.float32)
    moved = np.abs(cached[:, period : 2 * period] - cached[:, 20 * period : 21 * period]).max()
    assert np.abs(there - far).max() < 0.02 * moved


def test_default_texts_differ_and_say_what_they_are() -> None:
    fitted, measured = calibration(), evaluation()
    assert "standard library" in fitted.label and "language reference" in measured.label
    assert sum(map(len, fitted.parts)) > 500_000 and sum(map(len, measured.parts)) > 300_000
    assert not set(fitted.parts) & set(measured.parts)


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("größer", "utf-8")
    assert read([tmp_path / "a.txt"]) == Text("a.txt", ("größer",))
    (tmp_path / "b.txt").write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match="byte 2"):
        read([tmp_path / "b.txt"])
    with pytest.raises(UsageError, match="cannot be read"):
        read([tmp_path / "c.txt"])
