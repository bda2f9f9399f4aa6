"""The machine that this process runs on, as far as it matters to inference."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from preread import limits
from preread.engine.info import prebuilt, system_info
from preread.engine.model import engine_version

_CPUINFO: Final = Path("/proc/cpuinfo")
_TELLING: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
"""Instruction sets that change how fast a quantised model is read."""

_NAMED: Final = {
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
    "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
"""What llama.cpp calls those of them that a native build uses."""


_MOST_OFFLOAD_BYTES: Final = 1 << 30


_MOST_KV_BYTES: Final = 1 << 29


_MOST_TOKENS: Final = 1 << 16


def kv_memory_bytes(memory_bytes: int | None, chosen_bytes: int | None, token_bytes: int | None) -> int:
    """Memory for the engine's KV cache: what was chosen, else an eighth of all, and at most 512 MiB.

    Nor is it more than 65,536 tokens take, where `token_bytes` is known: of a toy these were hundreds of thousands of
    cells, which are cleared at the start and looked through at each step.
    """
    if chosen_bytes is not None:
        return chosen_bytes
    most_bytes = _MOST_KV_BYTES if not token_bytes else min(_MOST_KV_BYTES, _MOST_TOKENS * token_bytes)
    return most_bytes if memory_bytes is None else min(most_bytes, memory_bytes // 8)


def offload_bytes(memory_bytes: int | None, chosen_bytes: int | None) -> int:
    """Memory for the KV of contexts that are not in use: what was chosen, else a quarter of all, and at most 1 GiB."""
    if chosen_bytes is not None:
        return chosen_bytes
    return _MOST_OFFLOAD_BYTES if memory_bytes is None else min(_MOST_OFFLOAD_BYTES, memory_bytes // 4)


@dataclass(frozen=True, slots=True)
class Machine:
    """What computes here.

    Attributes:
        cpu: model of the processor.
        cores: how many this process may use.
        features: instruction sets that matter, as the kernel names them; empty where it does not say.
        memory_bytes: physical memory, or what a container leaves of it; None where it is not known.
        python, preread, engine: versions.
        engine_features: what llama.cpp was built with and found here.
        prebuilt: whether it came compiled, for processors of any kind.
    """

    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int | None
    python: str
    preread: str
    engine: str
    engine_features: tuple[str, ...]
    prebuilt: bool = False

    @property
    def unused(self) -> tuple[str, ...]:
        """Instruction sets that this processor has, and that this llama.cpp was not built with."""
        return tuple(name for name in self.features if name in _NAMED and _NAMED[name] not in self.engine_features)


def machine() -> Machine:
    """Look at this machine."""
    told = _cpuinfo()
    present = set((told.get("flags") or told.get("Features") or "").split())
    return Machine(
        cpu=told.get("model name") or platform.processor() or platform.machine(),
        cores=limits.cpus(),
        features=tuple(name for name in _TELLING if name in present),
        memory_bytes=limits.memory_bytes(),
        python=platform.python_version(),
        preread=version("preread"),
        engine=engine_version(),
        engine_features=system_info(),
        prebuilt=prebuilt(),
    )


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; empty elsewhere."""
    try:
        first, _, _ = _CPUINFO.read_text().partition("\n\n")
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
