"""cgroup v1: one limit, memory.limit_in_bytes. Written below usage it reclaims, then fails with EBUSY; it never kills.

Numbers are hierarchical (`usage_in_bytes`, and the `total_` lines of memory.stat), as the limit is.
"""

from controller.limits.base import (
    Account,
    CgroupDirectory,
    Limits,
    Order,
    Outcome,
    WriteFile,
    carry_out,
    open_cgroup,
    write_file,
)
from sharedfs.kernel.cgroups import CgroupRef, MemoryHierarchy

LIMIT = "memory.limit_in_bytes"
UNLIMITED = 1 << 62
"""v1 has no word for "no limit": it shows the largest page counter, 2**63 less a page. Nobody means so much."""


class LimitsV1:
    def __init__(self, hierarchy: MemoryHierarchy, write: WriteFile = write_file) -> None:
        self.hierarchy = hierarchy
        self._write = write

    def read(self, cgroup: CgroupRef) -> Account | None:
        with open_cgroup(self.hierarchy, cgroup, self._write) as directory:
            if directory is None:
                return None
            usage_bytes = directory.number("memory.usage_in_bytes")
            if usage_bytes is None:
                return None
            stat = directory.statistics("memory.stat")
            cache_bytes = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
            return Account(_limits(directory), usage_bytes, max(0, usage_bytes - cache_bytes))

    def apply(self, order: Order) -> Outcome:
        return carry_out(self.hierarchy, order, self._write, _limits, _move)

    def limit_file(self, cgroup: CgroupRef) -> str:
        return str(self.hierarchy.directory(cgroup.path) / LIMIT)


def _limits(directory: CgroupDirectory) -> Limits:
    limit = directory.number(LIMIT)
    return Limits(None if limit is None or limit >= UNLIMITED else limit)


def _move(directory: CgroupDirectory, _now: Limits, intended: Limits) -> str | None:
    return directory.write(LIMIT, str(-1 if intended.max_bytes is None else intended.max_bytes))
