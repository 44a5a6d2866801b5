"""What a cgroup is charged for, and how much of that is pages of tmpfs files, whether they still are in a file or not.

memory.stat has a line for these, too (shmem), but it stays behind: the kernel does not move it when it makes a huge
page of small ones and charges somebody else for them (collapse_file() in mm/khugepaged.c), and a page that left its
file is not in it. So it is what is left of the whole charge: less anonymous memory, other page cache and the kernel's
own.

The charge is up to 64 pages a CPU too large: the kernel takes so many at once (MEMCG_CHARGE_BATCH in mm/memcontrol.c).
"""

import os
from contextlib import suppress
from errno import ENODEV
from typing import NamedTuple

from sharedfs.common.units import PAGE_BYTES
from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy

_STAT_BYTES = 32 << 10
_TEXT_BYTES = 64
_BATCH_PAGES = 64
_USAGE = {CgroupVersion.V1: "memory.usage_in_bytes", CgroupVersion.V2: "memory.current"}
_V1_KERNEL = "memory.kmem.usage_in_bytes"


class Parts(NamedTuple):
    """The lines of memory.stat that have anonymous memory, all page cache, that of tmpfs, and the kernel's own."""

    anonymous: str
    cache: str
    tmpfs: str
    kernel: tuple[str, ...]


_PARTS = {
    CgroupVersion.V1: Parts("total_rss", "total_cache", "total_shmem", ()),
    CgroupVersion.V2: Parts("anon", "file", "shmem", ("kernel", "sock")),
}


def batch_bytes() -> int:
    """How much too large a charge can be read."""
    return _BATCH_PAGES * PAGE_BYTES * (os.cpu_count() or 1)


class CgroupMemory:
    """Of the cgroup at `path`, and all below it."""

    def __init__(self, hierarchy: MemoryHierarchy, path: str) -> None:
        self._parts = _PARTS[hierarchy.version]
        self._fds: dict[str, int] = {}
        directory = hierarchy.directory(path)
        for name in (_USAGE[hierarchy.version], "memory.stat", _V1_KERNEL):
            with suppress(OSError):  # v2 has no such file at its root, nor v1 one of kernel memory where it is off
                self._fds[name] = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
        self._usage = self._fds.get(_USAGE[hierarchy.version])

    def tmpfs_bytes(self) -> int | None:
        """The charge for pages of tmpfs files, or that were. None where the kernel does not tell, or it is gone."""
        if self._usage is None:
            return None
        try:
            stat = self._stat()
            kernel = self._fds.get(_V1_KERNEL)
            kernel_bytes = sum(stat.get(name, 0) for name in self._parts.kernel)
            kernel_bytes += 0 if kernel is None else _number(kernel)
            anonymous_bytes, cache_bytes, tmpfs_bytes = (stat.get(name, 0) for name in self._parts[:3])
            return _number(self._usage) - anonymous_bytes - (cache_bytes - tmpfs_bytes) - kernel_bytes
        except OSError as error:
            if error.errno != ENODEV:
                raise
            return None

    def _stat(self) -> dict[str, int]:
        text = os.pread(self._fds["memory.stat"], _STAT_BYTES, 0).decode()
        return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


def _number(fd: int) -> int:
    return int(os.pread(fd, _TEXT_BYTES, 0))
