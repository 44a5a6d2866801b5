"""How many cgroups are dying, and what is still charged to them, by the live cgroup that they were in.

The kernel names no dying cgroup. But a live cgroup's statistics count those of all below it, removed ones too. What is
neither its own nor its live children's is therefore held by dying cgroups that were below it:

    held(X) = total(X) - own(X) - sum of total(child)

v1 tells `own` (the lines of memory.stat without total_). v2 does not; there a cgroup that hands the memory controller
down has no processes, so its own is 0, and for the others (and the root) `held` is a bound only: `exact` says which.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst (5.2), cgroup-v2.rst (memory.stat, cgroup.stat).
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sharedfs.errors import HostFault
from sharedfs.kernel.cgroups import CgroupVersion, MemoryHierarchy, readable

# A cgroup's statistics for each CPU, and more for each memory node: 2,424 and 1,920 bytes in Linux 6.x. There is more
# to a cgroup, so this is the least that a dying one costs.
_PER_CPU_BYTES, _PER_CPU_AND_NODE_BYTES = 2424, 1920


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes charged to dying cgroups below `path`. `dying` counts them; None where the kernel does not tell (v1).

    `pure` says that the live cgroup itself is charged for no shared memory: a page that counts for `path` is then
    surely a dying cgroup's. `exact` says that the bytes are not a bound.
    """

    path: str
    inode: int
    dying: int | None
    shmem_bytes: int
    page_cache_bytes: int
    swap_bytes: int
    exact: bool
    pure: bool

    @property
    def anything(self) -> bool:
        return bool(self.dying or self.shmem_bytes or self.page_cache_bytes or self.swap_bytes)


@dataclass(frozen=True, slots=True)
class Census:
    """The whole host's. `paths` has every live cgroup by its directory's inode number."""

    dying: int
    held: tuple[Held, ...]
    paths: Mapping[int, str]

    @property
    def least_kernel_bytes(self) -> int:
        """What the dying cgroups take of kernel memory at least, whatever is charged to them."""
        nodes = max(1, sum(1 for _ in Path("/sys/devices/system/node").glob("node[0-9]*")))
        cpus = os.cpu_count() or 1
        return self.dying * cpus * (_PER_CPU_BYTES + nodes * _PER_CPU_AND_NODE_BYTES)


@dataclass(frozen=True, slots=True)
class _Usage:
    """One cgroup's statistics: `total` with all below it, `own` without, None where the kernel does not tell."""

    inode: int
    dying: int | None
    total: tuple[int, int, int]  # shmem, other page cache, swap
    own: tuple[int, int, int] | None
    hands_down: bool


def take_census(hierarchy: MemoryHierarchy, proc_cgroups: Path = Path("/proc/cgroups")) -> Census:
    """Two readings, of which the smaller counts: tenants go on meanwhile, and what moves is no zombie's."""
    first, second = _usages(hierarchy), _usages(hierarchy)
    held = [
        smaller for path, usage in first.items() if path in second for smaller in [_least(path, first, second, usage)]
    ]
    if hierarchy.version is CgroupVersion.V2:
        dying = second["/"].dying or 0
    else:
        dying = max(0, _counted(proc_cgroups) - len(second))
    return Census(
        dying, tuple(one for one in held if one.anything), {usage.inode: path for path, usage in second.items()}
    )


def _least(path: str, first: Mapping[str, _Usage], second: Mapping[str, _Usage], usage: _Usage) -> Held:
    shmem, cache, swap = map(min, _unaccounted(path, first), _unaccounted(path, second))
    dying = usage.dying
    if dying is not None:
        dying -= sum(first[child].dying or 0 for child in _children(path, first))
    exact = usage.own is not None or (usage.hands_down and path != "/")
    if not exact and not dying:  # what is its own, and nobody's else
        shmem = cache = swap = 0
    pure = exact and not (usage.own and usage.own[0])
    return Held(path, usage.inode, None if dying is None else max(0, dying), shmem, cache, swap, exact, pure)


def _unaccounted(path: str, usages: Mapping[str, _Usage]) -> tuple[int, ...]:
    usage = usages[path]
    own = usage.own or (0, 0, 0)
    below = [usages[child].total for child in _children(path, usages)]
    return tuple(
        max(0, usage.total[kind] - own[kind] - sum(total[kind] for total in below)) for kind in range(len(own))
    )


def _children(path: str, usages: Mapping[str, _Usage]) -> Iterator[str]:
    prefix = path.rstrip("/") + "/"
    return (other for other in usages if other.startswith(prefix) and other != path and "/" not in other[len(prefix) :])


def _usages(hierarchy: MemoryHierarchy) -> dict[str, _Usage]:
    """Every live cgroup's statistics by path, parents before their children. Those that go meanwhile are left out."""
    read = _usage_v1 if hierarchy.version is CgroupVersion.V1 else _usage_v2
    usages = {}
    for directory, _, _ in os.walk(hierarchy.mount):
        try:
            usage = read(Path(directory))
        except OSError:
            continue
        path = os.path.relpath(directory, hierarchy.mount).removeprefix(".")
        usages["/" + readable(os.fsencode(path))] = usage
    return usages


def _usage_v1(directory: Path) -> _Usage:
    stat = _numbers(directory / "memory.stat")

    def kinds(prefix: str) -> tuple[int, int, int]:
        shmem = stat.get(f"{prefix}shmem", 0)
        return shmem, max(0, stat.get(f"{prefix}cache", 0) - shmem), stat.get(f"{prefix}swap", 0)

    return _Usage(directory.stat().st_ino, None, kinds("total_"), kinds(""), hands_down=True)


def _usage_v2(directory: Path) -> _Usage:
    stat = _numbers(directory / "memory.stat") if (directory / "memory.stat").exists() else {}
    groups = _numbers(directory / "cgroup.stat")
    shmem = stat.get("shmem", 0)
    swap = directory / "memory.swap.current"  # the root has none
    total = (shmem, max(0, stat.get("file", 0) - shmem), int(swap.read_text()) if swap.exists() else 0)
    hands_down = "memory" in (directory / "cgroup.subtree_control").read_text().split()
    # Since Linux 6.13 those that are dying for the sake of memory are told apart.
    dying = groups.get("nr_dying_subsys_memory", groups["nr_dying_descendants"])
    return _Usage(directory.stat().st_ino, dying, total, None, hands_down)


def _numbers(file: Path) -> dict[str, int]:
    return {key: int(value) for key, _, value in (line.partition(" ") for line in file.read_text().splitlines())}


def _counted(proc_cgroups: Path) -> int:
    """The memory cgroups that the kernel has, dying or not: /proc/cgroups, third column."""
    for line in proc_cgroups.read_text().splitlines():
        fields = line.split()
        if fields[0] == "memory":
            return int(fields[2])
    raise HostFault(f"{proc_cgroups} has no line for memory")
