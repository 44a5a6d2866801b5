"""The memory limits at and above a cgroup, read again and again from descriptors that stay open.

A limit at the root of the hierarchy as it is seen counts, too: in a container that is the container's own. What is
above the root of a cgroup namespace, or of a mount of a part of the tree, cannot be seen.
"""

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sharedfs.common.units import UNLIMITED_BYTES
from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy, chain

_TEXT_BYTES = 64
_STAT_BYTES = 16 << 10
# limit, the usage that it bounds: v1's second pair counts what is in swap as well, v2's high throttles.
_PAIRS = {
    CgroupVersion.V1: (
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    ),
    CgroupVersion.V2: (("memory.max", "memory.current"), ("memory.high", "memory.current")),
}
# (what the kernel drops, what it must write first) in memory.stat, of the cgroup and all below it
_CACHE = {
    CgroupVersion.V1: (("total_inactive_file", "total_active_file"), ("total_dirty", "total_writeback")),
    CgroupVersion.V2: (("inactive_file", "active_file"), ("file_dirty", "file_writeback")),
}
_EVENTS = "memory.events"

_IN_MODIFY, _IN_NONBLOCK, _IN_CLOEXEC = 0x2, os.O_NONBLOCK, os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Reading(NamedTuple):
    """One limit: `name` says where it is ("FILE of PATH"), `cache_bytes` of `usage_bytes` the kernel would drop."""

    name: str
    limit_bytes: int
    usage_bytes: int
    cache_bytes: int = 0

    @property
    def path(self) -> str:
        """Of the cgroup that has the limit."""
        return self.name.partition(" of ")[2]

    @property
    def free_bytes(self) -> int:
        """What can still be charged before the kernel kills; negative beyond the limit."""
        return self.limit_bytes - max(0, self.usage_bytes - self.cache_bytes)


class _Level(NamedTuple):
    """The open files of one limit."""

    name: str
    limit_fd: int
    usage_fd: int
    stat_fd: int


class MemoryLimits:
    """Those that bound the cgroup at `path`."""

    def __init__(self, hierarchy: MemoryHierarchy, path: str) -> None:
        self._version = hierarchy.version
        self._fds: list[int] = []
        self._levels: list[_Level] = []
        self._watched: list[Path] = []
        for level in (*chain(path), "/"):
            self._open(hierarchy.directory(level), level)
        self.hides_some = not _is_whole(hierarchy)
        """Whether there may be limits above that cannot be seen."""

    def _open(self, directory: Path, path: str) -> None:
        with suppress(OSError):  # the root has none, and v1 none of swap where that is not accounted
            stat_fd = self._opened(directory / "memory.stat")
            for limit, usage in _PAIRS[self._version]:
                limit_fd, usage_fd = self._opened(directory / limit), self._opened(directory / usage)
                self._levels.append(_Level(f"{limit} of {path}", limit_fd, usage_fd, stat_fd))
                self._watched.append(directory / limit)
            self._watched.append(directory / _EVENTS)

    def _opened(self, file: Path) -> int:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(fd)
        return fd

    def read(self, enough_bytes: int) -> list[Reading]:
        """The limits that are set now. Page cache is looked at where less than `enough_bytes` would be free without."""
        found = []
        for level in self._levels:
            limit_bytes = _number(level.limit_fd)
            if limit_bytes is not None and limit_bytes < UNLIMITED_BYTES:
                usage_bytes = _number(level.usage_fd) or 0
                is_near = limit_bytes - usage_bytes < enough_bytes
                cache_bytes = self._cache_bytes(level.stat_fd) if is_near else 0
                found.append(Reading(level.name, limit_bytes, usage_bytes, cache_bytes))
        return found

    def _cache_bytes(self, stat_fd: int) -> int:
        lines = os.pread(stat_fd, _STAT_BYTES, 0).decode().splitlines()
        counts = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value}
        dropped, kept = _CACHE[self._version]
        return max(0, sum(counts.get(name, 0) for name in dropped) - sum(counts.get(name, 0) for name in kept))

    def watch(self) -> int:
        """A descriptor that is readable when a limit was written, or v2's kernel counted an event. The caller's."""
        fd = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"inotify_init1: {os.strerror(ctypes.get_errno())}")
        for file in self._watched:
            _libc.inotify_add_watch(fd, os.fsencode(file), _IN_MODIFY)  # what is not there is not watched
        return int(fd)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def is_limited(hierarchy: MemoryHierarchy, path: str) -> bool:
    """Whether the cgroup at `path` has a limit of its own; False for one that is gone."""
    for file, _ in _PAIRS[hierarchy.version]:
        with suppress(OSError):
            fd = os.open(hierarchy.directory(path) / file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                limit_bytes = _number(fd)
            finally:
                os.close(fd)
            if limit_bytes is not None and limit_bytes < UNLIMITED_BYTES:
                return True
    return False


def _number(fd: int) -> int | None:
    """What a cgroup's file says; None for "max"."""
    text = os.pread(fd, _TEXT_BYTES, 0).strip()
    return None if text == b"max" else int(text)


def _is_whole(hierarchy: MemoryHierarchy) -> bool:
    """Whether the root of the hierarchy, as it is mounted here, is the host's: files differ there."""
    if hierarchy.version is CgroupVersion.V1:
        return (hierarchy.mount / "release_agent").exists()
    return not (hierarchy.mount / "memory.max").exists()
