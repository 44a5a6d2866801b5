"""A memory controller in a plain directory, faithful in what settlement can be hurt by (kernel-documented behaviour).

Limits are rounded down to a page. Reclaim takes page cache and nothing else. v1 refuses a limit below usage with EBUSY
after reclaim; v2's memory.max reclaims and then kills, memory.high reclaims and never kills, memory.swap.max takes
nothing from anybody. Reads are plain files; writes come through `write`, which takes the place of the kernel's.
"""

import os
from collections.abc import Callable
from errno import EBUSY, ENODEV
from mmap import PAGESIZE
from pathlib import Path

from sharedfs.linux.cgroups import CgroupRef, CgroupVersion, MemoryHierarchy

V1_UNLIMITED = (1 << 63) - PAGESIZE


class FakeCgroups:
    def __init__(self, root: Path, version: CgroupVersion) -> None:
        self.hierarchy = MemoryHierarchy(version, root)
        root.mkdir(parents=True)
        (root / "cgroup.procs").write_text("")
        self.writes: list[tuple[str, str, str]] = []
        self.before_write: Callable[[str], None] = lambda path: None
        self._v1 = version is CgroupVersion.V1
        self._anon: dict[Path, int] = {}
        self._cache: dict[Path, int] = {}
        self._kills: dict[Path, int] = {}

    def make(self, path: str) -> CgroupRef:
        directory = self.hierarchy.directory(path)
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text("")
        self._anon[directory] = self._cache[directory] = self._kills[directory] = 0
        if self._v1:
            (directory / "memory.limit_in_bytes").write_text(f"{V1_UNLIMITED}\n")
        else:
            (directory / "memory.max").write_text("max\n")
            (directory / "memory.high").write_text("max\n")
            (directory / "memory.swap.max").write_text("max\n")
            (directory / "memory.swap.current").write_text("0\n")
            (directory / "cgroup.events").write_text("populated 0\nfrozen 0\n")
        self._publish(directory)
        return CgroupRef(path, directory.stat().st_ino)

    def remove(self, path: str) -> None:
        directory = self.hierarchy.directory(path)
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()

    def enter(self, path: str, pid: int) -> None:
        directory = self.hierarchy.directory(path)
        (directory / "cgroup.procs").write_text(f"{pid}\n")
        if not self._v1:
            (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")

    def occupy(self, path: str, anon_bytes: int, cache_bytes: int = 0) -> None:
        directory = self.hierarchy.directory(path)
        self._anon[directory], self._cache[directory] = anon_bytes, cache_bytes
        self._publish(directory)

    def manager_sets(self, path: str, limit: int | None, name: str | None = None) -> None:
        """What a manager writes, by its own hand."""
        name = name or ("memory.limit_in_bytes" if self._v1 else "memory.max")
        nothing = "-1" if self._v1 else "max"
        self._set(self.hierarchy.directory(path), name, nothing if limit is None else str(limit))

    def limit(self, path: str, name: str | None = None) -> int | None:
        name = name or ("memory.limit_in_bytes" if self._v1 else "memory.max")
        text = (self.hierarchy.directory(path) / name).read_text().strip()
        return None if text in ("max", str(V1_UNLIMITED)) else int(text)

    def kills(self, path: str) -> int:
        return self._kills[self.hierarchy.directory(path)]

    def write(self, descriptor: int, name: str, text: str) -> None:
        """In place of `controller.limits.cgroup_files.write_file`."""
        directory = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        path = f"/{directory.relative_to(self.hierarchy.mount)}"
        self.before_write(path)
        if not directory.is_dir():
            raise OSError(ENODEV, os.strerror(ENODEV))
        self.writes.append((path, name, text))
        self._set(directory, name, text)

    def _set(self, directory: Path, name: str, text: str) -> None:
        unlimited = text in ("-1", "max")
        limit = V1_UNLIMITED if unlimited else int(text) // PAGESIZE * PAGESIZE
        excess = 0 if name == "memory.swap.max" else self._reclaim(directory, limit)
        if excess > 0 and self._v1:
            raise OSError(EBUSY, os.strerror(EBUSY))
        shown = "max" if unlimited and not self._v1 else str(limit)
        (directory / name).write_text(f"{shown}\n")
        if excess > 0 and name == "memory.max":
            self._kills[directory] += 1
            self._anon[directory] = 0
            self._publish(directory)

    def _reclaim(self, directory: Path, limit: int) -> int:
        """Give up page cache down to `limit`; the bytes that are still above it."""
        usage = self._anon[directory] + self._cache[directory]
        self._cache[directory] -= min(self._cache[directory], max(0, usage - limit))
        self._publish(directory)
        return self._anon[directory] + self._cache[directory] - limit

    def _publish(self, directory: Path) -> None:
        anon, cache = self._anon[directory], self._cache[directory]
        (directory / ("memory.usage_in_bytes" if self._v1 else "memory.current")).write_text(f"{anon + cache}\n")
        prefix = "total_" if self._v1 else ""
        stat = f"{prefix}inactive_anon {anon}\n{prefix}inactive_file {cache}\n{prefix}active_file 0\n"
        (directory / "memory.stat").write_text(stat)
