"""The host misbehaves: no descriptors, a stopped daemon, a clock that is set, cgroups that cannot be written."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from sharedfs.storage import inodes
from sharedfs.storage.tmpfs import PrivateTmpfs, make_tmpfs
from sharedfs.storage.tree import Store
from tests.support.controller import bill_of, bills, running_controller
from tests.support.mount import MountedPool, sharedfs
from tests.support.posix import in_child, own_mount_namespace
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
FILES = 300


@contextmanager
def open_files_of(process_id: int, limit: int) -> Iterator[None]:
    before = resource.prlimit(process_id, resource.RLIMIT_NOFILE)
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process_id, resource.RLIMIT_NOFILE, before)


def descriptors(process_id: int) -> int:
    return len(os.listdir(f"/proc/{process_id}/fd"))


def lowest_free(process_id: int) -> int:
    taken = {int(number) for number in os.listdir(f"/proc/{process_id}/fd")}
    return next(number for number in count() if number not in taken)


def test_a_daemon_without_descriptors_serves_and_books_as_before(pool: MountedPool, tenants: Tenants) -> None:
    """Its caches shrink. EMFILE used to reach tenants after their write was done, and to end the daemon."""
    tenant, other = tenants.make("a"), tenants.make("b")
    for number in range(FILES):
        (pool.path / f"d{number}").mkdir()
        (pool.path / f"d{number}" / "f").write_bytes(b"%d" % number)
    daemon = pool.status().daemon_pid
    cached = descriptors(daemon)
    assert cached > FILES
    with open_files_of(daemon, cached // 4):
        for number in range(FILES):
            name = f"{pool.path}/d{number}"
            tenant.do(f"fd = os.open('{name}/f', os.O_RDWR)")
            assert tenant.do("result = int(os.pread(fd, 9, 0))") == number
            tenant.do(f"os.pwrite(fd, b'x', 5); os.close(fd); os.rename('{name}/f', '{pool.path}/f{number}')")
            tenant.do(f"os.symlink('x', '{name}/l'); os.mkfifo('{name}/p')")
            tenant.do(f"os.link('{pool.path}/f{number}', '{name}/h')")
            assert tenant.do(f"result = sorted(os.listdir('{name}'))") == ["h", "l", "p"]
        other.do(f"os.mkdir('{pool.path}/last')")  # a process that it has not seen before
        other.do(f"fd = os.open('{pool.path}/last/f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({MIB}), 0)")
        other.do(
            f"os.ftruncate(fd, {2 * MIB}); os.posix_fallocate(fd, {2 * MIB}, {20 * MIB}); m = mmap.mmap(fd, {MIB})"
        )
    pool.wait_for_scan()
    assert pool.used(tenant) == FILES * PAGE
    assert pool.used(other) == 22 * MIB
    pool.check_conservation()


def test_a_file_that_grows_is_reserved_when_descriptors_are_few(pool: MountedPool, tenants: Tenants) -> None:
    """It stayed sparse, and who mapped it was charged for what it touched."""
    tenant = tenants.make("a")
    tenant.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({MIB}), 0)")
    daemon = pool.status().daemon_pid
    for number in range(FILES):  # whose descriptors can be closed
        (pool.path / f"d{number}").mkdir()
        (pool.path / f"d{number}" / "f").write_bytes(b"x")
    tenant.do("os.ftruncate(fd, 2 << 20); os.ftruncate(fd, 1 << 20)")  # its own is kept
    limit = wait_until(lambda: (free := lowest_free(daemon)) > FILES and free, "no smaller number is free for a moment")
    with open_files_of(daemon, limit):
        tenant.do("os.ftruncate(fd, 2 << 20)")
    assert (pool.path / "f").stat().st_blocks * 512 == 2 * MIB
    pool.wait_for_scan()
    assert pool.used(tenant) == 2 * MIB


def test_a_rename_keeps_its_directories_when_descriptors_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second directory's descriptor used to take the place of the first one's, which was closed meanwhile."""
    monkeypatch.setattr(inodes, "_PATH_DESCRIPTORS", 1)
    fsmount_fd, root_fd = make_tmpfs(16 * MIB)
    os.close(fsmount_fd)
    store = Store(PrivateTmpfs(root_fd))
    try:
        root = store.node(1)
        first, second = (store.make_directory(root, name, 0o755, 0, 0, 0)[0] for name in (b"first", b"second"))
        store.make(first, b"f", 0o100644, 0, 0, 0)
        store.rename(first, b"f", second, b"g", 0)
        assert store.lookup(second, b"g")[1].st_nlink == 1
    finally:
        store.close()


def test_a_stopped_daemon_keeps_everybody_waiting_and_loses_nothing(pool: MountedPool, tenants: Tenants) -> None:
    """Two seconds of SIGSTOP, in which a tenant asks and another one exits."""
    asks, exits = (tenants.make(name, limit_bytes=64 * MIB) for name in ("asks", "exits"))
    for tenant in (asks, exits):
        tenant.do(f"fd = os.open({str(pool.path / 'f')!r}, os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({MIB}), 0)")
    exits.do("os.close(fd)")  # closing is a request, too
    with running_controller():
        assert bill_of(asks.path, bills())["share_bytes"] == MIB // 2
        daemon = pool.status().daemon_pid
        os.kill(daemon, signal.SIGSTOP)
        try:
            exits.exit()
            waits = asks.agent()
            assert waits.process.stdin is not None
            waits.process.stdin.write(f'"result = os.path.getsize({str(pool.path / "f")!r})"\n')
            waits.process.stdin.flush()
            stopped = time.monotonic()
            wait_until(lambda: time.monotonic() > stopped + 2, "two seconds have passed")
        finally:
            os.kill(daemon, signal.SIGCONT)
        assert waits.process.stdout is not None
        assert waits.process.stdout.readline() == f'{{"result": {MIB}}}\n'
        wait_until(lambda: asks.limit() == 63 * MIB, "it is settled", 20)
        pool.check_conservation()


def test_cgroups_that_cannot_be_written_are_one_line(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    tenant = tenants.make("a", limit_bytes=64 * MIB)
    hierarchy = str(tenants.hierarchy.mount)

    def mount_without_rights() -> tuple[int, str]:
        own_mount_namespace()
        subprocess.run(["mount", "-o", "remount,bind,ro", hierarchy], check=True)
        (run_dir / "mnt").mkdir()
        done = sharedfs("mount", str(run_dir / "mnt"), "--name", unique_name, "--cgroup-parent", "x", check=False)
        return done.returncode, done.stderr

    code, said = in_child(mount_without_rights)
    assert code == 1
    assert said.count("\n") == 1
    assert "Read-only file system" in said
    assert "--cgroup-parent" in said
    assert tenant.limit() == 64 * MIB


def test_limits_that_cannot_be_written_are_told_once_and_bills_go_on(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("a", limit_bytes=64 * MIB)
    tenant.do(f"fd = os.open({str(pool.path / 'f')!r}, os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({MIB}), 0)")
    hierarchy = str(tenants.hierarchy.mount)

    def bill_without_rights() -> tuple[int, int]:
        own_mount_namespace()
        subprocess.run(["mount", "-o", "remount,bind,ro", hierarchy], check=True)
        with running_controller():
            first = bill_of(tenant.path, bills())
            return first["share_bytes"], first["limit_bytes"]

    assert in_child(bill_without_rights) == (MIB, 64 * MIB)
    assert tenant.limit() == 64 * MIB
