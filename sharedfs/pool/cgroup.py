"""The pool's own cgroup: the daemon lives in it, so the kernel charges it for every page of the pool (I2).

It stands at PARENT/NAME below the root of the memory hierarchy. A service manager that already gave the daemon a cgroup
of its own (a systemd unit) needs none: mount with an empty parent then.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EBUSY
from pathlib import Path, PurePosixPath

from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import MemoryHierarchy
from sharedfs.linux.procfs import process_cgroup

DEFAULT_PARENT = "sharedfs"
NEVER_KILLED = -1000
"""oom_score_adj of a process that the kernel does not kill for want of memory."""

_OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
_MADE_BY_A_POOL = "trusted.sharedfs"  # on the directory of a cgroup: pools that share a parent may go in any order
_REMOVAL_SECONDS = 2.0
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class PoolCgroup:
    """The cgroup at `path`; `came_from` is where the process was before, and goes back to.

    `removable` are the cgroups that go when the pool does, innermost first; none when a manager gave us ours.
    """

    hierarchy: MemoryHierarchy
    path: str
    came_from: str
    removable: tuple[str, ...]

    @property
    def inode(self) -> int:
        """By which the kernel says that it charges this cgroup; 0 when it is gone."""
        found = self.hierarchy.find(self.path)
        return 0 if found is None else found.inode

    def leave(self) -> None:
        """Put the process back where it came from (or to the root, if that is gone) and remove what we made."""
        if not self.removable:
            return
        for path in (self.came_from, "/"):
            with suppress(OSError):
                (self.hierarchy.directory(path) / "cgroup.procs").write_text(str(os.getpid()))
                break
        remove_pool_cgroups(self.hierarchy, self.removable)


def join_pool_cgroup(hierarchy: MemoryHierarchy, parent: str, name: str) -> PoolCgroup:
    """Move this process into PARENT/NAME, made where needed; with no parent, stay where it is.

    Raises HostFault when the hierarchy does not let us.
    """
    came_from = hierarchy.path_in(process_cgroup(os.getpid()) or b"")
    if came_from is None:
        raise HostFault("/proc/self/cgroup names no memory cgroup of this process")
    if not parent:
        return PoolCgroup(hierarchy, came_from, came_from, ())
    path = PurePosixPath("/") / parent.strip("/") / name
    steps = [str(step) for step in (path, *path.parents) if step.name]
    # What was there stays, but for what pools made: one of our name that died, or others in the same parent.
    directory = hierarchy.directory(str(path))
    removable: tuple[str, ...] = ()
    try:
        for step in reversed(steps):
            if _make(hierarchy.directory(step)):
                removable = (step, *removable)
        hierarchy.enable_memory(str(path))
        (directory / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        remove_pool_cgroups(hierarchy, removable)
        raise HostFault(
            f"{error.filename or directory}: {error.strerror}: choose a cgroup to make pools in with --cgroup-parent"
        ) from error
    return PoolCgroup(hierarchy, str(path), came_from, removable)


def be_never_killed() -> None:
    """Keep the kernel from killing this process, and those that it will fork, for want of memory, where it may."""
    with suppress(OSError):  # CAP_SYS_RESOURCE is missing: `oom_score_adj` tells
        _OOM_SCORE_ADJ.write_text(str(NEVER_KILLED))


def oom_score_adj() -> int:
    """Of this process."""
    return int(_OOM_SCORE_ADJ.read_text())


def _make(directory: Path) -> bool:
    """Make a cgroup where there is none; whether it is one that a pool made, now or before."""
    try:
        directory.mkdir()
    except FileExistsError:
        with suppress(OSError):
            return bool(os.getxattr(directory, _MADE_BY_A_POOL))
        return False
    with suppress(OSError):  # then it goes with the pool that made it, or stays
        os.setxattr(directory, _MADE_BY_A_POOL, b"1")
    return True


def remove_pool_cgroups(hierarchy: MemoryHierarchy, removable: Sequence[str]) -> None:
    """Remove a pool's cgroups, innermost first, as far as they are empty. Waits for a dying daemon to be out of its."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    for path in removable:
        while True:
            try:
                hierarchy.directory(path).rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != EBUSY or path != removable[0] or time.monotonic() > deadline:
                    return  # other pools are in it
                time.sleep(POLL_SECONDS)
            else:
                break
