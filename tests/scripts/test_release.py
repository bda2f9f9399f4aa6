"""scripts/release: when it refuses, what it writes and signs; a release made in a clone. Also changes/ and versions."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from docsite import markdown
from hypothesis import given
from hypothesis import strategies as st

from preread.cli import main

ROOT = Path(__file__).parents[2]
SENTENCE = re.compile(r"\S.{10,400}[.)]\n?", re.DOTALL)


def loaded() -> Any:
    """The script as a module."""
    loader = SourceFileLoader("release", str(ROOT / "scripts/release"))
    spec = spec_from_loader("release", loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules["release"] = module  # dataclasses look there
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = wrote
    return module


release = loaded()
ENTRY = "## [0.2.0] - 2026-12-01\n\n### Added\n\n- One. (#7)\n\n\n"
CHANGELOG = f"# Changelog\n\n{release.MARK}\n## [0.1.0] - 2026-11-30\n\nThe first release.\n"
READY = release.Checkout("c" * 40, "c" * 40, (), "0.1.0", frozenset({"v0.1.0"}), CHANGELOG, ENTRY)


def test_the_version_stands_in_one_place_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"preread {version}\n"
    assert re.findall(r"(?m)^version: (.*)$", (ROOT / "CITATION.cff").read_text()) == [version]
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
    source = [path for path in (ROOT / "src").rglob("*.py") if f'"{version}"' in path.read_text()]
    assert source == []


def test_what_is_in_changes_is_well_named_and_a_sentence() -> None:
    pytest.importorskip("towncrier", reason="needs towncrier: scripts/install dev")
    draft = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    told = subprocess.run(draft, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    for fragment in (ROOT / "changes").iterdir():
        assert fragment.name == "README.md" or SENTENCE.fullmatch(fragment.read_text()), f"{fragment}: write a sentence"


@pytest.mark.parametrize("name", ["31.news.md", "notes.txt"])
def test_a_change_of_a_wrong_name_is_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("towncrier", reason="needs towncrier: scripts/install dev")
    (tmp_path / "changes").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "changes" / name).write_text("Something can be done now.\n")
    draft = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    told = subprocess.run(draft, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode != 0 and name in told.stderr


def test_a_checkout_that_is_ready_is_released() -> None:
    assert release.problems("0.2.0", READY) == []
    assert release.problems("0.1.1rc1", READY) == []


@pytest.mark.parametrize(
    ("version", "changed", "said"),
    [
        ("0.2", {}, "0.2 is no version"),
        ("0.0.9", {}, "comes before 0.1.0"),
        ("0.1.0rc1", {}, "comes before 0.1.0"),
        ("0.1.0", {}, "there is a tag v0.1.0"),
        ("0.2.0", {"changed": ("README.md",)}, "not committed: README.md"),
        ("0.2.0", {"tested": ""}, "not tested"),
        ("0.2.0", {"tested": f"{'c' * 40}-dirty"}, "not tested"),
        ("0.2.0", {"entry": ""}, "nothing is new"),
    ],
)
def test_why_a_release_is_refused(version: str, changed: dict[str, Any], said: str) -> None:
    (problem,) = release.problems(version, replace(READY, **changed))
    assert said in problem


@given(st.tuples(*[st.integers(0, 99)] * 3), st.tuples(*[st.integers(0, 99)] * 3))
def test_versions_are_compared_by_number(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    orders = [release.order(".".join(map(str, version))) for version in (one, other)]
    assert (orders[0] < orders[1]) == (one < other)


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.3-rc1", "1.2.3rc", " 1.2.3", "1.2.3\n", "1.2.٣"]
)
def test_what_is_no_version_is_told(text: str) -> None:
    assert release.order(text) is None


def test_a_candidate_comes_before_its_version() -> None:
    versions = ["0.9.0", "0.10.0rc1", "0.10.0rc2", "0.10.0", "0.10.1rc1"]
    assert sorted(versions, key=release.order) == versions


def test_the_newest_release_stands_first_and_nothing_is_lost() -> None:
    written = release.changelog(CHANGELOG, "0.2.0", "2026-12-01", ENTRY)
    assert re.findall(r"## \[(.*)\]", written) == ["0.2.0", "0.1.0"]
    assert "- One. (#7)\n" in written and written.replace("\n" + ENTRY.strip() + "\n", "", 1) == CHANGELOG


def test_an_entry_written_before_its_release_is_dated_and_added_to() -> None:
    before = CHANGELOG.replace("2026-11-30", "Unreleased")
    assert release.changelog(before, "0.1.0", "2026-11-30", "") == CHANGELOG
    added = release.changelog(before, "0.1.0", "2026-11-30", "## [0.1.0] - 2026-11-30\n\n### Fixed\n\n- Two.\n")
    assert added.count("## [0.1.0]") == 1 and added.index("- Two.") < added.index("The first release.")


def test_a_password_in_the_repositorys_address_is_not_published() -> None:
    assert release.without_secrets("https://me:secret@forge.example/preread") == "https://forge.example/preread"
    assert release.without_secrets("git@forge.example:preread") == "git@forge.example:preread"


def test_who_checks_a_release_as_the_page_says_finds_it_right_or_changed(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: on Debian, apt-get install openssl")
    key, made = tmp_path / "key", tmp_path / "made"
    made.mkdir()
    (made / "preread-0.2.0.tar.gz").write_bytes(b"sdist")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", made / "release.pub"], check=True)
    release.attest([made / "preread-0.2.0.tar.gz"], {"_type": "a statement"}, key, made)
    signed = json.loads((made / "provenance.dsse.json").read_text())

    page = (ROOT / "docs/releasing.md").read_text().partition("## Checking it")[2]
    sums, signature = [block.text for block in markdown.code(page) if block.language == "sh"]
    checks = {check: ["sh", "-c", f"set -e\n{check}"] for check in (sums, signature)}
    for check in checks.values():
        assert subprocess.run(check, cwd=made, capture_output=True).returncode == 0
    (made / "preread-0.2.0.tar.gz").write_bytes(b"other")
    assert subprocess.run(checks[sums], cwd=made, capture_output=True).returncode != 0
    forged = b'{"_type": "another"}'
    (made / "provenance.json").write_bytes(forged)
    signed["payload"] = base64.standard_b64encode(forged).decode()
    (made / "provenance.dsse.json").write_text(json.dumps(signed))
    assert subprocess.run(checks[signature], cwd=made, capture_output=True).returncode != 0


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of this repository with one change that is to be released, tested."""
    pytest.importorskip("towncrier", reason="needs towncrier: scripts/install dev")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git, and a checkout")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "tester")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tester@localhost")
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--no-tags", ROOT, folder)
    (folder / "changes/31.added.md").write_text("`preread publish` takes EPUB.\n")
    git(folder, "add", "changes")
    git(folder, "commit", "--quiet", "-m", "EPUB")
    (folder / "build").mkdir()
    (folder / "build/tested").write_text(git(folder, "rev-parse", "HEAD"))
    return folder


def git(folder: Path, *arguments: str | Path) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, folder / "scripts/release", *arguments], cwd=folder, capture_output=True, text=True
    )


def test_without_make_it_only_says_what_it_would_do(clone: Path) -> None:
    shown = called(clone, "7.0.0")
    assert shown.returncode == 0 and "- `preread publish` takes EPUB. (#31)" in shown.stdout, shown.stderr
    (clone / "new").touch()
    refused = called(clone, "7.0.0", "--make")
    assert refused.returncode == 1 and "not committed: new" in refused.stderr
    assert git(clone, "tag") == "" and git(clone, "log", "-1", "--format=%s") == "EPUB\n"


@pytest.mark.long
def test_a_release_is_made(clone: Path) -> None:
    made = called(clone, "7.0.0", "--make")
    assert made.returncode == 0, made.stdout + made.stderr
    out = clone / "dist/7.0.0"
    sdist, *_ = names = sorted(file.name for file in out.iterdir() if file.name.startswith("preread"))
    wheel = next(name for name in names if name.endswith(".whl"))
    assert len(names) == 2 and "preread-7.0.0.tar.gz" in names and sdist
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=out, check=True)

    told = json.loads((out / "provenance.json").read_text())
    assert {subject["name"] for subject in told["subject"]} == set(names)
    (source,) = told["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": git(clone, "rev-parse", "v7.0.0^{commit}").strip()}
    assert told["predicate"]["buildDefinition"]["internalParameters"]["generator"].startswith("setuptools")

    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "show", "--stat", "--format=%s", "v7.0.0^{commit}").startswith("Release 7.0.0\n")
    assert "\n## [7.0.0] - " in (clone / "CHANGELOG.md").read_text()
    assert [path.name for path in (clone / "changes").iterdir()] == ["README.md"]

    place = clone.parent / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, out / wheel]
    subprocess.run(pip, check=True)
    version = [sys.executable, "-m", "preread.cli", "--version"]
    env = os.environ | {"PYTHONPATH": str(place)}
    assert subprocess.run(version, env=env, capture_output=True, text=True).stdout == "preread 7.0.0\n"
