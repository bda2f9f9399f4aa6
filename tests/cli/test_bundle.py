"""A bundle is refused where it could not be whole; `scripts/try_prebuilt demo` makes one and installs it offline."""

from pathlib import Path
from typing import Any

import pytest

from preread.cli import bundle, checkout
from preread.errors import UsageError

Run = Any


def test_a_folder_that_is_there_is_not_written_into(preread: Run, tmp_path: Path) -> None:
    refused = preread("bundle", str(tmp_path))
    assert refused.code == 1 and "is there already" in refused.err and not any(tmp_path.iterdir())


def test_contexts_that_are_not_there_are_told_before_anything_is_made(preread: Run, tmp_path: Path) -> None:
    refused = preread("bundle", str(tmp_path / "new"), "--store", str(tmp_path / "none"))
    assert refused.code == 1 and "is no folder" in refused.err and not (tmp_path / "new").exists()


def test_only_a_checkout_can_be_bundled(preread: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "_ROOT", tmp_path)
    refused = preread("bundle", str(tmp_path / "new"))
    assert refused.code == 1 and "in a checkout" in refused.err and not (tmp_path / "new").exists()


def test_the_engine_that_is_installed_has_to_be_there_as_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / ".engine"
    monkeypatch.setattr(bundle, "_MADE", made)
    with pytest.raises(UsageError, match="run scripts/install"):
        bundle._engine()
    made.write_text(f"{tmp_path / 'wheels'} zig cc\n")
    with pytest.raises(UsageError, match="wheels any more"):
        bundle._engine()
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/llama_cpp_python-0.0.0-py3-none-any.whl").touch()
    assert bundle._engine() == (tmp_path / "wheels", "zig cc")


def test_pip_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pip download failed"):
        bundle._pip("download", "--no-index", "-d", str(tmp_path), "no-such-package-anywhere")
