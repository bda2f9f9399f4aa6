"""How numbers and tables look."""

import pytest

from preread.cli.terminal import byte_progress, print_table, rate, size


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
