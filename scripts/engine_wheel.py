"""What the two scripts that make wheels of llama-cpp-python share: its sources, its bindings, the format of a wheel."""

import base64
import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""SHA-256 of the sdist of each version of llama-cpp-python that was tried."""

_LLAMA: Final = "vendor/llama.cpp/"
_BINDINGS: Final = re.compile(r"llama_cpp/\w+\.py|llama_cpp/py\.typed")
_LICENSES: Final = {"LICENSE.md": "LICENSE.md", f"{_LLAMA}LICENSE": "LICENSE.llama.cpp"}


def wanted() -> str:
    """The version of llama-cpp-python that pyproject.toml names."""
    found = re.search(r'(?m)^ *"llama-cpp-python==([0-9.]+)",$', (ROOT / "pyproject.toml").read_text())
    assert found is not None, "pyproject.toml names no version of llama-cpp-python"
    return found[1]


def fetched(package: str, only: str, digest: str, folder: Path) -> Path:
    """A package's file from the index, of this digest. `only`: pip's option for the kind of file."""
    name = package.partition("=")[0]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, only, name, "-d", str(folder), package], check=True)
    (path,) = folder.iterdir()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        sys.exit(f"{path.name} is not the file that was tried: its SHA-256 is {found}")
    return path


def bindings(sources: Path, version: str) -> Iterator[tuple[str, bytes]]:
    """What of an sdist belongs into any wheel: the bindings' modules, by their places, metadata, and both licences."""
    root, info = f"llama_cpp_python-{version}/", information(version)
    with tarfile.open(sources) as archive:
        for member in archive:
            inside = member.name.removeprefix(root)
            data = archive.extractfile(member) if member.isfile() else None
            if data is None:
                continue
            if _BINDINGS.fullmatch(inside):
                yield inside, data.read()
            elif inside == "PKG-INFO":
                yield f"{info}/METADATA", data.read()
            elif inside in _LICENSES:
                yield f"{info}/licenses/{_LICENSES[inside]}", data.read()


def llama(sources: Path, version: str, folder: Path) -> Path:
    """Unpack the sources of llama.cpp that come with the bindings."""
    root = f"llama_cpp_python-{version}/"
    with tarfile.open(sources) as archive:
        members = [member for member in archive if member.name.startswith(root + _LLAMA)]
        archive.extractall(folder, members)  # a file of a digest that is known
    return folder / root / _LLAMA


def information(version: str) -> str:
    """The folder of a wheel that says what it is."""
    return f"llama_cpp_python-{version}.dist-info"


def write(wheel: Path, version: str, files: Mapping[str, bytes], level: int = 9) -> None:
    """A wheel (PEP 427) of these files, with the tag that its name ends in, and the same bytes for the same files.

    `level`: of zlib, 1 (quick) to 9 (small).
    """
    info = information(version)
    tag = wheel.stem.partition(f"{version}-")[2]
    head = f"Wheel-Version: 1.0\nGenerator: preread\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    part, rows = wheel.with_name(f"{wheel.name}.part"), []
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted((dict(files) | {f"{info}/WHEEL": head}).items()):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}\n")
            archive.writestr(_entry(name), data, compresslevel=level)
        archive.writestr(_entry(f"{info}/RECORD"), "".join([*rows, f"{info}/RECORD,,\n"]))
    part.rename(wheel)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980: the same bytes whenever it is made
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry
