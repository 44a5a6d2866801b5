"""cgroup v1: one limit, memory.limit_in_bytes. Written below usage it reclaims, then fails with EBUSY; it never kills.

Numbers are hierarchical (`usage_in_bytes`, and the `total_` lines of memory.stat), as the limit is.

The limit of memory and swap together (memory.memsw) is the manager's and never written: the kernel wants it at least
as high as the memory limit, which it stays, for that is only ever lowered, and raised no further than to it.
"""

from controller.limits.cgroup_files import CgroupDirectory, carry_out, confirm, open_cgroup, write_file
from controller.limits.types import Account, Limits, Order, Outcome, Write, WriteFile, is_above
from sharedfs.common.units import UNLIMITED_BYTES
from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy

LIMIT, MEMORY_AND_SWAP = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"


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
            ceiling_bytes = _limit(directory, MEMORY_AND_SWAP)
            peak_bytes = directory.number("memory.max_usage_in_bytes") or 0
            needed_bytes = max(0, usage_bytes - cache_bytes)
            return Account(_limits(directory), usage_bytes, needed_bytes, ceiling_bytes, peak_bytes=peak_bytes)

    def limits(self, cgroup: CgroupRef) -> Limits | None:
        with open_cgroup(self.hierarchy, cgroup, self._write) as directory:
            return None if directory is None else _limits(directory)

    def writes(self, order: Order) -> tuple[Write, ...]:
        return (Write(LIMIT, _text(order.intended.max_bytes), _text(order.now.max_bytes)),)

    def apply(self, order: Order) -> Outcome:
        return carry_out(self.hierarchy, order, self._write, _limits, _move)

    def confirm(self, cgroup: CgroupRef) -> None:
        confirm(self.hierarchy, cgroup, self._write, (LIMIT,))

    def limit_file(self, cgroup: CgroupRef) -> str:
        return str(self.hierarchy.directory(cgroup.path) / LIMIT)


def _limits(directory: CgroupDirectory) -> Limits:
    return Limits(_limit(directory, LIMIT))


def _limit(directory: CgroupDirectory, name: str) -> int | None:
    limit = directory.number(name)
    return None if limit is None or limit >= UNLIMITED_BYTES else limit


def _move(directory: CgroupDirectory, _now: Limits, intended: Limits) -> str | None:
    """What is intended, no higher than memory and swap together: where that has a limit, this one must have one."""
    ceiling_bytes = _limit(directory, MEMORY_AND_SWAP)
    limit = ceiling_bytes if is_above(intended.max_bytes, ceiling_bytes) else intended.max_bytes
    return directory.write(LIMIT, _text(limit))


def _text(limit: int | None) -> str:
    return "-1" if limit is None else str(limit)
