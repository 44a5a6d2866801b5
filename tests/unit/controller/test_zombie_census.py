"""The census on directories that look like cgroupfs: what is nobody's of those alive is the dying ones'."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from controller.zombies.census import Census, Held, take_census
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy

MIB = 1 << 20


def lines(values: Mapping[str, int]) -> str:
    return "".join(f"{key} {value}\n" for key, value in values.items())


def make_v1(directory: Path, *, own: Mapping[str, int], total: Mapping[str, int]) -> None:
    directory.mkdir(exist_ok=True)
    kinds = {"cache": 0, "shmem": 0, "swap": 0}
    (directory / "memory.stat").write_text(
        lines({**kinds, **own, **{f"total_{key}": value for key, value in {**kinds, **total}.items()}})
    )


def make_v2(directory: Path, *, dying: int, swap: int | None = 0, hands_down: bool = True, **stat: int) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "memory.stat").write_text(lines({"file": 0, "shmem": 0, **stat}))
    (directory / "cgroup.stat").write_text(lines({"nr_descendants": 9, "nr_dying_descendants": dying}))
    (directory / "cgroup.subtree_control").write_text("memory pids\n" if hands_down else "")
    if swap is not None:
        (directory / "memory.swap.current").write_text(f"{swap}\n")


def v1_census(root: Path, counted: int) -> Census:
    proc_cgroups = root.with_name("proc-cgroups")
    proc_cgroups.write_text(f"#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t{counted}\t1\n")
    return take_census(MemoryHierarchy(CgroupVersion.V1, root), proc_cgroups)


def find(census: Census, path: str) -> Held | None:
    return next((held for held in census.held if held.path == path), None)


def test_v1_counts_what_is_neither_its_own_nor_a_living_childs(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    make_v1(root, own={"cache": 50 * MIB}, total={"cache": 80 * MIB, "shmem": 20 * MIB, "swap": 3 * MIB})
    make_v1(
        root / "jobs",
        own={"cache": 2 * MIB, "shmem": MIB},
        total={"cache": 30 * MIB, "shmem": 20 * MIB, "swap": 3 * MIB},
    )
    alive = {"cache": 5 * MIB, "shmem": 4 * MIB, "swap": MIB}
    make_v1(root / "jobs" / "live", own=alive, total=alive)
    census = v1_census(root, counted=10)
    assert census.dying == 10 - 3
    assert census.least_kernel_bytes >= 7 * (2424 + 1920)
    assert [held.path for held in census.held] == ["/jobs"]
    jobs = find(census, "/jobs")
    assert jobs is not None
    assert (jobs.shmem_bytes, jobs.page_cache_bytes, jobs.swap_bytes) == (15 * MIB, 8 * MIB, 2 * MIB)
    assert (jobs.dying, jobs.exact, jobs.pure) == (None, True, False)  # a shared page there may be its own
    assert census.paths[(root / "jobs" / "live").stat().st_ino] == "/jobs/live"


def test_v2_knows_their_number_and_leaves_out_what_a_cgroup_with_processes_may_have_itself(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    make_v2(root, dying=7, swap=None, file=90 * MIB, shmem=40 * MIB)
    make_v2(root / "jobs", dying=4, swap=2 * MIB, file=30 * MIB, shmem=20 * MIB)
    make_v2(root / "jobs" / "live", dying=0, hands_down=False, file=6 * MIB, shmem=6 * MIB)
    make_v2(root / "pod", dying=2, hands_down=False, shmem=5 * MIB, file=5 * MIB)
    census = take_census(MemoryHierarchy(CgroupVersion.V2, root))
    assert census.dying == 7
    told = {
        held.path: (held.dying, held.shmem_bytes, held.page_cache_bytes, held.swap_bytes, held.exact, held.pure)
        for held in census.held
    }
    assert told == {
        "/": (1, 15 * MIB, 40 * MIB, 0, False, False),
        "/jobs": (4, 14 * MIB, 10 * MIB, 2 * MIB, True, True),
        "/pod": (2, 5 * MIB, 0, 0, False, False),
    }


def test_a_host_without_dying_cgroups_has_nothing_held(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    make_v2(root, dying=0, swap=None, file=90 * MIB, shmem=40 * MIB)
    make_v2(root / "live", dying=0, hands_down=False, file=30 * MIB, shmem=20 * MIB)
    census = take_census(MemoryHierarchy(CgroupVersion.V2, root))
    assert (census.dying, census.held, census.least_kernel_bytes) == (0, (), 0)


def test_a_host_without_a_memory_controller_is_told_by_the_file(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    make_v1(root, own={}, total={})
    (tmp_path / "proc-cgroups").write_text("#subsys_name\thierarchy\tnum_cgroups\tenabled\n")
    with pytest.raises(HostFault, match=r"proc-cgroups has no line for memory"):
        take_census(MemoryHierarchy(CgroupVersion.V1, root), tmp_path / "proc-cgroups")
