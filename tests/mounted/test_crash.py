"""The daemon dies, is stopped or is replaced: users notice nothing."""

import fcntl
import json
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.linux import syscalls
from tests.support.deaths import kill_daemon
from tests.support.kills import is_zombie
from tests.support.mount import MountedPool, sharedfs
from tests.support.posix import Child, opened, refused
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
FS_IMMUTABLE_FL = 0x10
NEW = os.O_RDWR | os.O_CREAT


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


FREEZER = Path("/sys/fs/cgroup/freezer")


@contextmanager
def frozen(place: Path, thread: int) -> Iterator[None]:
    """One thread that not even SIGKILL ends, as one that waits in the kernel: cgroup v1's freezer."""
    place.mkdir()
    try:
        (place / "tasks").write_text(str(thread))
        (place / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (place / "freezer.state").read_text() == "FROZEN\n", "it is frozen")
        yield
    finally:
        (place / "freezer.state").write_text("THAWED")
        with suppress(ProcessLookupError):  # it has ended
            (FREEZER / "tasks").write_text(str(thread))
        wait_until(lambda: _removed(place), "it has left")


def _removed(directory: Path) -> bool:
    with suppress(OSError):
        directory.rmdir()
    return not directory.exists()


@pytest.mark.skipif(not (FREEZER / "tasks").exists(), reason="no thread can be frozen without cgroup v1's freezer")
def test_a_thread_that_waits_in_the_kernel_keeps_no_successor_away(
    pool: MountedPool, tenants: Tenants, unique_name: str
) -> None:
    """A notification waits for a tenant's request, and that for an answer: the pool stood still for ever."""
    tenant = tenants.make("tenant")
    tenant.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'kept', 0)")
    daemon = pool.status().daemon_pid
    thread = next(int(name) for name in os.listdir(f"/proc/{daemon}/task") if int(name) != daemon)
    with frozen(FREEZER / unique_name, thread):
        os.kill(daemon, signal.SIGKILL)
        assert tenant.do("result = os.pread(fd, 9, 0).decode()") == "kept"
        assert pool.status().daemon_pid != daemon
        assert os.path.exists(f"/proc/{daemon}/task/{thread}"), "control: it is there still"
    tenant.do("os.pwrite(fd, b'more', 4)")
    wait_until(lambda: not os.path.exists(f"/proc/{daemon}/task/{thread}"), "then it ends")
    pool.check_conservation()
