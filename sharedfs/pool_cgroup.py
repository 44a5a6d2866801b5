"""The pool's own cgroup: the daemon lives in it, so the kernel charges it for every page of the pool (I2).

It stands at PARENT/NAME below the root of the memory hierarchy. A service manager that already gave the daemon a cgroup
of its own (a systemd unit) needs none: mount with an empty parent then.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from errno import EBUSY

from sharedfs.errors import HostFault
from sharedfs.kernel.cgroups import MemoryHierarchy
from sharedfs.kernel.proc import process_cgroup

_REMOVAL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PoolCgroup:
    """The cgroup at `path`; `came_from` is where the process was before, and goes back to."""

    hierarchy: MemoryHierarchy
    path: str
    came_from: str

    @property
    def is_ours(self) -> bool:
        return self.path != self.came_from

    def leave(self) -> None:
        """Put the process back where it came from (or to the root, if that is gone) and remove the cgroup."""
        if not self.is_ours:
            return
        for path in (self.came_from, "/"):
            with suppress(OSError):
                (self.hierarchy.directory(path) / "cgroup.procs").write_text(str(os.getpid()))
                break
        remove_pool_cgroup(self.hierarchy, self.path)


def join_pool_cgroup(hierarchy: MemoryHierarchy, parent: str, name: str) -> PoolCgroup:
    """Move this process into PARENT/NAME, made where needed; with no parent, stay where it is.

    Raises HostFault when the hierarchy does not let us.
    """
    came_from = hierarchy.path_in(process_cgroup(os.getpid()) or b"")
    if not parent:
        return PoolCgroup(hierarchy, came_from, came_from)
    path = f"/{parent.strip('/')}/{name}"
    directory = hierarchy.directory(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        hierarchy.enable_memory(path)
        (directory / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        remove_pool_cgroup(hierarchy, path)
        raise HostFault(
            f"{error.filename or directory}: {error.strerror}: choose a cgroup to make pools in with --cgroup-parent"
        ) from error
    return PoolCgroup(hierarchy, path, came_from)


def remove_pool_cgroup(hierarchy: MemoryHierarchy, path: str) -> None:
    """Remove an empty pool cgroup, and its parent when that has no other. Waits for a dying process to be gone."""
    directory = hierarchy.directory(path)
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            break
        except OSError as error:
            if error.errno != EBUSY or time.monotonic() > deadline:
                return
            time.sleep(0.01)
        else:
            break
    with suppress(OSError):  # other pools, or not ours to remove
        if directory.parent != hierarchy.mount:
            directory.parent.rmdir()
