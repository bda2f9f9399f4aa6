"""`preread bundle`: a folder with all that a machine without any network needs."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Final

import typer

from preread.cli import checkout, options
from preread.cli.terminal import say, size
from preread.engine.registry import DEFAULT
from preread.errors import UsageError

_MADE: Final = Path(sys.prefix) / ".engine"
"""What scripts/install says that it installed: the folder of llama-cpp-python's wheel, and its compiler."""

_INSTALL: Final = """\
#!/bin/sh
# Install preread from this folder alone: Python {python} with venv is needed, and nothing of a network.
set -eu
cd "$(dirname "$0")"
python3 -c 'import sys; sys.exit(sys.version_info[:2] != ({major}, {minor}) and "Python {python} is needed")'
python3 -m venv .venv
.venv/bin/python -m pip install -q --disable-pip-version-check --no-index --find-links wheels preread
echo "installed: ./preread demo, ./preread --help"
"""
_RUN: Final = """\
#!/bin/sh
# preread with the models of this folder.
here=$(cd "$(dirname "$0")" && pwd)
PREREAD_MODELS=${PREREAD_MODELS:-$here/models} exec "$here/.venv/bin/preread" "$@"
"""


def bundle(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="To be made.")],
    model: options.Model = DEFAULT,
    store: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A cloud's --store, whose contexts come along.")
    ] = None,
    release: Annotated[
        Path | None,
        typer.Option("--wheels", metavar="FOLDER", help="A release's wheels, to be used instead of what is here."),
    ] = None,
) -> None:
    """Make a folder from which preread is installed and runs where there is no network: for machines like this one.

    It holds wheels of preread and all its libraries, the model, and contexts if a store is named. preread and llama.cpp
    are those of this checkout, or of a release. On the other machine `./install`, then `./preread`.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: name a folder that is to be made")
    if store is not None and not store.is_dir():
        raise UsageError(f"{store} is no folder: --store names that of a cloud")
    own = _released(release) if release else checkout.root("a bundle without --wheels is made")
    engine, compiler = (release, None) if release else _engine()
    path = options.pulled(model)
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    say("building preread, and fetching its libraries")
    _pip("wheel", "--no-deps", "-w", str(wheels), str(own), compiler=compiler)
    with NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{one.name}=={one.version}\n" for one in distributions() if one.name != "preread")
        constraints.flush()
        found = ["--find-links", str(wheels), "--find-links", str(engine)]
        (built,) = wheels.glob("preread-*.whl")
        _pip("download", "--only-binary", ":all:", "-d", str(wheels), *found, "-c", constraints.name, str(built))
    (out / "models").mkdir()
    shutil.copy2(path, out / "models")
    if store is not None:
        shutil.copytree(store, out / "store")
    major, minor, _ = platform.python_version_tuple()
    _script(out / "install", _INSTALL.format(python=f"{major}.{minor}", major=major, minor=minor))
    _script(out / "preread", _RUN)
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {size(total)}. On a machine like this one, with Python {major}.{minor}: {out.name}/install")


def _engine() -> tuple[Path, str]:
    """The folder with the wheel of llama-cpp-python that is installed here, and the compiler of preread's own parts.

    Raises:
        UsageError: this is no environment that scripts/install made.
    """
    try:
        folder, _, compiler = _MADE.read_text().strip().partition(" ")
    except OSError as error:
        raise UsageError(f"{_MADE} is missing: run scripts/install in the checkout again") from error
    if not any(Path(folder).glob("llama_cpp_python-*.whl")):
        raise UsageError(f"the wheel of llama-cpp-python is not in {folder} any more: run scripts/install again")
    return Path(folder), compiler


def _released(folder: Path) -> Path:
    """preread's wheel for this kind of machine, of a release's.

    Raises:
        UsageError: there is not just one, or none of llama-cpp-python beside it.
    """
    machine = platform.machine()
    found, engines = (list(folder.glob(f"{name}-*_{machine}.whl")) for name in ("preread", "llama_cpp_python"))
    if len(found) != 1 or not engines:
        raise UsageError(f"{folder} has no wheels of one release for {machine}: preread-… and llama_cpp_python-…")
    return found[0]


def _pip(*arguments: str, compiler: str | None = None) -> None:
    """Run pip; what it complains of is its own.

    Raises:
        UsageError: it failed.
    """
    chosen = {"CC": compiler, "LDSHARED": f"{compiler} -shared", "CFLAGS": "-g0"} if compiler else {}
    command = [sys.executable, "-m", "pip", arguments[0], "-q", "--disable-pip-version-check", *arguments[1:]]
    if subprocess.run(command, env=os.environ | chosen).returncode:
        raise UsageError(f"pip {arguments[0]} failed: see above")


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
