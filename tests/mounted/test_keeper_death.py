"""The keeper dies, gives up, or is killed with its daemon: what is left on the host, and how it is cleared away."""

import ctypes
import json
import mmap
import os
import signal
from contextlib import suppress
from errno import ECONNABORTED, ENOTCONN
from pathlib import Path

import psutil
import pytest

from sharedfs.common import paths
from sharedfs.linux.mountinfo import mount_at
from sharedfs.pool import registry
from sharedfs.supervisor.daemons import MOST_FAILURES
from tests.support.deaths import assert_nothing_left, kill_all, not_connected, opened_until_death
from tests.support.mount import MountedPool, sharedfs, unmount, unmount_whatever_happened
from tests.support.posix import Child, fails
from tests.support.tenants import wait_until

PAGE = 4096
_SYS_PIDFD_GETFD = 438  # on every architecture


def test_the_keepers_death_ends_the_mount_cleanly(pool: MountedPool, unique_name: str) -> None:
    """No service manager has its descriptors here."""
    with opened_until_death(pool.path / "f") as fd:
        os.write(fd, b"x")
        os.kill(pool.status().keeper_pid, signal.SIGKILL)
        wait_until(lambda: not paths.pool_directory(unique_name).exists(), "the daemon has cleaned up", 20)
        assert_nothing_left(pool.path, unique_name)
        wait_until(lambda: not_connected(fd), "the connection is over")


def test_the_keeper_gives_up_when_daemons_die_young(pool: MountedPool, unique_name: str) -> None:
    status = pool.status()
    dead: set[int] = set()

    def kill_whoever_serves() -> bool:
        if not registry.is_served(record):
            return True
        with suppress(FileNotFoundError, ProcessLookupError):
            children = Path(f"/proc/{status.keeper_pid}/task/{status.keeper_pid}/children").read_text()
            for process_id in set(map(int, children.split())) - dead:
                if len(os.listdir(f"/proc/{process_id}/task")) > 1:  # it has begun to serve; the spare has one thread
                    dead.add(process_id)
                    os.kill(process_id, signal.SIGKILL)
        return False

    record = registry.record_at(str(pool.path))
    assert record is not None
    wait_until(kill_whoever_serves, "the keeper has given up", 120)
    assert len(dead) >= MOST_FAILURES  # more where we were too slow, and one lived for a second
    assert mount_at(str(pool.path)) is None
    assert "giving up" in paths.daemon_log(unique_name).read_text()
    assert f"sharedfs umount {pool.path}" in sharedfs("status").stderr
    unmount(str(pool.path))
    assert_nothing_left(pool.path, unique_name)


def test_a_mount_of_which_all_processes_were_killed_can_be_unmounted_and_mounted_again(
    pool: MountedPool, unique_name: str, mount_options: list[str]
) -> None:
    with opened_until_death(pool.path / "f") as fd:
        os.write(fd, b"x" * PAGE)
        mapping = mmap.mmap(fd, PAGE)
        kill_all(pool)
        with fails(ENOTCONN):
            os.pread(fd, 1, 0)
        with fails(ENOTCONN):
            os.stat(pool.path / "f")
        assert mapping[0] == ord("x"), "mapped memory lives until it is unmapped"
        mapping.close()

    refused = sharedfs("mount", str(pool.path), *mount_options, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"sharedfs umount {pool.path}" in refused.stderr
    status = sharedfs("status", "--json")
    assert json.loads(status.stdout) == {"pools": []}
    assert f"sharedfs umount {pool.path}" in status.stderr

    unmount(str(pool.path))
    assert_nothing_left(pool.path, unique_name)

    sharedfs("mount", str(pool.path), *mount_options)
    assert os.listdir(pool.path) == []
    (pool.path / "f").write_bytes(b"again")
    unmount(str(pool.path))
    assert_nothing_left(pool.path, unique_name)


def descriptors_of(process_id: int) -> dict[int, str]:
    """What each of its descriptors is of, but for those that it closed while we looked."""
    found = {}
    for number in os.listdir(f"/proc/{process_id}/fd"):
        with suppress(FileNotFoundError):
            found[int(number)] = os.readlink(f"/proc/{process_id}/fd/{number}")
    return found


def connection_of(process_id: int) -> int:
    """A copy of the daemon's descriptor of /dev/fuse: with it the connection outlives the daemon, and requests wait."""
    (number,) = (fd for fd, path in descriptors_of(process_id).items() if path == "/dev/fuse")
    process = os.pidfd_open(process_id)
    try:
        copy: int = ctypes.CDLL(None).syscall(_SYS_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)
    assert copy >= 0
    return copy


def test_unmounting_a_dead_pool_ends_who_waits_for_an_answer(pool: MountedPool) -> None:
    """We have no file of the pool open ourselves: a process that we start would close it, and wait for an answer."""
    (pool.path / "f").write_bytes(b"x")
    status = pool.status()
    is_open, opens = os.pipe()

    def wait_for_an_answer() -> None:
        with opened_until_death(pool.path / "f") as fd:
            os.write(opens, b"x")
            wait_until(lambda: not psutil.pid_exists(status.keeper_pid), "keeper and daemon are dead", 20)
            os.write(opens, b"y")
            os.pread(fd, 1, 0)

    reader = Child(wait_for_an_answer)
    connection = connection_of(status.daemon_pid)
    try:
        assert os.read(is_open, 1) == b"x"
        os.kill(status.keeper_pid, signal.SIGSTOP)
        os.kill(status.daemon_pid, signal.SIGKILL)
        os.kill(status.keeper_pid, signal.SIGKILL)
        assert os.read(is_open, 1) == b"y"  # from here on it sleeps in pread(2) only
        asleep = (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
        wait_until(lambda: psutil.Process(reader.pid).status() in asleep, "it waits for an answer", 20)
        unmount(str(pool.path))
        with pytest.raises(OSError, match=rf"^\[Errno ({ENOTCONN}|{ECONNABORTED})\]"):
            reader.result()
    finally:
        os.close(connection)
        os.close(is_open)
        os.close(opens)


def test_a_dead_pools_name_can_be_used_elsewhere(
    pool: MountedPool, run_dir: Path, unique_name: str, mount_options: list[str]
) -> None:
    kill_all(pool)
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    sharedfs("mount", str(elsewhere), *mount_options)
    try:
        (elsewhere / "f").write_bytes(b"works")
        unmount(str(pool.path))
        assert mount_at(str(pool.path)) is None
        assert (elsewhere / "f").read_bytes() == b"works"
        unmount(str(elsewhere))
    finally:
        unmount_whatever_happened(elsewhere)
    assert_nothing_left(elsewhere, unique_name)
