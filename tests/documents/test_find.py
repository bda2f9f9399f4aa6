"""Which documents are meant: files, folders, patterns, addresses; and what is passed over."""

import os
import subprocess
from pathlib import Path

import pytest

from preread.documents import find as module
from preread.documents.find import find
from preread.errors import UsageError


def tree(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return root


def found(*given: str | Path, prefix: str = "") -> dict[str, str]:
    """Names of contexts, and which file each is."""
    return {source.name: source.shown for source in find([str(one) for one in given], prefix).sources}


def passed_over(root: Path) -> dict[str, str]:
    return {one.shown.removeprefix(f"{root}/"): one.why for one in find([str(root)]).skipped}


def test_a_folder_is_all_documents_below_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = tree(tmp_path / "docs", "b.md", "chapter 10.md", "chapter 9.md", "guide/a.txt", "src/app.py")
    assert list(found(root)) == ["b", "chapter 9", "chapter 10", "guide.a", "src.app.py"]
    assert list(found(root / "guide", prefix="x:")) == ["x:a"]
    assert find([str(root / "b.md")]).sources[0].given and not find([str(root)]).sources[0].given


def test_files_patterns_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "docs/one.md", "docs/sub/two.md", "docs/three.txt", "odd[1].md")
    assert found(tmp_path / "docs/one.md", tmp_path / "docs/sub/two.md").keys() == {"one", "two"}
    assert found(tmp_path / "docs/**/*.md").keys() == {"one", "sub.two"}
    assert found(tmp_path / "docs/*.md").keys() == {"one"}
    assert found(tmp_path / "odd[1].md").keys() == {"odd[1]"}  # it is a file of that name
    assert found("https://x.example/a/b.html").keys() == {"b"}
    assert found(tmp_path / "docs", tmp_path / "docs/one.md").keys() == {"one", "sub.two", "three"}  # each once
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/docs/one.md").keys() == {"one"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("absent.md", "no such file"),
        ("*.md", "matches no file"),
        ("ftp://x/a", "only pages of http"),
        ("http://[", "is no address"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, given: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        find([given if "://" in given else str(tmp_path / given)])


def test_what_is_hidden_generated_or_leads_elsewhere_is_passed_over_and_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "docs", "a.md", ".env", ".git/config", "node_modules/x/y.js", "pkg/__pycache__/a.pyc")
    tree(tmp_path, "secret.txt", "elsewhere/b.md")
    (root / "link.md").symlink_to(root / "a.md")
    (root / "secret.md").symlink_to(tmp_path / "secret.txt")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to(root)
    (root / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "pipe")
    assert found(root).keys() == {"a", "link"}
    assert passed_over(root) == {
        ".env": "hidden",
        ".git/": "hidden",
        "node_modules/": "never published",
        "pkg/__pycache__/": "never published",
        "secret.md": "a link out of the folder",
        "folder/": "a link to a folder",
        "up/": "a link to a folder",
        "broken": "a link out of the folder",
        "pipe": "no ordinary file",
    }


def test_what_git_ignores_is_passed_over_as_git_decides(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "repo", "a.md", "a.log", "build/x.md", "docs/b.md", "docs/c.log", "docs/keep.log", "docs/out/d.md"
    )
    (root / ".gitignore").write_text("*.log\n/build/\n")
    (root / "docs" / ".gitignore").write_text("!keep.log\nout\n")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    ours = {str(Path(shown).relative_to(root)) for shown in found(root).values()}
    listed = ["git", "-C", str(root), "ls-files", "--others", "--exclude-standard"]
    theirs = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    assert (
        ours
        == {file for file in theirs if not Path(file).name.startswith(".")}
        == {"a.md", "docs/b.md", "docs/keep.log"}
    )
    assert passed_over(root)["build/"] == "ignored by .gitignore"
    assert found(root / "docs").keys() == {"b", "keep.log"}  # rules of the repository above hold, too
    assert found(root / "a.log").keys() == {"a.log"}  # what is named itself is meant


def test_too_many_documents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, "a.md", "b.md", "c.md")
    monkeypatch.setattr(module, "MOST", 2)
    with pytest.raises(UsageError, match="folder by folder"):
        find([str(root)])
