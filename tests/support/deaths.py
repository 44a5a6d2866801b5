"""Daemons and keepers that are killed, and what is to be seen of it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOTCONN
from pathlib import Path

from sharedfs.common import paths
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import mount_at
from tests.support.mount import MountedPool
from tests.support.tenants import wait_until

NEW = os.O_RDWR | os.O_CREAT


def kill_daemon(pool: MountedPool) -> None:
    """Kill it; another one has taken over when this returns."""
    before = pool.status()
    os.kill(before.daemon_pid, signal.SIGKILL)
    wait_until(lambda: pool.status_or_none() not in (None, before), "another daemon answers", 20)
    assert pool.status().restarts == before.restarts + 1
    assert pool.status().keeper_pid == before.keeper_pid


def kill_all(pool: MountedPool) -> None:
    """Keeper and daemon at once: neither can clean up after the other."""
    status = pool.status()
    os.kill(status.keeper_pid, signal.SIGSTOP)
    os.kill(status.daemon_pid, signal.SIGKILL)
    os.kill(status.keeper_pid, signal.SIGKILL)
    wait_until(lambda: is_dead(pool.path), "the connection is over")


def is_dead(place: Path) -> bool:
    """A request that is under way as the connection ends fails with ECONNABORTED, those after it with ENOTCONN."""
    try:
        os.statvfs(place)
    except OSError as error:
        return error.errno == ENOTCONN
    return False


def not_connected(fd: int) -> bool:
    try:
        os.pread(fd, 1, 0)
    except OSError as error:
        return error.errno == ENOTCONN
    return False


@contextmanager
def opened_until_death(path: Path) -> Iterator[int]:
    """close(2) may tell that there is nobody to tell."""
    fd = os.open(path, NEW)
    yield fd
    with suppress(OSError):
        os.close(fd)


def assert_nothing_left(place: Path, name: str) -> None:
    assert mount_at(str(place)) is None
    assert not find_memory_hierarchy().directory(f"{name}-pools").exists()
    assert not paths.pool_directory(name).exists()
    assert os.listdir(place) == []
