"""Model files of strangers are loaded for the first time in a child process: llama.cpp may abort on what one says.

Metadata that llama.cpp does not expect (no layers, an epsilon that is not a number) ends its process by an assertion,
in loading or in the first computation; other values may take all memory. The child does both under limits
(setrlimit(2)), and whatever happens to it is an error here. What has passed is remembered in the user's cache, by the
file's place, size and time and llama.cpp's version, so that it is tried once. The files of registered models are known
by their digests, and are not tried.
"""

import hashlib
import logging
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

import platformdirs

from preread.engine.download import is_registered
from preread.engine.registry import part_paths
from preread.errors import PrereadError, UsageError

_TEXT: Final = "Hello, world: 1 2 3\n<|x|> Grüße 你好"
_WINDOW_TOKENS: Final = 64
_CPU_S, _CPU_S_PER_GB = 30.0, 30.0
_WALL_S, _WALL_S_PER_GB = 120.0, 120.0
"""A disk that gives 10 MB a second is waited for."""
_MEMORY_BYTES: Final = 2 * 2**30
_log = logging.getLogger(__name__)


def check(path: Path) -> None:
    """Have a model file loaded, and a few tokens computed with it, in another process, unless that went well before.

    Raises:
        UsageError: llama.cpp cannot load it, or ends, or takes more than is sound.
    """
    if is_registered(path):
        return
    if _mark(path).exists():
        return
    _log.info("trying %s in a process of its own, once", path)
    size_gb = _size_bytes(path) / 1e9
    cpu_s = int(_CPU_S + _CPU_S_PER_GB * size_gb)
    command = [sys.executable, "-P", "-m", "preread.engine.trial", str(path.absolute()), str(cpu_s)]
    try:
        tried = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,
            timeout=_WALL_S + _WALL_S_PER_GB * size_gb,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{path} is no sound model file: loading it does not end; get it from elsewhere") from error
    if tried.returncode:
        raise UsageError(f"{path} is no sound model file: {_said(tried)}; get it from elsewhere")
    vouch(path)


def vouch(path: Path) -> None:
    """Remember that this file, as it is now, is sound: it has been tried, or was just written here."""
    with suppress(OSError):  # it is tried again then
        mark = _mark(path)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _said(tried: subprocess.CompletedProcess[bytes]) -> str:
    """Why a trial ended."""
    if tried.returncode == -signal.SIGXCPU:
        return "loading it takes too long"
    if tried.returncode < 0:
        return f"llama.cpp ends on it ({signal.Signals(-tried.returncode).name})"
    lines = tried.stdout.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "loading it takes too much memory, or fails"


def _mark(path: Path) -> Path:
    """An empty file that is there once this one, as it is now, has been found sound."""
    parts = [(part.resolve(), part.stat()) for part in part_paths(path)]
    seen = "".join(f"{real}\n{status.st_size}\n{status.st_mtime_ns}\n" for real, status in parts)
    what = f"{seen}{version('llama-cpp-python')}"
    return platformdirs.user_cache_path("preread") / "tried" / hashlib.sha256(os.fsencode(what)).hexdigest()


def _size_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in part_paths(path))


# The child


def _try(path: Path, cpu_s: int) -> None:
    from preread.engine.llamacpp import LlamaCpp

    memory_bytes = 2 * _size_bytes(path) + _MEMORY_BYTES
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        resource.setrlimit(limit, (most, most))
    engine = LlamaCpp.open(path, window_tokens=_WINDOW_TOKENS, threads=1, trusted=True)
    tokens = engine.tokenize(_TEXT)[: _WINDOW_TOKENS // 2]
    b"".join(engine.piece(int(token), special=True) for token in tokens)
    engine.session.prefill(tokens)
    engine.close()


if __name__ == "__main__":
    try:
        _try(Path(sys.argv[1]), int(sys.argv[2]))
    except PrereadError as error:
        print(error)
        sys.exit(1)
