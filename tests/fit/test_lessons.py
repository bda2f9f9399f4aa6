"""What a guide learns from: text predicts itself, Python source is asked about, and some is kept apart to measure."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.lessons import STRETCH_TOKENS, Lesson, apart, lessons, of_text
from preread.fit.sample import TAIL_TOKENS
from preread.fit.text import Text, below

SOURCE = "".join(f"class Pump{n}(Machine{n}):\n    SPEED_{n} = {n * n + 11}\n    code = 'c{n}'\n\n" for n in range(90))
PROSE = " ".join(f"Pump {n} has code {n * n}." for n in range(600))


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(smollm, window_tokens=512)) as opened:
        yield opened


def _text(engine: LlamaCpp, lesson: Lesson) -> str:
    return b"".join(engine.piece(int(token)) for token in lesson.tokens).decode(errors="replace")


def test_source_is_asked_about_and_prose_predicts_itself(engine: LlamaCpp) -> None:
    found = lessons(engine, Text("both", (SOURCE, PROSE)), 8)
    asked, plain = [[one for one in found if one.asked == kind] for kind in (True, False)]
    assert asked and plain and len(found) == 8
    for one in asked:
        text = _text(engine, one)
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
    assert [one.asked for one in found] == [number % 5 == 0 for number in range(len(found))]
    more = lessons(engine, Text("both", (SOURCE, PROSE)), 11)  # the same ones come first
    assert len(more) == 11 and all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, more, strict=False))


def test_what_is_measured_with_is_of_documents_that_nothing_is_learnt_from() -> None:
    parts = tuple(f"document {n}" for n in range(30))
    learnt, measured = apart(Text("many", parts))
    assert measured.parts == ("document 0", "document 12", "document 24")
    assert sorted((*learnt.parts, *measured.parts)) == sorted(parts)
    assert [len(one.parts) for one in apart(Text("two", parts[:2]))] == [1, 1]
    with pytest.raises(UsageError, match="give two files"):
        apart(Text("one", parts[:1]))


def test_every_document_gives_a_lesson_before_any_gives_a_second(engine: LlamaCpp) -> None:
    parts = tuple("".join(f"{name}{n} " for n in range(1200)) for name in ("ash", "birch", "cedar", "date", "elm"))
    found = lessons(engine, Text("trees", parts), 10)
    names = [name for one in found for name in ("ash", "birch", "cedar", "date", "elm") if name in _text(engine, one)]
    assert sorted(names) == sorted(2 * ["ash", "birch", "cedar", "date", "elm"])
    with pytest.raises(UsageError, match="too short to learn from: 0 lessons, 4 are needed"):
        lessons(engine, Text("short", ("1 2 3", "4")), 8)


def test_stretches_lie_behind_what_precedes_them() -> None:
    one = of_text(np.arange(640, dtype=np.int32))
    assert [exchange.behind for exchange in one.exchanges] == [80, 160, 240, 320, 400, 480, 560]
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
