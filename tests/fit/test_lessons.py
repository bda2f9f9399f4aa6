"""What a guide learns from: text predicts itself, Python source is asked about, and some is kept apart to measure."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.lessons import STRETCH_TOKENS, lessons, of_text, split
from preread.fit.sample import TAIL_TOKENS
from preread.fit.text import Text, below

SOURCE = "".join(f"class Pump{n}(Machine{n}):\n    SPEED_{n} = {n * n + 11}\n    code = 'c{n}'\n\n" for n in range(90))
PROSE = " ".join(f"Pump {n} has code {n * n}." for n in range(600))


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(smollm, window_tokens=512)) as opened:
        yield opened


def test_source_is_asked_about_and_prose_predicts_itself(engine: LlamaCpp) -> None:
    found = lessons(engine, Text("both", (SOURCE, PROSE)), 8)
    asked, plain = [[one for one in found if one.asked == kind] for kind in (True, False)]
    assert asked and plain and len(found) <= 10
    for one in asked:
        text = "".join(engine.piece(int(token)).decode(errors="replace") for token in one.tokens)
        for exchange in one.exchanges:
            prompt, answer = (
                b"".join(engine.piece(int(token)) for token in ids).decode()
                for ids in (exchange.prompt, exchange.answer)
            )
            assert exchange.behind is None and answer.strip("'") in text and "?" in prompt
            assert len(exchange.prompt) + len(exchange.answer) <= TAIL_TOKENS
    for one in plain:
        for exchange in one.exchanges:
            at = exchange.behind or 0
            its = np.concatenate([exchange.prompt, exchange.answer])
            np.testing.assert_array_equal(its, one.tokens[at : at + STRETCH_TOKENS])
            np.testing.assert_array_equal(exchange.candidates[:, 0], exchange.answer)
    again = lessons(engine, Text("both", (SOURCE, PROSE)), 8)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True))


def test_what_is_measured_with_is_not_learnt_from(engine: LlamaCpp) -> None:
    found = lessons(engine, Text("both", (SOURCE, PROSE)), 10)
    learnt, measured = split(found, 4)
    assert len(learnt) + len(measured) == len(found) and {one.asked for one in measured} == {True, False}
    assert not {one.tokens.tobytes() for one in learnt} & {one.tokens.tobytes() for one in measured}


def test_stretches_lie_behind_what_precedes_them() -> None:
    one = of_text(np.arange(640, dtype=np.int32))
    assert [exchange.behind for exchange in one.exchanges] == [128, 278, 428]
    assert of_text(np.arange(100, dtype=np.int32)).exchanges == ()


def test_a_folder_is_read_and_what_is_no_text_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.md").write_text("first")
    (tmp_path / "z.png").write_bytes(b"\x89PNG\xff\xfe")
    assert below([tmp_path]).parts == ("first", "second") and below([tmp_path / "b.txt"]).parts == ("second",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty has no text"):
        below([tmp_path / "a", tmp_path / "empty"])
    with pytest.raises(UsageError, match="cannot be read"):
        below([tmp_path / "none"])
