"""Unmounting: looks who would lose the pool before anything is changed, and leaves the host as it was.

plain    refused while anybody uses the pool, here or in another mount namespace (a container)
lazy     the mount is taken away here; the pool ends when its last user has gone
force    the pool ends now, whoever uses it
"""

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress
from enum import Enum
from errno import EBUSY
from pathlib import Path

from sharedfs.api.types import PoolRecord
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import MemoryHierarchy, find_memory_hierarchy
from sharedfs.linux.mountinfo import Mount, mount_at
from sharedfs.mount import mount_users
from sharedfs.mount.mounting import require_root
from sharedfs.pool import registry
from sharedfs.pool.options import FILESYSTEM_TYPE

_END_SECONDS = 20.0
_CONTROLLER_COMMAND = "sharedctl"  # which an installation puts beside the interpreter


class Manner(Enum):
    PLAIN = "plain"
    LAZY = "lazy"
    FORCE = "force"


def umount(mountpoint: str, manner: Manner = Manner.PLAIN, *, only_dead: bool = False) -> str:
    """Unmount the pool at `mountpoint`; what there is to tell of it, "" for nothing.

    Waits until its processes have gone and the host is as it was, but for a lazy one that is in use.
    `only_dead`: do nothing unless a pool is there that nobody serves or can go on serving.
    Raises CallerMistake, with nothing changed, for a plain one that is in use.
    """
    require_root()
    record = registry.record_at(mountpoint)
    served = record is not None and registry.is_served(record)
    if only_dead and (record is None or served):
        return ""
    mounted = mount_at(mountpoint)
    if mounted is not None and mounted.kind != FILESYSTEM_TYPE:
        mounted = None
    if record is None and mounted is None:
        raise CallerMistake(f"no pool is mounted at {mountpoint}: `sharedfs status` lists those that are")
    told = ""
    if served or record is None:
        # Without a record the keeper may well live, with another run directory: then it is not for us to pull it away.
        told = _take_from_users(mountpoint, mounted, record, manner)
    elif mounted is not None:
        syscalls.umount(mountpoint, syscalls.MNT_FORCE | syscalls.MNT_DETACH)
    if record is None or (served and manner is Manner.LAZY and told):
        return told
    if served and not registry.wait_for_end(record, _END_SECONDS):
        raise HostFault(
            f"the mount is gone, but the keeper of {mountpoint} (pid {record.keeper_pid}) did not end within "
            f"{_END_SECONDS:.0f} s: `sharedfs umount --force {mountpoint}` ends it"
        )
    registry.clean_up_dead(record)
    if not any(True for _ in registry.records()):
        _put_limits_back()
    return told


def _take_from_users(mountpoint: str, mounted: Mount | None, record: PoolRecord | None, manner: Manner) -> str:
    users = _users(mountpoint, mounted, record)
    others = [] if mounted is None else mount_users.other_mountpoints(mounted)
    keepers = ", ".join(filter(None, [mount_users.named(users), *(f"its mount at {other}" for other in others)]))
    if manner is Manner.PLAIN and mounted is None:
        raise CallerMistake(
            f"the pool of {mountpoint} is unmounted here already and ends when its last user has gone: "
            f"`sharedfs umount --force {mountpoint}` ends it now"
        )
    if manner is Manner.PLAIN and keepers:
        raise _in_use(mountpoint, keepers)
    try:
        if mounted is not None:
            syscalls.umount(mountpoint, 0 if manner is Manner.PLAIN else syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno != EBUSY:
            raise
        raise _in_use(mountpoint, "a process that maps a file of it, or came since") from None
    if manner is Manner.FORCE and record is not None:
        with suppress(ProcessLookupError):
            os.kill(record.keeper_pid, signal.SIGTERM)
        return f"ended while in use by {keepers}: what they do with its files fails with ENOTCONN" if keepers else ""
    if manner is Manner.LAZY and keepers:
        return f"the pool goes on without a mount here and ends when its last user has gone: {keepers}"
    return ""


def _in_use(mountpoint: str, keepers: str) -> CallerMistake:
    return CallerMistake(
        f"{mountpoint} is in use by {keepers}: end these first, or `sharedfs umount --lazy` to let them go on without "
        "a mount here, or --force to end the pool now"
    )


def _users(mountpoint: str, mounted: Mount | None, record: PoolRecord | None) -> list[mount_users.MountUser]:
    hierarchy: MemoryHierarchy | None = None
    with suppress(HostFault):
        hierarchy = find_memory_hierarchy()
    device = mounted.device if mounted is not None else None if record is None else record.device
    return mount_users.users_of(mountpoint, device, mounted, hierarchy)


def _put_limits_back() -> None:
    """The last pool is gone: when no controller lives to do it, put back the limits that a dead one left lowered (I6).

    The controller is another package, and sharedfs names no module of it: its installed command is asked.
    """
    if not (paths.state_directory() / paths.CONTROLLER_DATABASE).exists() or _controller_runs():
        return
    command = Path(sys.executable).with_name(_CONTROLLER_COMMAND)
    try:
        done = subprocess.run([command, "restore"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise HostFault(
            f"unmounted, but limits of a dead controller are not back: {command}: {error.strerror}. "
            "Run `sharedctl restore` of the version that lowered them"
        ) from error
    if done.returncode:
        raise HostFault(f"unmounted, but limits of a dead controller are not back: {done.stderr.strip()}")


def _controller_runs() -> bool:
    try:
        lock = os.open(paths.controller_lock(), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # none is there, or what is none: `sharedctl restore` says so
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
