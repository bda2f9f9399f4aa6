"""A bundle is refused where it could not be whole; `scripts/try_prebuilt demo` makes one and installs it offline."""

import platform
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


def test_a_release_has_one_wheel_of_preread_for_this_machine_and_one_of_llama_cpp(tmp_path: Path) -> None:
    machine = platform.machine()
    for name in (f"preread-0.1.0-cp311-abi3-manylinux_2_34_{machine}.whl", "preread-0.1.0-cp311-abi3-other.whl"):
        with pytest.raises(UsageError, match="no wheels of one release"):
            bundle._released(tmp_path)
        (tmp_path / name).touch()
    (tmp_path / f"llama_cpp_python-0.3.36+preread.1-py3-none-manylinux_2_34_{machine}.whl").touch()
    assert bundle._released(tmp_path).name == f"preread-0.1.0-cp311-abi3-manylinux_2_34_{machine}.whl"
    (tmp_path / f"preread-0.2.0-cp311-abi3-manylinux_2_34_{machine}.whl").touch()
    with pytest.raises(UsageError, match="no wheels of one release"):
        bundle._released(tmp_path)


def test_pip_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pip download failed"):
        bundle._pip("download", "--no-index", "-d", str(tmp_path), "no-such-package-anywhere")
