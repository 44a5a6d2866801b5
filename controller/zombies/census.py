"""How many cgroups are dying, and what is still charged to them, by the live cgroup that they were in.

The kernel names no dying cgroup. But a live cgroup's statistics count those of all below it, removed ones too. What is
neither its own nor its live children's is therefore held by dying cgroups that were below it:

    held(X) = total(X) - own(X) - sum of total(child)

v1 tells `own` (the lines of memory.stat without total_). v2 does not; there a cgroup that hands the memory controller
down has no processes, so its own is 0, and for the others (and the root) `held` is a bound only: `exact` says which.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst (5.2), cgroup-v2.rst (memory.stat, cgroup.stat).
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname

from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy, dying_in, dying_memcgs, readable

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
    before, after = _children(first), _children(second)
    held = [_least(path, first[path], before[path], second[path], after[path]) for path in first if path in second]
    dying = max(0, dying_memcgs(hierarchy, proc_cgroups=proc_cgroups))
    return Census(
        dying, tuple(one for one in held if one.anything), {usage.inode: path for path, usage in second.items()}
    )


def _least(
    path: str, first: _Usage, first_children: list[_Usage], second: _Usage, second_children: list[_Usage]
) -> Held:
    shmem, cache, swap = map(min, _unaccounted(first, first_children), _unaccounted(second, second_children))
    dying = first.dying
    if dying is not None:
        dying -= sum(child.dying or 0 for child in first_children)
    exact = first.own is not None or (first.hands_down and path != "/")
    if not exact and not dying:  # what is its own, and nobody's else
        shmem = cache = swap = 0
    pure = exact and not (first.own and first.own[0])
    return Held(path, first.inode, None if dying is None else max(0, dying), shmem, cache, swap, exact, pure)


def _unaccounted(usage: _Usage, children: list[_Usage]) -> tuple[int, ...]:
    own = usage.own or (0, 0, 0)
    return tuple(
        max(0, usage.total[kind] - own[kind] - sum(child.total[kind] for child in children)) for kind in range(len(own))
    )


def _children(usages: Mapping[str, _Usage]) -> Mapping[str, list[_Usage]]:
    """The live cgroups right below each one. O(cgroups)."""
    found: defaultdict[str, list[_Usage]] = defaultdict(list)
    for path, usage in usages.items():
        if path != "/":
            found[dirname(path)].append(usage)
    return found


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
    return _Usage(directory.stat().st_ino, dying_in(groups), total, None, hands_down)


def _numbers(file: Path) -> dict[str, int]:
    return {key: int(value) for key, _, value in (line.partition(" ") for line in file.read_text().splitlines())}
