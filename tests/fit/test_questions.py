"""Questions about Python's own library: each has its answer in its document, and the same seed asks the same."""

import pytest

from preread.errors import UsageError
from preread.fit.questions import EACH, Question, about, documents
from preread.fit.text import CALIBRATION


def test_enough_are_asked_of_many_modules_and_answered_in_the_text() -> None:
    found = documents(200)
    assert sum(len(one.questions) for one in found) >= 200 and len({one.module for one in found}) >= 20
    assert not {one.module.removesuffix(".py") for one in found} & set(CALIBRATION)
    for one in found:
        assert 3000 <= len(one.text) <= 5000 and len(one.questions) == EACH
        for question in one.questions:
            assert question.right(question.answer) and not question.right("")
            assert question.answer.strip("`'\" .;") in one.text


def test_the_same_seed_asks_the_same() -> None:
    assert documents(30) == documents(30) != documents(30, seed=1)


def test_more_than_there_are_cannot_be_asked() -> None:
    with pytest.raises(UsageError, match="ask for fewer"):
        documents(100_000)


def test_source_is_asked_about_and_prose_is_not() -> None:
    (first, second) = about("CODE = 107\n\ndef wait(seconds=30):\n    return seconds\n\nMANY = [CODE]\n")
    assert "`CODE`" in first.text and first.right("107") and "`seconds` of `wait`" in second.text and second.right("30")
    assert about("The pump has code 107.") == about("A\0B") == about("") == ()


def test_an_answer_is_right_whatever_is_put_around_it() -> None:
    question = Question("What?", "'utf-8'")
    assert all(question.right(said) for said in ("utf-8", "`utf-8`", ' "utf-8".\n\nBecause …', "```python\nutf-8\n```"))
    assert not any(question.right(said) for said in ("", "utf-16", "It is utf-8", "```"))
