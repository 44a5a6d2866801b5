"""Real cgroups of this host, under a directory of their own that is gone afterwards."""

import os
import subprocess
import sys
from pathlib import Path

from sharedfs.linux.cgroups import CgroupRef, CgroupVersion, MemoryHierarchy, find_memory_hierarchy

_OCCUPANT = """
import sys
memory = b"x" * int(sys.argv[1])
if len(sys.argv) > 2:
    file = open(sys.argv[2], "rb")  # it stays open: a filesystem may forget what nobody has open
    while file.read(1 << 20):
        pass
print("ready", flush=True)
sys.stdin.read()
"""


class RealCgroups:
    """`base` is the path of our directory; groups are made below it. Use as a context manager."""

    def __init__(self, version: CgroupVersion, files: Path) -> None:
        self.hierarchy: MemoryHierarchy = find_memory_hierarchy()
        self.base = f"/sharedfs-ctl-test-{os.getpid()}"
        self._v1 = version is CgroupVersion.V1
        self._files = files
        self._occupants: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "RealCgroups":
        self.hierarchy.directory(self.base).mkdir()
        self.hierarchy.enable_memory(f"{self.base}/group")
        return self

    def __exit__(self, *failure: object) -> None:
        for occupant in self._occupants:
            occupant.kill()
            occupant.communicate()
        base = self.hierarchy.directory(self.base)
        for group, _, _ in os.walk(base, topdown=False):
            os.rmdir(group)

    def make(self, path: str) -> CgroupRef:
        self.hierarchy.directory(self.base + path).mkdir()
        made = self.hierarchy.find(self.base + path)
        assert made is not None
        return made

    def remove(self, path: str) -> None:
        self.hierarchy.directory(path).rmdir()

    def occupy(self, path: str, anon_bytes: int, cache_bytes: int = 0) -> None:
        """A process in the group, joined before exec, with so much memory and the page cache of a file it read."""
        arguments = [sys.executable, "-c", _OCCUPANT, str(anon_bytes)]
        if cache_bytes:
            file = self._files / "cached"
            with file.open("wb") as made:
                made.write(os.urandom(cache_bytes))
                made.flush()
                os.fsync(made.fileno())
                os.posix_fadvise(made.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            arguments.append(str(file))
        procs = self.hierarchy.directory(path) / "cgroup.procs"
        occupant = subprocess.Popen(
            ["/bin/sh", "-c", f'echo $$ > {procs} && exec "$0" "$@"', *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._occupants.append(occupant)
        assert occupant.stdout is not None
        assert occupant.stdout.readline() == "ready\n"

    def manager_sets(self, path: str, limit: int | None, name: str | None = None) -> None:
        name = name or ("memory.limit_in_bytes" if self._v1 else "memory.max")
        nothing = "-1" if self._v1 else "max"
        (self.hierarchy.directory(path) / name).write_text(nothing if limit is None else str(limit))

    def limit(self, path: str, name: str | None = None) -> int | None:
        name = name or ("memory.limit_in_bytes" if self._v1 else "memory.max")
        text = (self.hierarchy.directory(path) / name).read_text().strip()
        return None if text == "max" or int(text) >= 1 << 62 else int(text)

    def kills(self, path: str) -> int:
        file = "memory.oom_control" if self._v1 else "memory.events"
        lines = (self.hierarchy.directory(path) / file).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
