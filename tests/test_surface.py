"""What the library declares to its users, and that a type checker sees it so."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import preread
from preread.edge.options import OptionFields, Options
from preread.engine.sampling import Sampling, SamplingFields

ROOT = Path(__file__).parents[1]
USED = """
from preread import AsyncEdge, Edge, PrereadError

try:
    with Edge("smollm2-135m-instruct", "http://cloud:8000", rung="q8", threads=2) as edge:
        answer = edge.ask("?", context="manual", temperature=0.5, top_k=3, local=True)
        text: str = answer.text
        ms: float = answer.timings.ttft_ms
        for piece in edge.stream("?", seed=1, local=True):
            text += piece
except PrereadError as error:
    text = str(error)


async def main() -> str:
    async with AsyncEdge("smollm2-135m-instruct", refine="lossless") as edge:
        return (await edge.ask("?", max_tokens=3)).finish
"""
MISUSED = """
from preread import Edge

Edge("m", rang="q8")
Edge("m", threads="two")
Edge("m").ask("?", temprature=0.5)
Edge("m").ask("?", top_k=0.5)
"""


def test_keyword_arguments_are_the_fields_of_what_they_make() -> None:
    assert {"model": str, "cloud": str | None, **get_type_hints(OptionFields)} == get_type_hints(Options)
    assert [field.name for field in fields(Options)][:2] == ["model", "cloud"]
    assert get_type_hints(SamplingFields) == get_type_hints(Sampling)


def test_all_that_is_declared_is_there() -> None:
    assert all(getattr(preread, name).__name__ == name for name in preread.__all__)


def test_a_type_checker_sees_it(tmp_path: Path) -> None:
    used, misused = tmp_path / "used.py", tmp_path / "misused.py"
    used.write_text(USED)
    misused.write_text(MISUSED)
    # As the project's own code is checked: what is known of that since lint ran is not found out anew, in 30 s.
    checker = [sys.executable, "-m", "mypy", str(used), str(misused)]
    told = subprocess.run(checker, cwd=ROOT, capture_output=True, text=True).stdout
    wrong = [line.partition(": error: ") for line in told.splitlines() if ": error: " in line]
    # Where it was found before, mypy tells it as of then, in the folder of that time.
    assert [Path(where).name for where, *_ in wrong] == [f"{misused.name}:{line}" for line in (4, 5, 6, 7)], told
    assert "rang" in wrong[0][2] and "temprature" in wrong[2][2]
    assert (ROOT / "src/preread/py.typed").exists(), "or else types are not looked at where preread is installed"
