"""How many processors and how much memory this process may use: what the kernel has, or less where a container says so.

Containers are limited by control groups, which do not hide processors or memory but take time away, or kill. A group's
limits bind all below it (cgroups(7); version 2: cpu.max and memory.max, version 1: cpu.cfs_quota_us,
cpu.cfs_period_us and memory.limit_in_bytes). Where there is no Linux, nothing is limited.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_NO_MEMORY_LIMIT: Final = 1 << 60
"""Version 1 writes a limit that is none as the largest number of pages."""


def cpus() -> int:
    """How many threads may compute at once: at least one. Part of a processor counts as one, as in Go and Java."""
    available = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _folders("cpu") if (quota := _cpu_quota(folder)) is not None]
    return min([available, *(max(1, math.ceil(quota)) for quota in quotas)])


def memory_bytes() -> int | None:
    """How much memory this process may fill; None where that is not known."""
    limits = [limit for folder in _folders("memory") if (limit := _memory_limit(folder)) is not None]
    try:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        pass
    return min(limits, default=None)


def parse_cpu_max(text: str) -> float | None:
    """Processors' worth of time in version 2's `QUOTA PERIOD`; None for `max` and for what is no such text."""
    return _ratio(*text.split()) if len(text.split()) == 2 else None


def parse_cfs(quota: str, period: str) -> float | None:
    """The same in version 1's two files; a quota of -1 is none."""
    return _ratio(quota.strip(), period.strip())


def parse_memory(text: str) -> int | None:
    """Bytes; None for `max`, for a number that is none, and for what is no number."""
    word = text.strip()
    limit = int(word) if word.isascii() and word.isdecimal() else 0
    return limit if 0 < limit < _NO_MEMORY_LIMIT else None


def parse_membership(text: str, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """(name of a hierarchy, group in it) for each that may limit `controller`; version 2's has the name "".

    Lines are `ID:CONTROLLER,…:/PATH`.
    """
    for line in text.splitlines():
        id, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        plain = colon and path.startswith("/") and ".." not in path.split("/")
        if plain and ((id == "0" and not controllers) or controller in controllers.split(",")):
            yield controllers, PurePosixPath(path)


def _folders(controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, up to the root. Some may not be there.

    In a container the membership may be told as the host sees it, while the container's own group is the root here.
    """
    try:
        membership = _MEMBERSHIP.read_text()
    except (OSError, ValueError):
        return
    for hierarchy, group in parse_membership(membership, controller):
        for root in dict.fromkeys((_GROUPS / hierarchy, _GROUPS / controller if hierarchy else _GROUPS / "unified")):
            yield from (root / above.relative_to("/") for above in (group, *group.parents))


def _cpu_quota(folder: Path) -> float | None:
    both = _texts(folder, ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return parse_cfs(*both) if len(both) == 2 else next(map(parse_cpu_max, _texts(folder, ("cpu.max",))), None)


def _memory_limit(folder: Path) -> int | None:
    found = [parse_memory(text) for text in _texts(folder, ("memory.max", "memory.limit_in_bytes"))]
    return min((limit for limit in found if limit is not None), default=None)


def _texts(folder: Path, names: Iterable[str]) -> list[str]:
    texts = []
    for name in names:
        try:
            texts.append((folder / name).read_text())
        except (OSError, ValueError):
            continue
    return texts


def _ratio(quota: str, period: str) -> float | None:
    numbers = [int(word) for word in (quota, period) if word.isascii() and word.isdecimal()]
    return numbers[0] / numbers[1] if len(numbers) == 2 and all(numbers) else None
