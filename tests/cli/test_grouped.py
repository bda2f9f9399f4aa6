"""Options that belong together, on the command line and as the value that a command gets of them."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from preread.cli.grouped import grouped


@dataclass(frozen=True, slots=True)
class Pair:
    left: Annotated[int, typer.Option("--left", help="One side.")] = 1
    right: Annotated[list[str] | None, typer.Option("--right", help="The other.")] = None


HERE = Pair(left=7)


def test_a_group_is_options_where_it_stands_and_one_value_for_the_command() -> None:
    app, got = typer.Typer(), list[object]()

    @app.command()
    @grouped
    def command(before: str = "b", pair: Pair = HERE, after: Annotated[bool, typer.Option("--after")] = False) -> None:
        """What it does."""
        got.append((before, pair, after))

    run = CliRunner().invoke
    for line in ([], ["--right", "a", "--after", "--right", "b", "--left", "2", "--before", "x"]):
        assert run(app, line).exit_code == 0
    assert got == [("b", Pair(7), False), ("x", Pair(2, ["a", "b"]), True)]
    told = run(app, ["--help"]).output
    assert "What it does." in told
    places = [told.index(one) for one in ("--before", "--left", "--right", "--after")]
    assert places == sorted(places) and "[default: 7]" in told


def test_commands_that_run_no_server_load_none() -> None:
    script = "import sys, preread.cli; print(*{'uvicorn', 'starlette', 'httpx2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"
