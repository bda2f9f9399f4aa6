"""Programs on the pages that a newcomer reads are run as they stand there, against a real cloud and edge."""

from pathlib import Path
from typing import Any

import pytest
from docsite import markdown

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    f"{name}:{part.line}": part.text
    for name in ("README.md", "docs/quickstart.md", "docs/guides/library.md", "docs/guides/langchain.md")
    for part in markdown.code((ROOT / name).read_text())
    if part.language == "python"
}


QUICK = {name for name in PROGRAMS if name.startswith(("README", "docs/quickstart"))}
"""The others open an edge each."""


@pytest.mark.parametrize(
    "program", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in PROGRAMS]
)
def test_a_program_of_a_page_runs_and_prints_something(
    program: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    text = PROGRAMS[program]
    if "langchain" in text:
        pytest.importorskip("langchain_openai", reason="LangChain's programs need langchain-openai; see make clients")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = {'"start"': '"manual"', "preread@start": "preread@manual"}
    if ":8080" in text:
        here["http://127.0.0.1:8080"] = request.getfixturevalue("edge").url
    else:
        here["http://127.0.0.1:8000"] = request.getfixturevalue("cloud").url
        here["smollm2-135m-instruct"] = str(request.getfixturevalue("tiny_model"))
    for there, instead in here.items():
        text = text.replace(there, instead)
    exec(compile(text, program, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_no_page_is_without_programs() -> None:
    assert {program.partition(":")[0] for program in PROGRAMS} == {
        "README.md",
        "docs/quickstart.md",
        "docs/guides/library.md",
        "docs/guides/langchain.md",
    }
