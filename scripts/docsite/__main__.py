"""`python -m docsite FOLDER`: write all pages of the site into a folder, for MkDocs, which knows nothing of the code.

They are those of docs/, the Markdown of the repository's root and of examples/, files that these link to, and the
reference, which is made from the code.
"""

import shutil
import sys
from pathlib import Path
from typing import Final

from docsite import cli, http, links, python

ROOT: Final = Path(__file__).parents[2]
_LANGUAGES: Final = {".py": "python", ".c": "c", ".h": "c", ".sh": "bash", ".toml": "toml"}


def write(folder: Path) -> None:
    """Write the pages into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    for place, text in (moved() | reference() | sources()).items():
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def written() -> dict[str, str]:
    """Pages that somebody wrote, by their paths in the repository."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
    return {str(page.relative_to(ROOT)): page.read_text() for page in sorted(pages)}


def moved() -> dict[str, str]:
    """What somebody wrote, by its place on the site."""
    return {links.place(path): links.moved(text, path) for path, text in written().items()}


def reference() -> dict[str, str]:
    """What is made from the code, by its place."""
    modules = python.modules((ROOT / "mkdocs.yml").read_text())
    return {
        "reference/cli.md": cli.page(),
        "reference/edge.md": http.edge_page(),
        "reference/cloud.md": http.cloud_page(),
        **{f"reference/python/{module}.md": python.page(module) for module in modules},
    }


def sources() -> dict[str, str]:
    """What pages link to that is no page, by its place: files as they are, folders as lists."""
    pages = written()
    led = {path for page, text in pages.items() for path in links.outside(text, page)} - pages.keys()
    return {links.place(path): _shown(path) for path in sorted(led)}


def _shown(path: str) -> str:
    file, head = ROOT / path, f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if file.is_dir():
        inside = sorted(one.name for one in file.iterdir() if not one.name.startswith((".", "__")))
        return head + "\n".join(f"- `{name}`" for name in inside) + "\n"
    return f"{head}````{_LANGUAGES.get(file.suffix, 'text')}\n{file.read_text()}\n````\n"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
