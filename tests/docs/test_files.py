"""Every file and folder of the repository that a page names in its code is there: pages tell where to look."""

import re
from pathlib import Path

import pytest
from docsite import markdown

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/preread"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"]
FOLDERS = "|".join(sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()))
NAMED = re.compile(
    r"(?<![\w./{-])(?:(?:src|tests|scripts|examples)/[\w./-]*\w(?![*\w-])|(?:" + FOLDERS + r")/[\w/]+\.(?:py|c|h)\b)"
)


def missing(text: str) -> list[str]:
    """Files that a page names and that are not there; those of the package may be named without `src/preread/`."""
    named = [path for code in markdown.code(text) for path in NAMED.findall(code.text)]
    return [path for path in named if not (ROOT / path).exists() and not (PACKAGE / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    assert missing(page.read_text()) == []


def test_a_file_that_is_gone_is_found() -> None:
    page = "`edge/hold.py`, `edge/core.py`, `tests/edge`, `tests/sledge/test_x.py`\n\n    scripts/intsall dev\n"
    assert missing(page) == ["edge/hold.py", "tests/sledge/test_x.py", "scripts/intsall"]
