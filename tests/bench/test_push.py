"""Changes reach edges, in small; and the judge finds what comes too late and what takes too much."""

import asyncio

import pytest
from rich.console import Console

from preread.bench.push import Options, Row, bench, tell
from preread.errors import RemoteError


@pytest.mark.long
@pytest.mark.timeout(300)
def test_changes_reach_edges_after_faults_too(capsys: pytest.CaptureFixture[str]) -> None:
    told = asyncio.run(bench(Options(edges=3, changes=2, rounds=0, idle_s=0), Console()))
    rows = told["rows"]
    assert isinstance(rows, list) and [row["what"] for row in rows] == ["connected"]
    assert '"bench": "push"' in capsys.readouterr().out


def row(what: str, median_s: float) -> Row:
    return Row(what, 1, median_s, median_s, median_s)


@pytest.mark.parametrize(
    ("rows", "idle_bytes_s", "why"),
    [
        ([row("connected", 1.2)], None, "connected"),
        ([row("connected", 0.2), row("silent", 30.0)], 10.0, "idle"),
    ],
)
def test_what_is_late_or_too_much_is_found(rows: list[Row], idle_bytes_s: float | None, why: str) -> None:
    with pytest.raises(RemoteError, match=f": {why}"):
        tell(Options(), rows, idle_bytes_s, Console())


def test_what_is_in_time_and_within_the_budget_passes() -> None:
    assert tell(Options(), [row("connected", 0.9), row("silent", 30.0)], 1.0, Console())["idle_month_bytes"] == 2592000
