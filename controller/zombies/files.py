"""The shared memory of a host as files: tmpfs (each mount namespace's), memfd, SysV and shared anonymous memory.

Found through /proc, where a living thread of each process is looked at, without touching any other filesystem, for one
that hangs would hang us: a descriptor is looked at only when its name says that it is memory, a mountpoint is entered
only when nothing remote lies on the way.

A file is known by its device and inode number, whatever names and users it has. Those who use it are processes: they
map it, or hold it open. Not found: files of a tmpfs that is mounted nowhere and that nobody maps.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sharedfs.kernel.mounts import Mount, parse_mountinfo
from sharedfs.kernel.proc import living_task

Kind = Literal["tmpfs", "memfd", "sysv", "anonymous"]
Device = tuple[int, int]

_MAPS_LINE = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) \S+ [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) +(.*)$", re.MULTILINE)
_DELETED = " (deleted)"
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME | os.O_NONBLOCK
# Of these a look at a name may wait for a server: nothing below them is entered.
_REMOTE = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "autofs", "lustre", "gpfs", "virtiofs")


@dataclass(slots=True)
class SharedFile:
    """One file of memory. `users` are process ids and how they use it; `opened_by` are paths that open it."""

    kind: Kind
    path: str
    size_bytes: int | None
    opened_by: list[str] = field(default_factory=list)
    users: dict[int, set[Literal["maps", "holds"]]] = field(default_factory=dict)

    def open(self) -> int | None:
        """A descriptor for reading, the caller's to close; None when the file is gone."""
        for path in self.opened_by:
            with suppress(OSError):
                return os.open(path, _OPEN)
        return None


Files = dict[tuple[Device, int], SharedFile]


def find_shared_files(progress: Callable[[str], None] = lambda _: None) -> tuple[Files, int]:
    """All of the host, and how many processes /proc would not show us. `progress` is told what is looked at."""
    files: Files = {}
    hidden = 0
    unnamed = _device_of_unnamed_memory()
    walked: set[Device] = set()
    namespaces: dict[str, list[Mount]] = {}
    for process in _processes():
        task = living_task(process)
        if task is None:
            continue  # it ended
        try:
            namespace = os.readlink(f"{task}/ns/mnt")
            if namespace not in namespaces:
                namespaces[namespace] = parse_mountinfo(Path(f"{task}/mountinfo").read_bytes())
                progress(f"tmpfs mounts that process {process} sees")
                mountpoints = {mount.mountpoint for mount in namespaces[namespace]}
                for mount in _memory_mounts(namespaces[namespace]):
                    if mount.device not in walked:
                        _walk(files, task, mount, mountpoints)
                        if mount.root == "/":
                            walked.add(mount.device)
            progress(f"process {process}")
            memory = {mount.device for mount in namespaces[namespace] if mount.kind == "tmpfs"} | {unnamed}
            _add_mapped(files, process, task, memory, unnamed)
            _add_held(files, process, task, namespaces[namespace])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        except PermissionError:  # another user namespace's, seen from inside a container
            hidden += 1
    _add_unattached(files, unnamed)
    return files, hidden


def _processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def _device_of_unnamed_memory() -> Device:
    """The kernel's own mount that memfd, SysV segments and shared anonymous memory are files of."""
    fd = os.memfd_create("sharedctl")
    try:
        return _device(os.fstat(fd))
    finally:
        os.close(fd)


def _device(status: os.stat_result) -> Device:
    return os.major(status.st_dev), os.minor(status.st_dev)


# -- tmpfs by name -----------------------------------------------------------------------------------------------------


def _memory_mounts(mounts: Iterable[Mount]) -> list[Mount]:
    """The tmpfs mounts that can be reached without passing anything remote; those that show a whole tmpfs first."""
    mounts = list(mounts)
    remote = [mount.mountpoint for mount in mounts if mount.kind.startswith(_REMOTE)]
    local = [
        mount
        for mount in mounts
        if mount.kind == "tmpfs" and not any(_is_below(mount.mountpoint, server) for server in remote)
    ]
    return sorted(local, key=lambda mount: mount.root != "/")


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _walk(files: Files, task: str, mount: Mount, mountpoints: AbstractSet[str]) -> None:
    """Add every regular file of a mount, as a task sees it. Names are entered one by one and never followed.

    What is mounted on a name is another mount's to walk, or nobody's: to look at it may be to wait for a server.
    """
    try:
        root = os.open(f"{task}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in filter(None, mount.mountpoint.split("/")):
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            os.close(root)
            root = below
    except OSError:
        return
    try:
        if _device(os.fstat(root)) != mount.device:  # something else is mounted over it
            return
        for directory, names, leaves, directory_fd in os.fwalk(".", dir_fd=root, follow_symlinks=False):
            place = os.path.normpath(os.path.join(mount.mountpoint, directory))
            for name in leaves:
                path = os.path.join(place, name)
                if path in mountpoints:
                    continue
                with suppress(OSError):
                    status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_blocks and _device(status) == mount.device:
                        known = _add(files, mount.device, status.st_ino, "tmpfs", path, status.st_size)
                        known.opened_by.append(f"{task}/root{path}")
            names[:] = [
                name
                for name in names
                if os.path.join(place, name) not in mountpoints and _is_on(directory_fd, name, mount.device)
            ]
    finally:
        os.close(root)


def _is_on(directory_fd: int, name: str, device: Device) -> bool:
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return False
    try:
        return _device(os.fstat(fd)) == device
    finally:
        os.close(fd)


# -- by those who use it -----------------------------------------------------------------------------------------------


def _add_mapped(files: Files, process: int, task: str, memory: set[Device], unnamed: Device) -> None:
    map_files = f"/proc/{os.path.basename(task)}/map_files"  # which a thread has under its own number only
    for addresses, major, minor, inode, name in _MAPS_LINE.findall(Path(f"{task}/maps").read_bytes()):
        device = int(major, 16), int(minor, 16)
        if device in memory:
            path = os.fsdecode(name)
            kind = _unnamed_kind(path) if device == unnamed else "tmpfs"
            known = _add(files, device, int(inode), kind, path, None)
            known.users.setdefault(process, set()).add("maps")
            known.opened_by.append(f"{map_files}/{addresses.decode()}")


def _add_held(files: Files, process: int, task: str, mounts: list[Mount]) -> None:
    for descriptor in os.listdir(f"{task}/fd"):
        with suppress(OSError):
            link = f"{task}/fd/{descriptor}"
            name = os.readlink(link)
            if not name.startswith("/memfd:") and _kind_at(name.removesuffix(_DELETED), mounts) != "tmpfs":
                continue
            status = os.stat(link)
            if stat.S_ISREG(status.st_mode):
                kind = _unnamed_kind(name) if name.startswith("/memfd:") else "tmpfs"
                known = _add(files, _device(status), status.st_ino, kind, name, status.st_size)
                known.users.setdefault(process, set()).add("holds")
                known.opened_by.append(link)


def _kind_at(path: str, mounts: list[Mount]) -> str | None:
    """What kind of filesystem a path is on, by the mounts' names alone."""
    if not path.startswith("/"):
        return None  # a pipe, a socket
    on = max((mount for mount in mounts if _is_below(path, mount.mountpoint)), key=lambda mount: len(mount.mountpoint))
    return on.kind


def _unnamed_kind(name: str) -> Kind:
    if name.startswith("/memfd:"):
        return "memfd"
    return "sysv" if name.startswith("/SYSV") else "anonymous"


def _add_unattached(files: Files, unnamed: Device) -> None:
    """SysV segments outlive those who attach them; its id is the inode number. To read one would be to attach it."""
    with suppress(FileNotFoundError):
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()
        heads = lines[0].split()
        for line in lines[1:]:
            row = dict(zip(heads, line.split(), strict=False))
            name = f"/SYSV{int(row['key']) & 0xFFFFFFFF:08x} (id {row['shmid']})"
            known = _add(files, unnamed, int(row["shmid"]), "sysv", name, int(row["size"]))
            known.path, known.size_bytes = name, int(row["size"])


def _add(files: Files, device: Device, inode: int, kind: Kind, path: str, size_bytes: int | None) -> SharedFile:
    known = files.get((device, inode))
    if known is None:
        known = files[device, inode] = SharedFile(kind, path, size_bytes)
    return known
