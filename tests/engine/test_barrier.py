"""Threads of llama.cpp wait for each other briefly, unless the operator says otherwise."""

import os
import subprocess
import sys

import pytest

from preread.engine.barrier import SPINS, wait_briefly


@pytest.mark.parametrize(
    ("before", "spins"),
    [
        ({}, str(SPINS)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_the_operator_says_holds(before: dict[str, str], spins: str | None) -> None:
    environment = dict(before)
    wait_briefly(environment)
    assert environment.get("GOMP_SPINCOUNT") == spins


def test_the_command_line_says_so_before_llama_cpp_is_loaded() -> None:
    code = "from preread.cli import main\ntry: main(['--version'])\nexcept SystemExit: import llama_cpp"
    environment = {key: value for key, value in os.environ.items() if key not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    if "OPENMP DISPLAY ENVIRONMENT BEGIN" not in told or "GOMP_SPINCOUNT" not in told:
        pytest.skip("this llama.cpp does not use GNU OpenMP")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in told
