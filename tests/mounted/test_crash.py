"""Daemon or keeper dies, is stopped, or has no passthrough: what users see, and what is left on the host afterwards."""

import ctypes
import fcntl
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ECONNABORTED, ENODEV, ENOTCONN
from pathlib import Path

import psutil
import pytest

from sharedfs.common import paths
from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import mount_at
from sharedfs.pool import registry
from sharedfs.supervisor.daemons import MOST_FAILURES
from tests.support.kills import is_zombie
from tests.support.mount import MountedPool, mounted_pool, sharedfs, unmount, unmount_whatever_happened
from tests.support.posix import Child, fails, opened, refused
from tests.support.tenants import wait_until

PAGE = 4096
FS_IMMUTABLE_FL = 0x10
_SYS_PIDFD_GETFD = 438  # on every architecture
NEW = os.O_RDWR | os.O_CREAT


@pytest.fixture
def options(unique_name: str) -> list[str]:
    return ["--name", unique_name, "--size", "64M", "--cgroup-parent", f"{unique_name}-pools"]


def assert_nothing_left(place: Path, name: str) -> None:
    assert mount_at(str(place)) is None
    assert not find_memory_hierarchy().directory(f"{name}-pools").exists()
    assert not paths.pool_directory(name).exists()
    assert os.listdir(place) == []


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


def test_a_killed_daemon_is_followed_by_another_and_nobody_notices(pool: MountedPool) -> None:
    """mountpoint-s3-csi-driver#576, libfuse#1219: ENOTCONN for all, or a restart that lost the kernel's look-ups."""
    with opened(pool.path / "f", NEW) as fd, opened(pool.path, os.O_RDONLY) as directory:
        os.write(fd, b"x" * 2 * PAGE)
        with mmap.mmap(fd, 2 * PAGE) as mapping:
            for turn in range(3):
                kill_daemon(pool)
                assert os.pread(fd, 1, PAGE) == b"x"
                mapping[0] = turn
                assert os.pread(fd, 1, 0) == bytes([turn])
                assert os.pwrite(fd, b"y", 1) == 1
                assert mapping[1] == ord("y")
                assert os.listdir(directory) == ["f", *(f"made-{number}" for number in range(turn))][::-1]
                (pool.path / f"made-{turn}").write_bytes(b"")
    status = json.loads(sharedfs("status", "--json").stdout)["pools"][0]
    assert (status["restarts"], status["survives"]) == (3, "the daemon's death")


def paths_in_use(pool: MountedPool) -> set[str]:
    answers = [pool.get("/v1/tenants/files", path=tenant.path) for tenant in pool.holdings().tenants]
    return {file["path"] for answer in answers for file in answer.raise_for_status().json()["files"]}


def test_what_has_no_name_any_more_lives_on_until_it_is_closed(pool: MountedPool) -> None:
    free = pool.resident_by_statfs()
    with (
        opened(pool.path, os.O_PATH) as root,
        opened(pool.path / "f", NEW) as fd,
        opened(pool.path, os.O_TMPFILE | os.O_RDWR) as nameless,
    ):
        os.write(fd, b"x" * PAGE)
        os.write(nameless, b"y" * PAGE)
        (pool.path / "d").mkdir()
        with opened(pool.path / "d", os.O_RDONLY) as directory:
            os.unlink(pool.path / "f")
            os.rmdir(pool.path / "d")
            kill_daemon(pool)
            assert "f (deleted)" in paths_in_use(pool)  # asked before the kernel does, which must be told the same
            assert os.pread(fd, PAGE, 0) == b"x" * PAGE
            assert os.pread(nameless, PAGE, 0) == b"y" * PAGE
            assert os.fstat(fd).st_nlink == os.fstat(nameless).st_nlink == 0
            assert os.listdir(directory) == []
            os.link(f"/proc/self/fd/{nameless}", "named", dst_dir_fd=root, follow_symlinks=True)
    assert (pool.path / "named").read_bytes() == b"y" * PAGE
    os.unlink(pool.path / "named")
    wait_until(lambda: pool.resident_by_statfs() == free, "all memory is back")


@pytest.mark.parametrize("killed", [False, True])
def test_what_has_no_name_any_more_goes_whatever_chattr_said(pool: MountedPool, killed: bool) -> None:
    free = pool.resident_by_statfs()
    (pool.path / "d").mkdir()
    with opened(pool.path / "f", NEW) as fd, opened(pool.path / "d", os.O_RDONLY) as directory:
        os.write(fd, b"x" * PAGE)
        os.unlink(pool.path / "f")
        os.rmdir(pool.path / "d")
        for held in (fd, directory):
            fcntl.ioctl(held, syscalls.FS_IOC_SETFLAGS, FS_IMMUTABLE_FL.to_bytes(4, "little"))
        if killed:
            kill_daemon(pool)
    wait_until(lambda: pool.resident_by_statfs() == free, "all memory is back")
    assert pool.check_conservation().resident_bytes == free
    assert "ERROR" not in paths.daemon_log(pool.name).read_text()


def test_a_directory_that_is_being_read_is_read_on(pool: MountedPool) -> None:
    names = {f"{'long' * 20}-{number:05}" for number in range(3000)}
    for name in names:
        (pool.path / name).touch()
    with os.scandir(pool.path) as entries:
        seen = [next(entries).name for _ in range(100)]
        kill_daemon(pool)
        seen += [entry.name for entry in entries]
    assert sorted(seen) == sorted(names)


def test_mapped_memory_is_there_while_no_daemon_is(pool: MountedPool) -> None:
    with opened(pool.path / "f", NEW) as fd:
        os.ftruncate(fd, 4 * PAGE)
        with mmap.mmap(fd, 4 * PAGE) as mapping:
            status = pool.status()
            os.kill(status.keeper_pid, signal.SIGSTOP)
            try:
                os.kill(status.daemon_pid, signal.SIGKILL)
                wait_until(lambda: is_zombie(status.daemon_pid), "the daemon is dead")
                for page in range(4):
                    mapping[page * PAGE] = page + 1
            finally:
                os.kill(status.keeper_pid, signal.SIGCONT)
            assert [os.pread(fd, 1, page * PAGE)[0] for page in range(4)] == [1, 2, 3, 4]


def test_a_stopped_daemon_goes_on_where_it_was(pool: MountedPool) -> None:
    """Nothing takes it for dead, however long it is stopped."""
    process_id = pool.status().daemon_pid
    begun, begins = os.pipe()

    def write() -> None:
        os.write(begins, b"now")
        (pool.path / "f").write_bytes(b"x")

    os.kill(process_id, signal.SIGSTOP)
    try:
        writer = Child(write)
        assert os.read(begun, 3) == b"now"
    finally:
        os.close(begun)
        os.close(begins)
        os.kill(process_id, signal.SIGCONT)
    writer.result()
    assert (pool.path / "f").read_bytes() == b"x"
    assert (pool.status().daemon_pid, pool.status().restarts) == (process_id, 0)


def test_reload_serves_on_with_another_daemon(pool: MountedPool) -> None:
    with opened(pool.path / "f", NEW) as fd:
        os.write(fd, b"x" * PAGE)
        before = pool.status()
        sharedfs("reload", str(pool.path))
        after = pool.status()
        assert (after.restarts, after.keeper_pid) == (1, before.keeper_pid)
        assert after.daemon_pid != before.daemon_pid
        assert os.pread(fd, PAGE, 0) == b"x" * PAGE
    refused = sharedfs("reload", "/nowhere", check=False)
    assert refused.returncode == 2
    assert "no pool is mounted at /nowhere" in refused.stderr


def test_options_of_a_remount_outlive_the_daemon(pool: MountedPool) -> None:
    sharedfs("mount", str(pool.path), "-o", "remount,size=64m,idle=7")
    kill_daemon(pool)
    assert pool.status().size_bytes == 64 << 20
    assert "idle=7" in pool.status().settings


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
    pool: MountedPool, unique_name: str, options: list[str]
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

    refused = sharedfs("mount", str(pool.path), *options, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"sharedfs umount {pool.path}" in refused.stderr
    status = sharedfs("status", "--json")
    assert json.loads(status.stdout) == {"pools": []}
    assert f"sharedfs umount {pool.path}" in status.stderr

    unmount(str(pool.path))
    assert_nothing_left(pool.path, unique_name)

    sharedfs("mount", str(pool.path), *options)
    assert os.listdir(pool.path) == []
    (pool.path / "f").write_bytes(b"again")
    unmount(str(pool.path))
    assert_nothing_left(pool.path, unique_name)


def connection_of(process_id: int) -> int:
    """A copy of the daemon's descriptor of /dev/fuse: with it the connection outlives the daemon, and requests wait."""
    numbers = os.listdir(f"/proc/{process_id}/fd")
    (number,) = (int(fd) for fd in numbers if os.readlink(f"/proc/{process_id}/fd/{fd}") == "/dev/fuse")
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
    pool: MountedPool, run_dir: Path, unique_name: str, options: list[str]
) -> None:
    kill_all(pool)
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    sharedfs("mount", str(elsewhere), *options)
    try:
        (elsewhere / "f").write_bytes(b"works")
        unmount(str(pool.path))
        assert mount_at(str(pool.path)) is None
        assert (elsewhere / "f").read_bytes() == b"works"
        unmount(str(elsewhere))
    finally:
        unmount_whatever_happened(elsewhere)
    assert_nothing_left(elsewhere, unique_name)


@contextmanager
def in_foreground(place: Path, options: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    place.mkdir()
    daemon = subprocess.Popen([sys.executable, "-m", "sharedfs", "mount", str(place), "--foreground", *options])
    try:
        wait_until(lambda: b"x" if sharedfs("status", "--json").stdout.count(str(place)) else b"", "it serves", 10)
        yield daemon
    finally:
        unmount_whatever_happened(place)
        daemon.wait(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_foreground_daemon_and_puts_everything_back(
    run_dir: Path, unique_name: str, options: list[str], number: signal.Signals
) -> None:
    with in_foreground(run_dir / "mnt", options) as daemon, opened_until_death(run_dir / "mnt" / "f") as fd:
        os.write(fd, b"in use all the while")

        def use() -> None:
            with suppress(OSError):  # ends with the connection
                while True:
                    os.pread(fd, 10, 0)
                    os.fchmod(fd, 0o600)

        users = [Child(use) for _ in range(3)]
        time.sleep(0.2)
        daemon.send_signal(number)
        assert daemon.wait(10) == 0
        assert_nothing_left(run_dir / "mnt", unique_name)
        with fails(ENOTCONN):
            os.pread(fd, 1, 0)
        for user in users:
            user.result()


def test_umount_ends_the_foreground_daemon(run_dir: Path, unique_name: str, options: list[str]) -> None:
    with in_foreground(run_dir / "mnt", options) as daemon:
        subprocess.run(["umount", run_dir / "mnt"], check=True)
        assert daemon.wait(10) == 0
    assert_nothing_left(run_dir / "mnt", unique_name)


def test_without_passthrough_all_but_shared_mappings_works(run_dir: Path, unique_name: str, options: list[str]) -> None:
    with mounted_pool(run_dir / "mnt", unique_name, *options[2:], "--no-passthrough") as pool:
        with opened(pool.path / "f", NEW) as fd:
            os.write(fd, b"x" * 3 * PAGE)
            assert os.pread(fd, 3, PAGE) == b"xxx"
            with fails(ENODEV):
                mmap.mmap(fd, PAGE)
            with mmap.mmap(fd, 3 * PAGE, mmap.MAP_PRIVATE) as private:
                assert private[2 * PAGE] == ord("x")
                private[0] = 7
                assert os.pread(fd, 1, 0) == b"x"
            reader, writer = os.pipe()
            os.pwrite(fd, b"new", 0)
            assert os.sendfile(writer, fd, 0, 5) == 5
            assert os.read(reader, 5) == b"newxx"
            os.close(reader)
            os.close(writer)
        script = pool.path / "script"
        script.write_bytes(b"#!/bin/sh\nexit 7\n")
        script.chmod(0o755)
        assert subprocess.run([script], check=False).returncode == 7
        status = pool.status()
        assert status.data_path == "exact"
        assert "ENODEV" in status.mmap
        assert "ENODEV" in sharedfs("status").stdout
        pool.check_conservation()
    assert_nothing_left(run_dir / "mnt", unique_name)


def test_what_can_be_sent_is_known_to_the_next_daemon(pool: MountedPool) -> None:
    """sendfile(2) from the mount is for files that nobody can write to."""
    for name in ("still", "written"):
        (pool.path / name).write_bytes(b"x" * PAGE)
    reader, writer = os.pipe()
    with (
        opened(pool.path / "still", os.O_RDONLY) as still,
        opened(pool.path / "written", os.O_RDONLY) as read,
        opened(pool.path / "written") as written,
        mmap.mmap(written, PAGE) as mapping,
    ):
        kill_daemon(pool)
        assert os.sendfile(writer, still, 0, PAGE) == PAGE
        assert os.read(reader, PAGE) == b"x" * PAGE
        mapping[0] = 1
        with refused():
            os.sendfile(writer, read, 0, 8)
    os.close(reader)
    os.close(writer)


def test_of_pools_in_one_parent_the_last_one_removes_it(run_dir: Path, unique_name: str) -> None:
    hierarchy = find_memory_hierarchy()
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}/made")
    with ExitStack() as later:
        with mounted_pool(run_dir / "first", f"{unique_name}-1", *options):
            later.enter_context(mounted_pool(run_dir / "second", f"{unique_name}-2", *options))
        assert hierarchy.directory(f"{unique_name}/made/{unique_name}-2").exists()
        unmount(str(run_dir / "second"))
        assert not hierarchy.directory(unique_name).exists()


def test_cgroups_that_were_there_stay(run_dir: Path, unique_name: str) -> None:
    hierarchy = find_memory_hierarchy()
    existing = hierarchy.directory(unique_name)
    existing.mkdir()
    try:
        with mounted_pool(
            run_dir / "mnt", unique_name, "--size", "64M", "--cgroup-parent", f"{unique_name}/made/deep"
        ) as pool:
            assert pool.status().pool_cgroup == f"/{unique_name}/made/deep/{unique_name}"
        assert [entry.name for entry in existing.iterdir() if entry.is_dir()] == []
    finally:
        existing.rmdir()
