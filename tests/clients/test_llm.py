"""`llm` (llm.datasette.io), from the command line, with a model of `extra-openai-models.yaml`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llm", reason="make clients")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def llm(site: Any, tmp_path: Path) -> Run:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: manual\n  model_name: {site.manual}\n  api_base: {site.v1}\n"
        "  supports_tools: true\n  supports_schema: true\n"
    )
    command = shutil.which("llm", path=str(Path(sys.executable).parent))
    env = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = ("-m", "manual", "-o", "temperature", "0", "-o", "max_tokens", "60")
        return subprocess.run([command, *options, *arguments], env=env, capture_output=True, text=True, timeout=300)

    return run


def test_a_question(llm: Run) -> None:
    for options in ((), ("--no-stream",)):
        ran = llm(*options, "What is the code of the pump?")
        assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr


def test_a_schema(llm: Run) -> None:
    ran = llm("--schema", "name str, code int", "Describe the pump.")
    assert ran.returncode == 0 and isinstance(json.loads(ran.stdout)["code"], int), ran.stderr


def test_a_tool(llm: Run) -> None:
    function = 'def code_of(part: str) -> str:\n    "The code of a part"\n    return "114"'
    ran = llm("--functions", function, "--td", "What is the code of the pump?")
    assert ran.returncode == 0, ran.stderr
