"""Edges behind one uplink: the bench runs through, and a cold context crosses it once. Times are not tested."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from preread.bench.group import Answer
from preread.bench.site import Options, bench, threads
from preread.bench.tally import Run, summed, table, told

# A link that is so fast that little is computed meanwhile, and nothing is asked for twice out of impatience.
OPTIONS = Options((2,), 1000, 2, 640, 8, 2, "lossless", 1)


@pytest.mark.long
def test_edges_answer_alone_beside_each_other_and_as_neighbours(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, context_tokens=250)
    told: dict[str, Any] = asyncio.run(bench(tiny_model, "tiny", options, Console(quiet=True)))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    rows, runs = told["rows"], told["runs"]
    assert [(row["edges"], row["neighbours"]) for row in rows] == [(1, False), (2, False), (2, True)]
    alone, without, near = rows
    assert [sum(row["ways"].values()) for row in rows] == [1, 2, 2], "every edge answered"
    assert [run["edges"] for run in runs] == [len(run["answers"]) for run in runs] == [1, 2, 2]
    assert all(answer["ttft_s"] > 0 for run in runs for answer in run["answers"])
    assert alone["ratio_to_one"] == 1 and without["ratio_to_without"] is None and near["ratio_to_without"] > 0
    assert told["context_bytes"] > 25_000 and told["machine"]["cores"] > 0


@pytest.mark.long  # it compares how fast processes are that share this machine: it must have nothing else to do
def test_two_edges_load_a_cold_context_once_if_they_are_neighbours(tiny_model: Path) -> None:
    told: dict[str, Any] = asyncio.run(bench(tiny_model, "tiny", OPTIONS, Console(quiet=True)))
    alone, without, near = told["rows"]
    assert all(row["ways"].keys() <= {"streamed", "mixed"} for row in told["rows"]), told
    # One alone may compute a part while it loads, which it then does not fetch; with neighbours all fetch all, once.
    assert alone["ratio_to_context"] < 1.1
    assert without["ratio_to_one"] > 1.5 and without["ratio_to_context"] > 1.4
    assert near["ratio_to_context"] < 1.2 and near["uplink_bytes"] < 0.75 * without["uplink_bytes"]


def answered(ttft_s: float, computed_n: int = 0) -> Answer:
    return Answer(ttft_s, "mixed" if computed_n else "streamed", None, computed_n, 0)


def test_rows_are_of_medians_and_slowest_edges() -> None:
    runs = [
        run
        for slow_s in (1.0, 9.0, 2.0)
        for run in (
            Run(1, False, 1000, (answered(1.0, 25),)),
            Run(2, False, 2000, (answered(2.0), answered(2 * slow_s))),
            Run(2, True, 1100, (answered(1.0), answered(slow_s))),
        )
    ]
    alone, without, near = summed(runs, 100, 1250)
    assert (alone.ratio_to_one, without.ratio_to_one, near.ratio_to_one) == (1.0, 2.0, 1.1)
    assert (near.ratio_to_context, alone.computed_share) == (0.88, 0.25)
    assert (without.slowest_s, near.slowest_s, near.ratio_to_without) == (4.0, 2.0, 0.5)
    assert (without.ttft_s, near.ttft_s) == (2.0, 1.0)
    assert alone.ways == {"mixed": 3} and near.ways == {"streamed": 6}
    assert table([alone, without, near], "", "").row_count == 3
    assert told(runs[2]) == "2 with neighbours: 0.001 MB; 1.000 s streamed (0 computed), 1.000 s streamed (0 computed)"


def test_all_rows_have_edges_of_the_same_threads() -> None:
    assert threads(Options((4, 2), 1, 1, 64, 1, 1, "lossless", 1, threads=3)) == 3
    most = Options((2, 64), 1, 1, 64, 1, 1, "lossless", 1)
    assert most.counts == (1, 2, 64), "one alone is always measured"
