"""The pools of this host as their run-time directories tell it: records, and what a dead keeper left behind."""

import os
import re
import time
from collections.abc import Iterator

from pydantic import ValidationError

from sharedfs.api.types import PoolRecord
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake
from sharedfs.common.trusted_paths import check_trusted
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import mounts
from sharedfs.pool import lock
from sharedfs.pool.cgroup import POLL_SECONDS, remove_pool_cgroups

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SOCKET_PATH_BYTES = 107  # sun_path, unix(7)


def name_for(mountpoint: str) -> str:
    """The default name of a pool: its mountpoint with dashes.

    >>> name_for("/mnt/shared")
    'mnt-shared'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", mountpoint.strip("/"))[:64].lstrip("-_.") or "pool"


def check_name(name: str) -> None:
    """Raises CallerMistake unless `name` can be a directory and a cgroup, and its socket has a short enough path."""
    if not _NAME.fullmatch(name):
        raise CallerMistake(f"{name!r} cannot name a pool: use letters, digits, dots, dashes, at most 64 of them")
    socket = paths.feed_socket(name)
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES:
        raise CallerMistake(f"{socket} is too long for a socket: choose a shorter name, or SHAREDFS_RUN_DIR")


def records() -> Iterator[PoolRecord]:
    """The pools that have a record, whether their daemon lives or not. Raises CallerMistake as `read_record`."""
    if check_trusted(paths.pools_directory(), paths.KEEP_TO_ROOT):
        for directory in sorted(paths.pools_directory().iterdir()):
            record = read_record(directory.name)
            if record is not None:
                yield record


def record_at(mountpoint: str) -> PoolRecord | None:
    """The record of the pool at `mountpoint`, whether its daemon lives or not.

    A pool that was unmounted lazily and goes on may have had the same place: the one that is mounted there is meant.
    """
    found = [record for record in records() if record.mountpoint == mountpoint]
    mounted = {mount.device for mount in mounts() if mount.mountpoint == mountpoint} if len(found) > 1 else set()
    return next((record for record in found if record.device in mounted), found[0] if found else None)


def read_record(name: str) -> PoolRecord | None:
    """The record of a pool. It says what is ended and removed: none is taken from where others than root can write.

    Raises CallerMistake there.
    """
    if paths.pool_directory(name).is_symlink() or not check_trusted(paths.pool_directory(name), paths.KEEP_TO_ROOT):
        return None
    try:
        return PoolRecord.model_validate_json(paths.pool_record(name).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def damaged() -> list[str]:
    """Names of the pools whose record cannot be read: nobody can tell where they are mounted."""
    if not check_trusted(paths.pools_directory(), paths.KEEP_TO_ROOT):
        return []
    names = sorted(directory.name for directory in paths.pools_directory().iterdir())
    return [name for name in names if paths.pool_record(name).is_file() and read_record(name) is None]


def damage(name: str) -> str:
    """What to do about such a pool, in a line."""
    return (
        f"{paths.pool_record(name)} is damaged: pool {name} serves its users, and cannot be shown or reloaded; "
        "`sharedfs umount MOUNTPOINT` ends it"
    )


def none_at(mountpoint: str) -> CallerMistake:
    """What a command says that finds no pool to work on."""
    said = [f"no pool is mounted at {mountpoint}: `sharedfs status` lists those that are", *map(damage, damaged())]
    return CallerMistake("; ".join(said))


def is_served(record: PoolRecord) -> bool:
    """Whether somebody serves the pool, or holds what is needed to go on serving it."""
    return lock.is_claimed(record.name)


def wait_for_end(record: PoolRecord, seconds: float) -> bool:
    """Whether the pool's processes end in time."""
    deadline = time.monotonic() + seconds
    while is_served(record):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def clean_up_dead(record: PoolRecord) -> None:
    """Remove what a daemon that died left on the host: its cgroup and its run-time directory (not its mount)."""
    remove_pool_cgroups(find_memory_hierarchy(), record.removable_cgroups)
    lock.forget(record.name)
