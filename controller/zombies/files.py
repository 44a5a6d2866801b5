"""The shared memory of a host as files: tmpfs (each mount namespace's), memfd, SysV and shared anonymous memory.

Found through /proc, where a living thread of each process is looked at, without touching any other filesystem, for one
that hangs would hang the child: a descriptor is looked at only when its name says that it is memory, a mountpoint is
entered only when nothing remote lies on the way.

A file is known by its device and inode number, whatever names and users it has. Those who use it are processes: they
map it, or hold it open. Not found: files of a tmpfs that is mounted nowhere and that nobody maps.

Each process is looked at, and each file opened, in a child process (`sharedfs/linux/looker.py`), for to look at a
process may be to wait for it for ever.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from sharedfs.linux.looker import Looker, is_unseen, one_round
from sharedfs.linux.mountinfo import Mount, parse_mountinfo
from sharedfs.linux.page_charges import PageCharges
from sharedfs.linux.procfs import cgroup_of, identity, living_task

Kind = Literal["tmpfs", "memfd", "sysv", "anonymous"]
Device = tuple[int, int]

_MAPS_LINE = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) \S+ [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) +(.*)$", re.MULTILINE)
_DELETED = " (deleted)"
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME | os.O_NONBLOCK
_MOST_STUCK_SECONDS = 10.0
_LONGEST_SECONDS = 300.0  # to walk through a tmpfs of millions of files, or a file of a terabyte
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


Files = dict[tuple[Device, int], SharedFile]


@dataclass(slots=True)
class _Known:
    """What a look needs of those before it. The child has a copy, to which it adds."""

    unnamed: Device
    walked: set[Device] = field(default_factory=set)
    namespaces: dict[str, list[Mount]] = field(default_factory=dict)


@dataclass(slots=True)
class SharedFiles:
    """All of the host, with the cgroups of those who use them, as /proc/PID/cgroup has it.

    /proc did not show so many processes (`hidden`), and so many hang and could not be looked at (`unseen`).
    """

    files: Files = field(default_factory=dict)
    cgroups: dict[int, bytes] = field(default_factory=dict)
    hidden: int = 0
    unseen: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """What a process uses, and what is in the tmpfs mounts that it sees, but for those `walked` before."""

    cgroup: bytes
    files: Files
    walked: set[Device]
    hidden: bool


def find_shared_files(progress: Callable[[str], None] = lambda _: None) -> SharedFiles:
    """`progress` is told what is looked at."""
    all_files = SharedFiles()
    known = _Known(_device_of_unnamed_memory())
    looker = Looker(look, longest_seconds=_LONGEST_SECONDS)
    try:
        processes = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
        for process, found in one_round(looker, processes, known, _MOST_STUCK_SECONDS):
            progress(f"process {process}")
            if is_unseen(found):
                all_files.unseen += identity(process) is not None
            elif found is not None:
                all_files.cgroups[process] = found.cgroup
                all_files.hidden += found.hidden
                known.walked |= found.walked  # for a child that follows
                _merge(all_files.files, found.files)
    finally:
        looker.close()
    _add_unattached(all_files.files, known.unnamed)
    return all_files


def look(process: int, known: _Known) -> _Found | None:
    """For the child of a `Looker`: None of a process that ended."""
    files: Files = {}
    walked: set[Device] = set()
    cgroup = b""
    try:
        task = living_task(process)
        if task is None:
            return None
        cgroup = cgroup_of(task) or b""
        namespace = os.readlink(f"{task}/ns/mnt")
        if namespace not in known.namespaces:
            known.namespaces[namespace] = parse_mountinfo(Path(f"{task}/mountinfo").read_bytes())
            mountpoints = {mount.mountpoint for mount in known.namespaces[namespace]}
            for mount in _memory_mounts(known.namespaces[namespace]):
                if mount.device not in known.walked:
                    _walk(files, task, mount, mountpoints)
                    if mount.root == "/":
                        walked.add(mount.device)
                        known.walked.add(mount.device)
        mounts = known.namespaces[namespace]
        memory = {mount.device for mount in mounts if mount.kind == "tmpfs"} | {known.unnamed}
        _add_mapped(files, process, task, memory, known.unnamed)
        _add_held(files, process, task, mounts)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended
    except PermissionError:  # another user namespace's, seen from inside a container
        return _Found(cgroup, files, walked, hidden=True)
    return _Found(cgroup, files, walked, hidden=False)


def _merge(files: Files, found: Files) -> None:
    for key, file in found.items():
        known = files.setdefault(key, file)
        if known is not file:
            known.size_bytes = file.size_bytes if known.size_bytes is None else known.size_bytes
            known.opened_by += file.opened_by
            for process, how in file.users.items():
                known.users.setdefault(process, set()).update(how)


class ChargedFiles:
    """Asks the kernel, through a child, whom it charges for files."""

    def __init__(self, files: Mapping[int, SharedFile]) -> None:
        """`files` by numbers of the caller's."""
        self._paths = {number: file.opened_by for number, file in files.items()}

    def all(self) -> Iterator[tuple[int, tuple[int, dict[int, int]] | None]]:
        """Each file's size and charged bytes by cgroup inode; None of one that is gone or that cannot be opened now."""
        looker = Looker(look_inside, longest_seconds=_LONGEST_SECONDS)
        try:
            for number, found in looker.looks(self._paths, self._paths):
                yield number, None if is_unseen(found) else found
        finally:
            looker.close()


def look_inside(number: int, paths: Mapping[int, list[str]]) -> tuple[int, dict[int, int]] | None:
    """For the child of a `Looker`."""
    for path in paths[number]:
        with suppress(OSError):
            fd = os.open(path, _OPEN)
            break
    else:
        return None
    try:
        return os.fstat(fd).st_size, _page_charges().of(fd)
    finally:
        os.close(fd)


@cache
def _page_charges() -> PageCharges:
    """The child's, until it ends."""
    return PageCharges().__enter__()


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
