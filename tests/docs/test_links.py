"""Every link of every page leads to something: a file of the repository, and a heading in it."""

from pathlib import Path

import pytest
from docsite import markdown

ROOT = Path(__file__).parents[2]
FOUND = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
PAGES = {str(page.relative_to(ROOT)): page for page in FOUND}


def broken(page: Path) -> list[str]:
    """The page's links that lead nowhere."""
    return [target for target in markdown.links(page.read_text()) if not _leads_somewhere(page, target)]


def _leads_somewhere(page: Path, target: str) -> bool:
    if target.startswith(("https://", "http://", "mailto:")):
        return True
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    inside = file.is_relative_to(ROOT) or file.is_relative_to(page.parent)
    return inside and file.exists() and (not anchor or anchor in markdown.anchors(file.read_text()))


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_link_of_a_page_leads_to_something(name: str) -> None:
    assert broken(PAGES[name]) == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One heading, `two` words\n\n## fitted/2\n\n## fitted/2\n\n    # no heading\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#one-heading-two-words) [c](#here) [d](there.md#fitted2-1)\n\n# Here\n")
    assert broken(page) == []
    page.write_text("[a](their.md) [b](there.md#two-headings) ![c](c.svg) [d](there.md#no-heading) [e](#here)\n")
    assert broken(page) == ["their.md", "there.md#two-headings", "c.svg", "there.md#no-heading", "#here"]
    page.write_text("`[a](nowhere.md)`\n\n    [b](nowhere.md)\n")
    assert broken(page) == []
