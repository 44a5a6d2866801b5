"""The pools of this host as their run-time directories tell it: records, locks, and what a dead daemon left behind."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from sharedfs import places
from sharedfs.errors import CallerMistake
from sharedfs.feed_types import PoolRecord
from sharedfs.kernel.cgroups import find_memory_hierarchy
from sharedfs.pool_cgroup import remove_pool_cgroups

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# The kernel tells a start time in ticks since boot; the time of boot itself moves with each correction of the clock.
_START_TOLERANCE_SECONDS = 5.0
_POLL_SECONDS = 0.01
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
    socket = places.feed_socket(name)
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES:
        raise CallerMistake(f"{socket} is too long for a socket: choose a shorter name, or SHAREDFS_RUN_DIR")


def records() -> Iterator[PoolRecord]:
    """The pools that have a record, whether their daemon lives or not."""
    with suppress(FileNotFoundError):
        for directory in sorted(places.pools_directory().iterdir()):
            record = read_record(directory.name)
            if record is not None:
                yield record


def record_at(mountpoint: str) -> PoolRecord | None:
    """The record of the pool at `mountpoint`, whether its daemon lives or not."""
    return next((record for record in records() if record.mountpoint == mountpoint), None)


def read_record(name: str) -> PoolRecord | None:
    try:
        return PoolRecord.model_validate_json(_record_file(name).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def write_record(record: PoolRecord) -> None:
    file = _record_file(record.name)
    draft = file.with_suffix(".new")
    draft.write_text(record.model_dump_json(indent=2) + "\n")
    draft.rename(file)


def is_served(record: PoolRecord) -> bool:
    """Whether the daemon of the record lives: the same process, not another one with its id."""
    return daemon_of(record) is not None


def daemon_of(record: PoolRecord) -> psutil.Process | None:
    try:
        process = psutil.Process(record.daemon_pid)
        same = abs(process.create_time() - record.daemon_started) < _START_TOLERANCE_SECONDS
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except psutil.NoSuchProcess:
        pass
    return None


def wait_for_end(record: PoolRecord, seconds: float) -> bool:
    """Whether the daemon ends in time. A zombie has ended: it may take its init process seconds to collect it."""
    deadline = time.monotonic() + seconds
    while is_served(record):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def claim(name: str) -> int:
    """Become the one who serves the pool `name`: a descriptor whose lock lives as long as this process.

    Raises CallerMistake when another daemon serves it.
    """
    directory = places.pool_directory(name)
    places.pools_directory().mkdir(parents=True, exist_ok=True)
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # a daemon that ends took its directory away meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            record = read_record(name)
            where = f" at {record.mountpoint}" if record is not None else ""
            raise CallerMistake(f"a pool named {name} is already mounted{where}: choose another name") from None
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # the lock of a daemon that ended just now, in a directory that is gone


def forget(name: str) -> None:
    """Remove the run-time directory of a pool."""
    shutil.rmtree(places.pool_directory(name), ignore_errors=True)


def clean_up_dead(record: PoolRecord) -> None:
    """Remove what a daemon that died left on the host: its cgroup and its run-time directory (not its mount)."""
    remove_pool_cgroups(find_memory_hierarchy(), record.removable_cgroups)
    forget(record.name)


def _record_file(name: str) -> Path:
    return places.pool_directory(name) / "pool.json"
