"""scripts/wheels and what it shares with scripts/prebuilt. `make wheels` builds all, and installs them elsewhere."""

import base64
import ctypes
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import engine_wheel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread import compiled

ROOT = Path(__file__).parents[2]
MACHINE = platform.machine()


def loaded() -> Any:
    """The script as a module."""
    loader = SourceFileLoader("wheels", str(ROOT / "scripts/wheels"))
    spec = spec_from_loader("wheels", loader)
    assert spec is not None
    module = module_from_spec(spec)
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = wrote
    return module


wheels = loaded()


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    """What llama-cpp-python's sdist is like."""
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 1.2.3\n\nVersion: 1.2.3\n",
        "LICENSE.md": "theirs",
        "llama_cpp/__init__.py": "from .llama_cpp import *\n",
        "llama_cpp/llama_cpp.py": "",
        "llama_cpp/py.typed": "",
        "llama_cpp/server/app.py": "",
        "vendor/llama.cpp/LICENSE": "llama.cpp's",
        "vendor/llama.cpp/src/llama.cpp": "",
        "docker/Dockerfile": "",
    }
    path = tmp_path / "llama_cpp_python-1.2.3.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-1.2.3/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def part(wheel: Path) -> Path:
    """A wheel with one compiled part, for this machine."""
    library = Path(compiled.library("preread.engine._gate")._name)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, "a/part.abi3.so")
    return wheel


def test_the_version_that_was_tried_is_the_one_that_preread_names() -> None:
    assert engine_wheel.wanted() in engine_wheel.SOURCES


def test_a_wheel_is_what_pip_installs_and_lists_each_file_with_its_digest(tmp_path: Path) -> None:
    files = {"thing/__init__.py": b"answer = 42\n", "thing/data": bytes(1000)}
    info = engine_wheel.information("1.0+preread.1")
    files[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 1.0+preread.1\n"
    wheel = tmp_path / "llama_cpp_python-1.0+preread.1-py3-none-any.whl"
    engine_wheel.write(wheel, "1.0+preread.1", files)
    first = wheel.read_bytes()
    engine_wheel.write(wheel, "1.0+preread.1", dict(reversed(files.items())))
    assert wheel.read_bytes() == first, "the same files come to the same bytes"
    with zipfile.ZipFile(wheel) as archive:
        assert "Tag: py3-none-any\n" in archive.read(f"{info}/WHEEL").decode()
        rows = [row.split(",") for row in archive.read(f"{info}/RECORD").decode().splitlines()]
        assert sorted(name for name, *_ in rows) == sorted(archive.namelist())
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            told = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
            assert told == hashlib.sha256(data).digest() and int(size) == len(data)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(tmp_path / "to")]
    subprocess.run([*pip, f"--find-links={tmp_path}", "llama-cpp-python==1.0"], check=True)
    assert (tmp_path / "to/thing/__init__.py").exists(), "a local version meets the one that it is of"


def test_of_the_sources_come_bindings_metadata_and_both_licences(sdist: Path) -> None:
    info = "llama_cpp_python-1.2.3.dist-info"
    assert {name for name, _ in engine_wheel.bindings(sdist, "1.2.3")} == {
        "llama_cpp/__init__.py", "llama_cpp/llama_cpp.py", "llama_cpp/py.typed", f"{info}/METADATA",
        f"{info}/licenses/LICENSE.md", f"{info}/licenses/LICENSE.llama.cpp",
    }  # fmt: skip


def test_sources_of_llama_cpp_are_unpacked_without_the_rest(sdist: Path, tmp_path: Path) -> None:
    source = engine_wheel.llama(sdist, "1.2.3", tmp_path / "new")
    assert (source / "src/llama.cpp").exists() and not (tmp_path / "new/llama_cpp_python-1.2.3/docker").exists()


def test_our_wheel_says_whose_version_it_is_loads_the_best_part_and_carries_licences(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copyright").write_text("gcc's")
    (tmp_path / "libllama.so").write_bytes(b"ELF")
    monkeypatch.setattr(wheels, "license_of_gcc", lambda machine: tmp_path / "copyright")
    files = wheels.contents(sdist, "1.2.3", [tmp_path / "libllama.so"], MACHINE)
    info = "llama_cpp_python-1.2.3+preread.1.dist-info"
    assert files["llama_cpp/__init__.py"] == b"from . import _backends\nfrom .llama_cpp import *\n"
    assert files["llama_cpp/lib/libllama.so"] == b"ELF" and b"load_all" in files["llama_cpp/_backends.py"]
    head, _, text = files[f"{info}/METADATA"].partition(b"\n\n")
    assert head.endswith(b"\nVersion: 1.2.3+preread.1") and text == b"Version: 1.2.3\n"
    assert {name for name in files if "licenses" in name} == {
        f"{info}/licenses/LICENSE{end}" for end in (".md", ".llama.cpp", ".gcc")
    }


def test_only_the_kinds_of_processor_that_are_named_are_compiled() -> None:
    lists = "function(ggml_add_cpu_backend_variant tag_name)\n" + "".join(
        f"        ggml_add_cpu_backend_variant({kind})\n"
        for kind in ("x64", "haswell            SSE42 AVX", "armv8.2_1 DOTPROD")
    )
    assert wheels.only(lists, ["haswell"]).splitlines() == [lists.splitlines()[0], lists.splitlines()[2]]
    assert wheels.only(lists, ["x64", "haswell", "armv8.2_1"]) == lists


@given(st.lists(st.tuples(st.integers(2, 3), st.integers(0, 99)), max_size=5))
def test_what_a_library_needs_is_the_newest_that_it_names(versions: list[tuple[int, int]]) -> None:
    told = "".join(f"  0x0030:   Name: GLIBC_{a}.{b}  Flags: none  Version: 7\n" for a, b in versions)
    assert wheels.needs(f"{told}  Name: CXXABI_9.9\n  Name: GLIBC_PRIVATE\n") == max(versions, default=(0,))


def test_a_part_that_its_tag_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf: binutils")
    wheel = part(tmp_path / "a.whl")
    wheels.check_parts(wheel, MACHINE)
    with pytest.raises(SystemExit, match="is not for riscv64"):
        wheels.check_parts(wheel, "riscv64")
    monkeypatch.setattr(wheels, "GLIBC", (2, 1))
    with pytest.raises(SystemExit, match=r"needs glibc 2\.\d+, and the tag is manylinux_2_1_"):
        wheels.check_parts(wheel, MACHINE)
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    with pytest.raises(SystemExit, match="no compiled part"):
        wheels.check_parts(tmp_path / "empty.whl", MACHINE)


def test_a_compiler_that_is_missing_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        SystemExit, match=r"aarch64-linux-gnu-gcc.*; on Debian, apt-get install .*gcc-aarch64-linux-gnu"
    ):
        wheels.check_tools("aarch64")


@pytest.mark.parametrize(("arguments", "told"), [((), "name the folder"), ((".", "mips"), "mips is not known")])
def test_what_cannot_be_tried_is_refused(arguments: tuple[str, ...], told: str) -> None:
    tried = subprocess.run([ROOT / "scripts/try_wheels", *arguments], capture_output=True, text=True)
    assert tried.returncode == 1 and told in tried.stderr


@pytest.mark.long
def test_one_wheel_of_preread_serves_every_version_of_python(tmp_path: Path) -> None:
    if shutil.which(wheels.compiler(MACHINE, "gcc")) is None:
        pytest.skip(f"needs {wheels.compiler(MACHINE, 'gcc')}")
    made = wheels.preread(MACHINE, ROOT, tmp_path)
    assert made.name.endswith(f"-cp311-abi3-manylinux_2_34_{MACHINE}.whl")
    with zipfile.ZipFile(made) as archive:
        parts = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path, parts)
    assert len(parts) == 4 and all(name.endswith(".abi3.so") for name in parts)
    for name in parts:
        ctypes.CDLL(str(tmp_path / name))
