"""The daemon dies, is stopped, or has no passthrough: what users see, and that the host is as it was afterwards."""

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENODEV, ENOTCONN
from pathlib import Path

import pytest

from sharedfs import places
from sharedfs.kernel.cgroups import find_memory_hierarchy
from sharedfs.kernel.mounts import mount_at
from tests.support.mount import MountedPool, mounted_pool, sharedfs, unmount_whatever_happened
from tests.support.posix import Child, fails, opened
from tests.support.tenants import wait_until

PAGE = 4096
NEW = os.O_RDWR | os.O_CREAT


@pytest.fixture
def options(unique_name: str) -> list[str]:
    return ["--name", unique_name, "--size", "64M", "--cgroup-parent", f"{unique_name}-pools"]


def assert_nothing_left(place: Path, name: str) -> None:
    assert mount_at(str(place)) is None
    assert not find_memory_hierarchy().directory(f"{name}-pools").exists()
    assert not places.pool_directory(name).exists()
    assert os.listdir(place) == []


def kill(pool: MountedPool) -> None:
    process_id = pool.status().daemon_pid
    os.kill(process_id, signal.SIGKILL)
    wait_until(lambda: is_dead(pool.path), "the daemon is dead")


def is_dead(place: Path) -> bool:
    """A request that is under way as the connection ends fails with ECONNABORTED, those after it with ENOTCONN."""
    try:
        os.statvfs(place)
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


def test_a_killed_daemon_leaves_a_mount_that_can_be_unmounted_and_mounted_again(
    pool: MountedPool, unique_name: str, options: list[str]
) -> None:
    with opened_until_death(pool.path / "f") as fd:
        os.write(fd, b"x" * PAGE)
        mapping = mmap.mmap(fd, PAGE)
        kill(pool)
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

    sharedfs("umount", str(pool.path))
    assert_nothing_left(pool.path, unique_name)

    sharedfs("mount", str(pool.path), *options)
    assert os.listdir(pool.path) == []
    (pool.path / "f").write_bytes(b"again")
    sharedfs("umount", str(pool.path))
    assert_nothing_left(pool.path, unique_name)


def test_a_dead_pools_name_can_be_used_elsewhere(
    pool: MountedPool, run_dir: Path, unique_name: str, options: list[str]
) -> None:
    kill(pool)
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    sharedfs("mount", str(elsewhere), *options)
    try:
        (elsewhere / "f").write_bytes(b"works")
        sharedfs("umount", str(pool.path))
        assert mount_at(str(pool.path)) is None
        assert (elsewhere / "f").read_bytes() == b"works"
        sharedfs("umount", str(elsewhere))
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


def test_a_daemon_that_breaks_leaves_its_log_and_no_mount(run_dir: Path, unique_name: str, options: list[str]) -> None:
    place = run_dir / "mnt"
    place.mkdir()
    script = (
        "from sharedfs import daemon, places\n"
        f"options = daemon.PoolOptions({str(place)!r}, {unique_name!r}, 1 << 26, {options[-1]!r})\n"
        "with daemon.pool(options):\n"
        f"    places.daemon_log({unique_name!r}).write_text('why')\n"
        "    raise RuntimeError('broken')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "RuntimeError: broken" in done.stderr
    assert mount_at(str(place)) is None
    assert places.daemon_log(unique_name).read_text() == "why"
    assert "is dead" in sharedfs("status").stderr
    sharedfs("umount", str(place))
    assert_nothing_left(place, unique_name)


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
