"""What a container allows is what is used: processors and memory as control groups say, in both versions."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread import limits
from preread.edge.machine import kv_memory_bytes, machine, offload_bytes

GIB = 2**30


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 processors and 64 GiB; control groups are in its folder `cgroup`, membership in `self`."""
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "_MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 16 * 2**20, "SC_PAGE_SIZE": 4096}.__getitem__)
    return tmp_path


def lay(box: Path, membership: str, **files: str) -> tuple[int, int | None]:
    """Write files by path, and tell what may be used."""
    (box / "self").write_text(membership)
    for path, text in files.items():
        (box / "cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (box / "cgroup" / path).write_text(text)
    return limits.cpus(), limits.memory_bytes()


def test_without_groups_the_machine_is_the_limit(box: Path) -> None:
    assert (limits.cpus(), limits.memory_bytes()) == (8, 64 * GIB)
    assert lay(box, "0::/\n", **{"cpu.max": "max 100000\n", "memory.max": "max\n"}) == (8, 64 * GIB)


@pytest.mark.parametrize(("quota", "expected"), [("200000", 2), ("150000", 2), ("50000", 1), ("900000", 8)])
def test_a_container_of_version_2(box: Path, quota: str, expected: int) -> None:
    files = {"cpu.max": f"{quota} 100000\n", "memory.max": f"{GIB}\n"}
    assert lay(box, "0::/\n", **files) == (expected, GIB)


def test_the_tightest_of_nested_groups_counts(box: Path) -> None:
    files = {
        "a/cpu.max": "100000 100000",
        "a/b/cpu.max": "400000 100000",
        "a/b/memory.max": f"{GIB}",
        "a/memory.max": "max",
        "c/cpu.max": "1000 100000",
    }
    assert lay(box, "0::/a/b\n", **files) == (1, GIB)


@pytest.mark.parametrize("path", ["/docker/0123", "/"])
def test_a_container_of_version_1(box: Path, path: str) -> None:
    """Docker mounts the container's own group as the root, and tells the host's path."""
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
    }
    assert lay(box, f"4:memory:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}\n", **files) == (3, 2 * GIB)
    files |= {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert lay(box, "4:memory:/\n3:cpu,cpuacct:/\n", **files) == (8, 64 * GIB)


@given(st.text(), st.text())
def test_whatever_the_files_say_is_a_sound_limit_or_none(one: str, other: str) -> None:
    for quota in (limits.parse_cpu_max(one), limits.parse_cpu_max(f"{one} {other}"), limits.parse_cfs(one, other)):
        assert quota is None or quota > 0
    memory = limits.parse_memory(one)
    assert memory is None or memory > 0
    for _, path in limits.parse_membership(f"0::{one}\n4:cpu:{other}", "cpu"):
        assert path.is_absolute() and ".." not in path.parts


def test_the_machine_is_described_by_what_may_be_used(box: Path) -> None:
    lay(box, "0::/\n", **{"cpu.max": "200000 100000", "memory.max": f"{GIB}"})
    told = machine()
    assert (told.cores, told.memory_bytes) == (2, GIB)


def test_the_cache_of_a_toy_has_no_more_cells_than_anybody_needs() -> None:
    assert kv_memory_bytes(None, None, None) == kv_memory_bytes(64 * GIB, None, 12_288) == GIB // 2
    assert kv_memory_bytes(GIB, None, 12_288) == GIB // 8
    assert kv_memory_bytes(64 * GIB, None, 1024) == 65_536 * 1024
    assert kv_memory_bytes(64 * GIB, None, 0) == GIB // 2, "states only: tokens take nothing"
    assert kv_memory_bytes(64 * GIB, GIB, 1024) == GIB, "what was chosen"


def test_contexts_that_are_not_in_use_get_a_quarter_of_a_small_box() -> None:
    assert offload_bytes(None, None) == offload_bytes(64 * GIB, None) == GIB
    assert offload_bytes(2 * GIB, None) == GIB // 2
    assert offload_bytes(2 * GIB, 0) == 0 and offload_bytes(GIB, 3 * GIB) == 3 * GIB
