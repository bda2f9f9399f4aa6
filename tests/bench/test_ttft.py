"""The bench runs through, says what it found, and goes on where it was cut off. What it measures is not tested."""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from preread.bench import traced
from preread.bench.ttft import Grid, Row, bench, staged, summary
from preread.bench.ways import Ways
from preread.errors import UsageError
from preread.testing.tiny import write_tiny

QUIET = Console(quiet=True)
GRID = Grid((0.0, 300.0), (2.0,), (100, 200), 8, 3, ("lossless", "q8"), 1, choose=True, local_every=2)


@pytest.fixture(scope="module")
def tiny(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm)


def run(tiny: Path, grid: Grid) -> dict[str, Any]:
    return {"rows": [asdict(row) for row in asyncio.run(bench(tiny, "tiny", grid, QUIET))]}


@pytest.mark.long
def test_a_grid_is_measured_and_a_cut_run_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = replace(GRID, out=tmp_path / "rows")
    told = run(tiny, grid)
    rows = told["rows"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == json.loads(json.dumps(rows))
    assert [(row["mbps"], row["context_tokens"]) for row in rows] == [(0, 100), (0, 200), (300, 100), (300, 200)]
    black, fast = rows[0], rows[2]
    assert black["way"] == "computed" and black["loaded_s"] is None and black["estimated"] == ("lossless",)
    assert fast["rung"] == "lossless" and fast["loaded_s"] > 0 and fast["bytes_per_token"] > 500
    assert all(row["same_output"] for row in rows)
    assert black["local_s"] == fast["local_s"], "measured in every second cell of a length"
    asked: list[str] = []
    planned = Ways.planned

    async def counted(self: Ways, context: str, *others: Any) -> Any:
        asked.append(context)
        return await planned(self, context, *others)

    monkeypatch.setattr(Ways, "planned", counted)
    assert run(tiny, grid)["rows"] == rows and not asked
    assert grid.out is not None
    grid.out.write_text("".join(grid.out.read_text().splitlines(keepends=True)[:3]))
    assert run(tiny, grid)["rows"][:3] == rows[:3] and asked == ["t200", "t200"]


@pytest.mark.long
def test_a_baseline_leaves_no_cells_behind_which_others_would_lie(tiny: Path) -> None:
    async def story() -> int:
        async with staged(tiny, "tiny", replace(GRID, context_tokens=(100,)), QUIET) as (ways, _):
            await ways.loaded("t100", "lossless")
            return await ways.node.core.call(lambda: ways.node.engine.session.context_tokens)

    assert asyncio.run(story()) == 0


def test_each_rung_has_a_row_where_none_is_chosen(tiny: Path) -> None:
    rows = run(tiny, replace(GRID, mbps=(300.0,), context_tokens=(100,), choose=False, local_every=1))["rows"]
    assert [row["rung"] for row in rows] == ["lossless", "q8"]
    assert rows[0]["lossless_s"] == rows[0]["loaded_s"] and rows[1]["lossless_s"] == rows[0]["lossless_s"]


def test_a_file_of_something_else_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"model": "tiny", "prompt_tokens": 8}\n')
    with pytest.raises(UsageError, match="holds no rows"):
        run(tiny, replace(GRID, out=tmp_path / "rows"))


@pytest.mark.long
def test_requests_on_a_trace(tiny: Path) -> None:
    told: dict[str, Any] = asyncio.run(traced.bench(tiny, "tiny", GRID, "wifi", 3, 1, QUIET))
    assert [row["context_tokens"] for row in told["rows"]] == [100, 200, 100]
    assert all(row["same_output"] for row in told["rows"])
    assert told["worst_to_local"] == max(row["ratio_to_local"] for row in told["rows"])


def test_the_summary_is_of_medians_and_worsts() -> None:
    row = Row(1, 1, 1, 1, "lossless", 1, 1, 1, None, None, (), 1, 1, 1.0, 1.0, 0.5, 0.9, 1, True, "streamed")
    found = summary([row, replace(row, ratio_to_floor=1.5, ratio_to_local=1.1), replace(row, ratio_to_floor=1.2)])
    assert (found["median_to_floor"], found["worst_to_floor"], found["worst_to_local"]) == (1.2, 1.5, 1.1)
