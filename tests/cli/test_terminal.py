"""How numbers, tables and the words of others look."""

import ast
import json
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread import cli
from preread.cli.terminal import (
    JsonFormatter,
    LogFormatter,
    byte_progress,
    note,
    print_json,
    print_table,
    rate,
    say,
    say_piece,
    shown,
    shown_prose,
    size,
)

EVIL = "\x1b[31m\x07\x9b2J\r\x7f\u202egnp\u2066\u200b\xa0\U000e0041"
"""Escape sequences of both kinds, a bell, a carriage return, and letters that are not seen or turn others round."""


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1234, "1.23 kB"), (98_362_432, "98.4 MB"), (1.1e9, "1.1 GB")],
)
def test_size(size_bytes: float, text: str) -> None:
    assert size(size_bytes) == text


@pytest.mark.parametrize(("bytes_s", "text"), [(1.25e6, "10 Mbit/s"), (1e3, "0.008 Mbit/s"), (1.25e9, "10 Gbit/s")])
def test_rate(bytes_s: float, text: str) -> None:
    assert rate(bytes_s) == text


def test_columns_are_aligned_also_for_wide_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("マ", "1"), ("long", "2")])
    assert capsys.readouterr().out == "A      B\nマ     1\nlong   2\n"


def test_progress_in_a_pipe_is_a_line_for_each_ten_percent(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_progress() as report:
        for done in range(0, 101, 4):
            report("fetching", done, 100)
        report("unpacking", 0, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fetching: 0 %" and lines[-2:] == ["fetching: 100 %", "unpacking"] and len(lines) == 12


def acts(text: str) -> list[str]:
    """What in a command's output would do more than be seen."""
    return [letter for letter in text if not (letter.isprintable() or letter in "\n\t")]


@given(st.text(st.characters()))
def test_a_line_that_is_shown_does_nothing_but_be_seen(text: str) -> None:
    assert shown(text).isprintable() and (shown(text) == text or not text.isprintable())


@given(st.text(st.characters()) | st.text(EVIL))
def test_prose_that_is_shown_neither_acts_on_a_terminal_nor_turns_other_letters_round(text: str) -> None:
    for letter in shown_prose(text):
        assert letter in "\n\t" or unicodedata.category(letter) not in {"Cc", "Cs", "Zl", "Zp"}
        assert unicodedata.bidirectional(letter) not in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    "text",
    [
        "a\n\tb",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469",
        "\u05d0\u200f!",
        "a\xa0b",
        "co\xadop",
    ],
)
def test_an_answer_keeps_what_languages_need(text: str) -> None:
    assert shown_prose(text) == text


def test_whatever_is_printed_does_nothing_but_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    note(EVIL)
    print_table((EVIL, "B"), [(EVIL, EVIL)])
    print_json({EVIL: EVIL})
    with byte_progress() as report:
        report(EVIL, 1, 2)
    printed = capsys.readouterr()
    assert not acts(printed.out + printed.err)
    assert printed.out.count("\\x1b[31m") == 4 and printed.err.count("\\x1b[31m") == 2
    assert json.loads(printed.out.splitlines()[-1]) == {EVIL: EVIL}


def test_an_answer_is_printed_with_its_lines_and_without_what_acts(capsys: pytest.CaptureFixture[str]) -> None:
    say_piece("one\n\ttwo\x1b]0;title\x07 \x9b31m \u202eeno")
    assert capsys.readouterr().out == "one\n\ttwo\\x1b]0;title\\x07 \\x9b31m \\u202eeno"


def test_a_log_line_is_one_line_that_does_nothing_but_be_seen() -> None:
    formatter = LogFormatter("%(levelname)s %(message)s")
    record = logging.LogRecord("preread", logging.WARNING, "f.py", 1, "said %s", (f"{EVIL}\nWARNING forged",), None)
    line = formatter.format(record)
    assert line.isprintable() and "\\nWARNING forged" in line
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        record = logging.LogRecord("p", logging.ERROR, "f.py", 1, "failed", (), (type(error), error, None))
        assert "\x1b" not in formatter.format(record) and "\\x1b[31m" in formatter.format(record)


def test_a_log_line_for_machines_is_one_object_with_the_fields_of_its_record() -> None:
    record = logging.LogRecord("preread.edge", logging.INFO, "f.py", 1, "said %s", (f"{EVIL}\n\ud800",), None)
    record.fields = {"way": "streamed", "ttft_ms": 12.5}
    line = JsonFormatter().format(record)
    told = json.loads(line)
    assert line.isprintable() and line.isascii()
    assert told.pop("time").endswith("+00:00")
    assert (told.pop("level"), told.pop("logger")) == ("info", "preread.edge")
    assert told == {"message": f"said {EVIL}\n\ud800", "way": "streamed", "ttft_ms": 12.5}
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        record = logging.LogRecord("p", logging.ERROR, "f.py", 1, "failed", (), (type(error), error, None))
        assert EVIL in json.loads(JsonFormatter().format(record))["exception"]


def test_nothing_in_the_command_line_prints_past_the_terminal_module() -> None:
    for file in Path(cli.__file__).parent.glob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        past = {"print", "sys.stdout.write", "sys.stderr.write", "typer.echo", "typer.secho"} & set(calls)
        assert not past or file.name == "terminal.py", f"{file.name} calls {past}: use preread.cli.terminal"
