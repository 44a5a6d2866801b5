"""Limits at and above a cgroup, read from directories that look like a hierarchy."""

from pathlib import Path

import pytest

from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy
from sharedfs.linux.memory_limits import MemoryLimits, Reading

V1_NONE = str((1 << 63) - 4096)


def v2(directory: Path, highest: str, high: str, current: int, stat: str = "") -> None:
    directory.mkdir(exist_ok=True)
    for name, text in {"max": highest, "high": high, "current": str(current), "stat": stat, "events": ""}.items():
        (directory / f"memory.{name}").write_text(text + "\n")


def v1(directory: Path, limit: str, usage: int, swap_limit: str, swap_usage: int, stat: str = "") -> None:
    directory.mkdir(exist_ok=True)
    for name, text in {
        "limit_in_bytes": limit,
        "usage_in_bytes": str(usage),
        "memsw.limit_in_bytes": swap_limit,
        "memsw.usage_in_bytes": str(swap_usage),
        "stat": stat,
    }.items():
        (directory / f"memory.{name}").write_text(text + "\n")


def test_every_level_and_both_limits_of_v2(tmp_path: Path) -> None:
    v2(tmp_path / "a", "900", "max", 500)
    v2(tmp_path / "a" / "b", "max", "700", 400, "inactive_file 100\nactive_file 50\nfile_dirty 20\nfile_writeback 5\n")
    limits = MemoryLimits(MemoryHierarchy(CgroupVersion.V2, tmp_path), "/a/b")
    assert limits.read(400) == [
        Reading("memory.high of /a/b", 700, 400, 125),
        Reading("memory.max of /a", 900, 500, 0),
    ]
    assert not limits.hides_some
    (tmp_path / "a" / "memory.max").write_text("max\n")
    assert [reading.name for reading in limits.read(0)] == ["memory.high of /a/b"], "read anew"
    limits.close()


def test_a_root_with_a_limit_is_not_the_hosts(tmp_path: Path) -> None:
    """As a container sees it, whose limit is on its root, in a cgroup namespace of its own."""
    v2(tmp_path, "800", "max", 100)
    v2(tmp_path / "a", "max", "max", 50)
    limits = MemoryLimits(MemoryHierarchy(CgroupVersion.V2, tmp_path), "/a")
    assert limits.hides_some
    assert limits.read(0) == [Reading("memory.max of /", 800, 100, 0)]
    limits.close()


@pytest.mark.parametrize("swap_is_accounted", [True, False])
def test_v1(tmp_path: Path, swap_is_accounted: bool) -> None:
    v1(tmp_path, V1_NONE, 0, V1_NONE, 0)
    (tmp_path / "release_agent").write_text("")
    v1(tmp_path / "a", "900", 500, "1000", 800, "total_inactive_file 30\ntotal_dirty 10\ninactive_file 7\n")
    if not swap_is_accounted:
        for file in tmp_path.glob("**/memory.memsw.*"):
            file.unlink()
    limits = MemoryLimits(MemoryHierarchy(CgroupVersion.V1, tmp_path), "/a")
    both = [
        Reading("memory.limit_in_bytes of /a", 900, 500, 20),
        Reading("memory.memsw.limit_in_bytes of /a", 1000, 800, 20),
    ]
    assert limits.read(1000) == both[: 1 + swap_is_accounted]
    assert not limits.hides_some
    limits.close()
