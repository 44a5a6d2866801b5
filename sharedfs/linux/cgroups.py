"""The memory cgroup hierarchy of this host: v1, v2 or hybrid, found by looking (see cgroups(7)).

A cgroup is identified by the inode number of its directory, which never comes back (`kernfs_ino`, fs/kernfs: 64 bits
that count up). Its path below the root of the hierarchy that has the memory controller is its name: that can come back
as another cgroup, and on v1 rename(2) changes it while the cgroup lives, and with it those of all below.

A path is text that can be printed, sent as JSON and kept in a database, whatever bytes its names have (`readable`).

Every reader takes the hierarchy, so tests run on a directory that looks like one.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from errno import ENODEV, ENOENT
from pathlib import Path
from posixpath import dirname
from struct import Struct

from sharedfs.common.errors import HostFault
from sharedfs.linux.mountinfo import Mount, mounts
from sharedfs.linux.syscalls import open_by_handle

_HANDLE, _FILEID_KERNFS = Struct("=IiQ"), 0xFE
"""struct file_handle of a directory of cgroupfs: bytes, kind (linux/exportfs.h), and the inode number."""
_ESCAPED = re.compile(rb"%([0-9A-F]{2})")


def readable(raw: bytes) -> str:
    r"""A cgroup's path as text: what is no UTF-8 or cannot be printed is %XX, and so is "%" itself.

    >>> readable(b"/dev-disk\x2dby/100%/\xff\x1b")
    '/dev-disk-by/100%25/%FF%1B'
    """
    text = raw.decode(errors="surrogateescape")
    if text.isprintable() and "%" not in text:
        return text
    return "".join(
        letter
        if letter.isprintable() and letter != "%"
        else "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogateescape"))
        for letter in text
    )


def raw_path(path: str) -> bytes:
    """The inverse of `readable`. Escapes that it would not have made stay as they are: none hides a slash or a dot."""
    raw = os.fsencode(path)
    if b"%" not in raw:
        return raw
    meant = _ESCAPED.sub(lambda escape: bytes.fromhex(escape[1].decode()), raw)
    return meant if readable(meant) == path else raw


def chain(path: str) -> Iterator[str]:
    """The path of a cgroup and those above it, without the root: that has no limit."""
    while path.strip("/"):
        yield path
        path = dirname(path)


class CgroupVersion(IntEnum):
    V1 = 1
    V2 = 2


class CgroupRef(int):
    """One cgroup, for as long as it lives, under the name that it had when it was looked at.

    `path` starts with "/", as /proc/PID/cgroup has it, made `readable`. Two are equal that have one inode number,
    whatever their paths, and are sorted by it: so what is kept of a cgroup is still its own after a rename. A number,
    because bills are sets and sums over millions of these: what it is hashed and compared by is C.
    """

    path: str

    def __new__(cls, path: str, inode: int) -> "CgroupRef":
        cgroup = super().__new__(cls, inode)
        cgroup.path = path
        return cgroup

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]  # for copies
        return (self.path, self.inode)

    @property
    def inode(self) -> int:
        return int(self)

    def __repr__(self) -> str:
        return f"CgroupRef({self.path!r}, {self.inode})"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class MemoryHierarchy:
    """Where the host keeps its memory controller.

    `mount` is the directory of the hierarchy's root; `hybrid` says that v2 is mounted too but memory is on v1.
    """

    version: CgroupVersion
    mount: Path
    hybrid: bool = False

    def directory(self, path: str) -> Path:
        return self.mount / os.fsdecode(raw_path(path)).lstrip("/")

    def find(self, path: str) -> CgroupRef | None:
        """The cgroup that lives at `path` now, None when there is none, or none that can be looked at."""
        try:
            return CgroupRef(path, os.stat(self.directory(path)).st_ino)
        except (OSError, ValueError):  # ValueError: a zero byte
            return None

    def stands(self) -> bool:
        """Whether the hierarchy is still mounted where it was: if not, no cgroup is found and none is gone by that."""
        return (self.mount / "cgroup.procs").exists()

    def now(self, cgroup: CgroupRef) -> CgroupRef | None:
        """`cgroup` under its name of now, None when it is gone: its path may belong to a later one of the same name."""
        return cgroup if self.find(cgroup.path) == cgroup else self._renamed(cgroup)

    def lives(self, cgroup: CgroupRef) -> bool:
        """Whether `cgroup` still exists."""
        return self.now(cgroup) is not None

    def _renamed(self, cgroup: CgroupRef) -> CgroupRef | None:
        """Where the kernel has it, whatever it was called. v2 renames nothing."""
        return None if self.version is CgroupVersion.V2 else self.at(cgroup.inode)

    def at(self, inode: int) -> CgroupRef | None:
        """The cgroup with this inode number, None when it is gone or cannot be seen from here."""
        try:
            root = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
            try:
                found = open_by_handle(root, _HANDLE.pack(8, _FILEID_KERNFS, inode), os.O_PATH)
            finally:
                os.close(root)
        except OSError:  # ESTALE: it is gone
            return None
        try:
            place = os.readlink(f"/proc/self/fd/{found}")
        finally:
            os.close(found)
        if not f"{place}/".startswith(f"{self.mount}/"):
            return None
        known = self.find(readable(os.fsencode(place.removeprefix(str(self.mount)))) or "/")
        return known if known == inode else None

    def processes(self, path: str) -> list[int]:
        """Process ids in the cgroup at `path`, none when the cgroup is gone."""
        try:
            return [int(line) for line in (self.directory(path) / "cgroup.procs").read_text().split()]
        except OSError as error:
            if error.errno in (ENOENT, ENODEV):  # ENODEV: removed after we opened its file
                return []
            raise

    def enable_memory(self, path: str) -> None:
        """Make the cgroup at `path` one with limits and statistics of its own: v2 hands the controller down by steps.

        v1 has it everywhere. Raises OSError where a parent does not let us.
        """
        if self.version is CgroupVersion.V1:
            return
        parent = self.mount
        for name in path.strip("/").split("/"):
            control = parent / "cgroup.subtree_control"
            if "memory" not in control.read_text().split():
                control.write_text("+memory")
            parent /= name

    def path_in(self, proc_cgroup: bytes) -> str | None:
        """The path in this hierarchy that a /proc/PID/cgroup names, None when it names none.

        Lines are `ID:CONTROLLERS:PATH`; v2's is `0::PATH`. A removed group's path ends in " (deleted)", and so may the
        name of one that lives: it is not cut off.
        """
        for line in proc_cgroup.split(b"\n"):
            _, controllers, path = line.split(b":", 2) if line.count(b":") > 1 else (b"", b"-", b"")
            if controllers == b"" if self.version is CgroupVersion.V2 else b"memory" in controllers.split(b","):
                return readable(path)
        return None


def find_memory_hierarchy(host_mounts: Sequence[Mount] | None = None) -> MemoryHierarchy:
    """Look for the memory controller in `host_mounts` (default: this process's). v1 wins where it holds memory.

    Raises HostFault when the host has no memory controller at all.
    """
    found = mounts() if host_mounts is None else host_mounts
    v1 = next((mount for mount in found if mount.kind == "cgroup" and "memory" in mount.super_options), None)
    v2 = next((mount for mount in found if mount.kind == "cgroup2"), None)
    if v1 is not None:
        return MemoryHierarchy(CgroupVersion.V1, Path(v1.mountpoint), hybrid=v2 is not None)
    if v2 is None:
        raise HostFault("no memory cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup")
    controllers = Path(v2.mountpoint) / "cgroup.controllers"
    if "memory" not in controllers.read_text().split():
        raise HostFault(f"{controllers} lacks memory: boot with cgroup_enable=memory")
    return MemoryHierarchy(CgroupVersion.V2, Path(v2.mountpoint))


def dying_memcgs(
    hierarchy: MemoryHierarchy, below: Path | None = None, proc_cgroups: Path = Path("/proc/cgroups")
) -> int:
    """Memory cgroups that were removed and that the kernel still has.

    On v2 those that were below the directory `below` (default: all); v1 tells only of the whole host: the cgroups it
    counts, less the directories, so it is a little off while some come and go. Raises HostFault where it tells nothing.
    """
    if hierarchy.version is CgroupVersion.V2:
        text = ((below or hierarchy.mount) / "cgroup.stat").read_text()
        return dying_in({key: int(value) for key, _, value in (line.partition(" ") for line in text.splitlines())})
    for line in proc_cgroups.read_text().splitlines():
        fields = line.split()
        if fields[0] == "memory":
            return int(fields[2]) - sum(1 for _ in os.walk(hierarchy.mount))
    raise HostFault(f"{proc_cgroups} has no line for memory")


def dying_in(cgroup_stat: Mapping[str, int]) -> int:
    """Of v2's cgroup.stat. Since Linux 6.13 those that are dying for the sake of memory are told apart."""
    return cgroup_stat.get("nr_dying_subsys_memory", cgroup_stat["nr_dying_descendants"])
