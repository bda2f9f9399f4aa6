"""The machine that this process runs on, as far as it matters to inference."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from preread.engine.info import system_info
from preread.engine.model import engine_version

_CPUINFO: Final = Path("/proc/cpuinfo")
_TELLING: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
"""Instruction sets that change how fast a quantised model is read."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What computes here.

    Attributes:
        cpu: model of the processor.
        cores: how many this process may use.
        features: instruction sets that matter, as the kernel names them; empty where it does not say.
        memory_bytes: physical memory; None where it is not known.
        python, preread, engine: versions.
        engine_features: what llama.cpp was built with and found here.
    """

    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int | None
    python: str
    preread: str
    engine: str
    engine_features: tuple[str, ...]


def machine() -> Machine:
    """Look at this machine."""
    told = _cpuinfo()
    present = set((told.get("flags") or told.get("Features") or "").split())
    return Machine(
        cpu=told.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        features=tuple(name for name in _TELLING if name in present),
        memory_bytes=_memory_bytes(),
        python=platform.python_version(),
        preread=version("preread"),
        engine=engine_version(),
        engine_features=system_info(),
    )


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; empty elsewhere."""
    try:
        first, _, _ = _CPUINFO.read_text().partition("\n\n")
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
