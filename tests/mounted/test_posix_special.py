"""Extended attributes, FIFOs, sockets, devices, statfs and locks on the mount as on tmpfs."""

import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from errno import EACCES, EADDRINUSE, EAGAIN, EEXIST, ENODATA, EOPNOTSUPP, EPERM, ERANGE
from pathlib import Path

import pytest

from tests.support.posix import Child, as_user, fails, in_child, opened

NEW = os.O_RDWR | os.O_CREAT


@pytest.mark.parametrize("namespace", ["user", "trusted"])
def test_extended_attributes(place: Path, namespace: str) -> None:
    (place / "f").write_bytes(b"")
    name = f"{namespace}.name"
    for path in (place / "f", place):
        with fails(ENODATA):
            os.getxattr(path, name)
        with fails(ENODATA):
            os.setxattr(path, name, b"x", os.XATTR_REPLACE)
        os.setxattr(path, name, b"one", os.XATTR_CREATE)
        with fails(EEXIST):
            os.setxattr(path, name, b"x", os.XATTR_CREATE)
        os.setxattr(path, name, b"two\0three", os.XATTR_REPLACE)
        assert os.getxattr(path, name) == b"two\0three"
        os.setxattr(path, f"{namespace}.empty", b"")
        assert os.getxattr(path, f"{namespace}.empty") == b""
        assert set(os.listxattr(path)) == {name, f"{namespace}.empty"}
        os.removexattr(path, name)
        with fails(ENODATA):
            os.removexattr(path, name)
        os.removexattr(path, f"{namespace}.empty")
        assert os.listxattr(path) == []


def test_a_large_attribute_and_many(place: Path) -> None:
    (place / "f").write_bytes(b"")
    value = os.urandom(32 << 10)
    os.setxattr(place / "f", "user.large", value)
    assert os.getxattr(place / "f", "user.large") == value
    for number in range(50):
        os.setxattr(place / "f", f"user.{number}", b"%d" % number)
    assert len(os.listxattr(place / "f")) == 51
    with fails(ERANGE):
        os.setxattr(place / "f", "user." + "n" * 251, b"x")


def test_attributes_where_they_are_refused(place: Path) -> None:
    (place / "f").write_bytes(b"")
    (place / "s").symlink_to("f")
    os.mkfifo(place / "p")
    with fails(EPERM):
        os.setxattr(place / "s", "user.x", b"", follow_symlinks=False)
    with fails(EPERM):
        os.setxattr(place / "p", "user.x", b"")
    with fails(EOPNOTSUPP):
        os.setxattr(place / "f", "nonsense.x", b"")
    with fails(EACCES):
        as_user(lambda: os.setxattr(place / "f", "user.x", b""))
    with fails(EPERM):
        as_user(lambda: os.setxattr(place / "f", "trusted.x", b""))
    os.setxattr(place / "s", "trusted.x", b"of the link", follow_symlinks=False)
    assert os.getxattr(place / "s", "trusted.x", follow_symlinks=False) == b"of the link"
    assert os.listxattr(place / "f") == []
    os.setxattr(place / "f", "trusted.hidden", b"")
    assert as_user(lambda: os.listxattr(place / "f")) == []


def test_attributes_of_a_file_without_a_name(place: Path) -> None:
    with opened(place / "f", NEW) as fd:
        os.setxattr(fd, "user.a", b"1")
        os.unlink(place / "f")
        os.setxattr(fd, "user.b", b"2")
        assert {name: os.getxattr(fd, name) for name in os.listxattr(fd)} == {"user.a": b"1", "user.b": b"2"}


def test_a_fifo_between_two_processes(place: Path) -> None:
    os.mkfifo(place / "p", 0o600)
    assert stat.S_ISFIFO((place / "p").stat().st_mode)

    def write() -> None:
        with opened(place / "p", os.O_WRONLY) as fd:
            os.write(fd, b"through the pipe")

    child = Child(write)
    with open(place / "p", "rb") as pipe:
        assert pipe.read() == b"through the pipe"
    child.result()
    os.unlink(place / "p")


def test_unix_sockets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        server.listen()
        assert stat.S_ISSOCK((place / "socket").stat().st_mode)

        def talk() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect("socket")
                client.sendall(b"ping")
                return client.recv(10)

        child = Child(talk)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10) == b"ping"
            connection.sendall(b"pong")
        assert child.result() == b"pong"
    with socket.socket(socket.AF_UNIX) as second, fails(EADDRINUSE):  # the name stays
        second.bind("socket")
    os.unlink("socket")


def test_devices_can_be_made_and_not_opened(place: Path) -> None:
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(place / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    found = (place / "null").stat()
    assert (stat.S_ISCHR(found.st_mode), found.st_rdev) == (True, os.makedev(1, 3))
    assert (place / "disk").stat().st_rdev == os.makedev(7, 300)
    for name in ("null", "disk"):
        with fails(EACCES):
            os.open(place / name, os.O_RDWR)
    with fails(EPERM):
        as_user(lambda: os.mknod(place / "mine", stat.S_IFCHR | 0o666, os.makedev(1, 3)))


def test_statfs_tells_size_and_use(place: Path) -> None:
    before = os.statvfs(place)
    assert before.f_blocks * before.f_frsize == 512 << 20
    assert (before.f_namemax, before.f_bsize) == (255, 4096)
    assert before.f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
    (place / "f").write_bytes(b"x" * (1 << 20))
    after = os.statvfs(place)
    assert (before.f_bfree - after.f_bfree) * 4096 == 1 << 20
    assert before.f_bavail - after.f_bavail == before.f_bfree - after.f_bfree
    assert before.f_ffree - after.f_ffree >= 1, "one, and on a pool what the data leaves no room for"
    os.unlink(place / "f")
    time.sleep(0.1)
    assert os.statvfs(place).f_bfree == before.f_bfree


def lock_posix(fd: int, kind: int, *, wait: bool = False, start: int = 0, length: int = 0) -> None:
    fcntl.lockf(fd, kind if wait or kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB, length, start)


def lock_flock(fd: int, kind: int, *, wait: bool = False) -> None:
    fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))


LOCKS = [lock_posix, lock_flock]


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_conflict_and_end_with_close(place: Path, lock: Callable[..., None]) -> None:
    def try_lock(kind: int) -> None:
        with opened(place / "f") as fd:
            lock(fd, kind)

    with opened(place / "f", NEW) as fd:
        lock(fd, fcntl.LOCK_SH)
        in_child(lambda: try_lock(fcntl.LOCK_SH))
        with fails(EAGAIN):
            in_child(lambda: try_lock(fcntl.LOCK_EX))
        lock(fd, fcntl.LOCK_EX)
        with fails(EAGAIN):
            in_child(lambda: try_lock(fcntl.LOCK_SH))
    in_child(lambda: try_lock(fcntl.LOCK_EX))


@pytest.mark.parametrize("lock", LOCKS)
def test_who_waits_for_a_lock_is_woken(place: Path, lock: Callable[..., None]) -> None:
    def wait() -> float:
        with opened(place / "f") as fd:
            lock(fd, fcntl.LOCK_EX, wait=True)
            return time.monotonic()

    with opened(place / "f", NEW) as fd:
        lock(fd, fcntl.LOCK_EX)
        child = Child(wait)
        time.sleep(0.2)
        released = time.monotonic()
        lock(fd, fcntl.LOCK_UN)
        assert 0 <= child.result() - released < 2


def test_posix_locks_are_of_ranges(place: Path) -> None:
    def probe() -> tuple[int, int, int]:
        with opened(place / "f") as fd:
            lock_posix(fd, fcntl.LOCK_EX, start=0, length=10)
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, start, length, _ = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
            return kind, start, length

    with opened(place / "f", NEW) as fd:
        lock_posix(fd, fcntl.LOCK_EX, start=10, length=5)
        assert in_child(probe) == (fcntl.F_WRLCK, 10, 5)
        os.close(os.dup(fd))  # POSIX: any close of the file ends the process's locks
        assert in_child(probe) == (fcntl.F_UNLCK, 0, 0)
