"""Unmounting: looks who would lose the pool before anything is changed, and leaves the host as it was.

plain    refused while anybody uses the pool, here or in another mount namespace (a container)
lazy     the mount is taken away here, at once; the pool ends when its last user has gone
force    the pool ends now, whoever uses it
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from enum import Enum
from errno import EBUSY
from pathlib import Path

from sharedfs.api.types import PoolRecord
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import MemoryHierarchy, find_memory_hierarchy
from sharedfs.linux.file_device import filesystem_lives
from sharedfs.linux.mountinfo import Mount, mounts
from sharedfs.mount import mount_users
from sharedfs.mount.mounting import require_root
from sharedfs.pool import registry
from sharedfs.pool.cgroup import POLL_SECONDS
from sharedfs.pool.options import FILESYSTEM_TYPE

_END_SECONDS = 20.0
_LAZY_SECONDS = 5.0  # to end, with no user left
_LAST_USER_SECONDS = 1.0  # to go, of a user that is not to be seen: a process that ends closes its files late
_UNSEEN = "a user that cannot be named (a file on its way through a socket, for example)"
_CONTROLLER_COMMAND = "sharedctl"  # which an installation puts beside the interpreter


class Manner(Enum):
    PLAIN = "plain"
    LAZY = "lazy"
    FORCE = "force"


def umount(mountpoint: str, manner: Manner = Manner.PLAIN, *, only_dead: bool = False) -> str:
    """Unmount the pool at `mountpoint`; what there is to tell of it, "" for nothing.

    Waits until its processes have gone and the host is as it was, unless the pool goes on because it is in use.
    `only_dead`: do nothing unless a pool is there that nobody serves or can go on serving.
    Raises CallerMistake, with nothing changed, for a plain one that is in use.
    """
    require_root()
    record = registry.record_at(mountpoint)
    served = record is not None and registry.is_served(record)
    if only_dead and (record is None or served):
        return ""
    mounted = _mount_of_pool(mountpoint, record)
    if record is None and mounted is None:
        raise registry.none_at(mountpoint)
    if record is None and manner is Manner.FORCE:
        raise HostFault(
            f"no record that can be read in {paths.pools_directory()} says who serves {mountpoint}: set "
            f"SHAREDFS_RUN_DIR as when it was mounted; `sharedfs umount --lazy {mountpoint}` ends it with its last user"
        )
    told = ""
    if served or record is None:
        # Without a record the keeper may well live, with another run directory: then it is not for us to pull it away.
        told = _take_from_users(mountpoint, mounted, record, manner)
    elif mounted is not None:
        syscalls.umount(mountpoint, syscalls.MNT_FORCE | syscalls.MNT_DETACH)
    if record is None or (served and manner is not Manner.FORCE and told):
        return told
    if served and not registry.wait_for_end(record, _LAZY_SECONDS if manner is Manner.LAZY else _END_SECONDS):
        if manner is Manner.LAZY:
            return f"nobody uses the pool any more, and its keeper (pid {record.keeper_pid}) is about to end"
        raise HostFault(
            f"the mount is gone and nobody uses the pool, but its keeper (pid {record.keeper_pid}) did not end within "
            f"{_END_SECONDS:.0f} s: {paths.daemon_log(record.name)} may say why"
        )
    registry.clean_up_dead(record)
    if not any(True for _ in registry.records()):
        _put_limits_back()
    return told


def _mount_of_pool(mountpoint: str, record: PoolRecord | None) -> Mount | None:
    """The pool's mount at `mountpoint`, None when it is not mounted there.

    Raises CallerMistake when something is mounted over it: umount(2) takes away what is on top.
    """
    device = None if record is None else record.device
    seen = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    of_pool = [mount for mount in seen if mount.kind == FILESYSTEM_TYPE and device in (None, mount.device)]
    if not of_pool:
        return None
    if seen[-1] is not of_pool[-1]:
        raise CallerMistake(f"a {seen[-1].kind} is mounted over {mountpoint}: `umount {mountpoint}` that first")
    return of_pool[-1]


def _take_from_users(mountpoint: str, mounted: Mount | None, record: PoolRecord | None, manner: Manner) -> str:
    """Take the mount away, and with FORCE the pool; what there is to tell: of LAZY and PLAIN, that the pool goes on."""
    keepers = _keepers(mountpoint, mounted, record)
    if manner is Manner.PLAIN and mounted is not None:
        if keepers:
            raise _in_use(mountpoint, keepers)
        _unmount_idle(mountpoint, mounted, record)
    elif mounted is not None:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH)
    if manner is Manner.FORCE and record is not None:
        with suppress(ProcessLookupError):
            os.kill(record.keeper_pid, signal.SIGTERM)
        return f"ended while in use by {keepers}: what they do with its files fails with ENOTCONN" if keepers else ""
    if not _goes_on(mounted, record, 0 if keepers else _LAST_USER_SECONDS):
        return ""
    keepers = keepers or _keepers(mountpoint, None, record) or _UNSEEN
    if manner is Manner.PLAIN and mounted is None:
        raise CallerMistake(
            f"the pool of {mountpoint} is unmounted here already and ends when its last user has gone: {keepers}. "
            f"`sharedfs umount --force {mountpoint}` ends it now"
        )
    return (
        f"the pool goes on without a mount here and ends when its last user has gone: {keepers}. "
        f"`sharedfs umount --force {mountpoint}` ends it now"
    )


def _unmount_idle(mountpoint: str, mounted: Mount, record: PoolRecord | None) -> None:
    """Unmount a pool that had no visible user. Raises CallerMistake when it is in use all the same."""
    above = mount_users.mounted_on(mounted)
    if above:
        raise CallerMistake(f"something is mounted in {mountpoint}: unmount {', '.join(above)} first")
    try:
        syscalls.umount(mountpoint)
    except OSError as error:
        if error.errno != EBUSY:
            raise
        raise _in_use(mountpoint, _keepers(mountpoint, mounted, record) or _UNSEEN) from None


def _goes_on(mounted: Mount | None, record: PoolRecord | None, patience_seconds: float) -> bool:
    """Whether somebody uses the pool without its mount. Its last user may be about to go."""
    deadline = time.monotonic() + patience_seconds
    while _lives(mounted, record):
        if time.monotonic() >= deadline:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _lives(mounted: Mount | None, record: PoolRecord | None) -> bool:
    """Whether the kernel has the filesystem still; where it does not tell, whether the pool is served."""
    device = mounted.device if mounted is not None else None if record is None else record.device
    lives = None if device is None else filesystem_lives(device)
    return lives if lives is not None else record is not None and registry.is_served(record)


def _in_use(mountpoint: str, keepers: str) -> CallerMistake:
    return CallerMistake(
        f"{mountpoint} is in use by {keepers}: end these first, or `sharedfs umount --lazy` to let them go on without "
        "a mount here, or --force to end the pool now"
    )


def _keepers(mountpoint: str, mounted: Mount | None, record: PoolRecord | None) -> str:
    """Who keeps the pool when `mounted` goes, in words: "" when nobody is seen."""
    hierarchy: MemoryHierarchy | None = None
    with suppress(HostFault):
        hierarchy = find_memory_hierarchy()
    device = mounted.device if mounted is not None else None if record is None else record.device
    users = mount_users.users_of(mountpoint, device, mounted, hierarchy)
    others = mount_users.other_mountpoints(device, mounted)
    return ", ".join(filter(None, [mount_users.named(users), *(f"its mount at {other}" for other in others)]))


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
        raise HostFault(f"unmounted, but limits of a dead controller may not be back: {done.stderr.strip()}")


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
