"""Where a pool is not like tmpfs, both sides of each. docs/posix.md has them in a table, with the reasons.

Two more are tested where their reasons are: sendfile(2) and splice(2) from the mount (`test_posix_mmap`), and the
memory that extending a file reserves (`test_full_pool`).
"""

import ctypes
import fcntl
import mmap
import os
import select
import subprocess
import time
from collections.abc import Callable
from errno import EINVAL, ENODEV, ENOTTY, EPERM
from pathlib import Path

import pytest

from sharedfs.linux import cachestat
from tests.support.mount import MountedPool
from tests.support.posix import as_user, fails, mtime_alone, opened, statx_attributes
from tests.support.tenants import wait_until

NEW = os.O_RDWR | os.O_CREAT
F_GET_SEALS, F_SEAL_SEAL = 1034, 1
STATX_ATTR_NODUMP = 0x40


@pytest.fixture
def directory(shared_pool: MountedPool) -> Path:
    directory = shared_pool.path / f"test-{len(os.listdir(shared_pool.path))}"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def test_set_gid_without_x_survives_a_write_from_outside_its_group(directory: Path) -> None:
    """The bit does nothing without x, and whether the writer is in the group is not told to us."""
    (directory / "f").write_bytes(b"")
    (directory / "f").chmod(0o2766)

    def write() -> None:
        with opened(directory / "f", os.O_WRONLY) as fd:
            os.write(fd, b"x")

    as_user(write)
    assert (directory / "f").stat().st_mode & 0o7777 == 0o2766


def test_the_type_of_the_filesystem(directory: Path, plain_tmpfs: Path) -> None:
    def kind(place: Path) -> str:
        command = ["stat", "--file-system", "--format=%t", place]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    assert (kind(plain_tmpfs), kind(directory)) == ("1021994", "65735546")


def test_the_end_of_a_directory(directory: Path, plain_tmpfs: Path) -> None:
    """FUSE takes a directory's size for its end; tmpfs refuses to look for one (Linux 6.6 and later)."""
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.lseek(fd, 0, os.SEEK_END) == os.fstat(fd).st_size
    with opened(plain_tmpfs, os.O_RDONLY | os.O_DIRECTORY) as fd, fails(EINVAL):
        os.lseek(fd, 0, os.SEEK_END)


def test_files_have_no_seals(directory: Path, plain_tmpfs: Path) -> None:
    """On tmpfs a file's seals can be read, and are that it may have none."""
    with opened(plain_tmpfs / "sealed", NEW) as fd:
        assert fcntl.fcntl(fd, F_GET_SEALS) == F_SEAL_SEAL
    with opened(directory / "f", NEW) as fd, fails(EINVAL):
        fcntl.fcntl(fd, F_GET_SEALS)


def test_inode_flags_are_not_among_statx_attributes(directory: Path, plain_tmpfs: Path) -> None:
    """They are kept and obeyed, and FUSE does not pass them on there: lsattr(1) shows them."""
    attributes = []
    for place in (plain_tmpfs, directory):
        (place / "flagged").write_bytes(b"")
        subprocess.run(["chattr", "+d", place / "flagged"], check=True)
        attributes.append(statx_attributes(place / "flagged") & STATX_ATTR_NODUMP)
        shown = subprocess.run(["lsattr", place / "flagged"], capture_output=True, check=True, text=True).stdout
        assert "d" in shown.split()[0]
    assert attributes == [STATX_ATTR_NODUMP, 0]


def test_a_mapped_write_shows_in_mtime_within_a_second_or_two(directory: Path) -> None:
    with opened(directory / "f", NEW) as fd:
        os.ftruncate(fd, mmap.PAGESIZE)
        before = os.fstat(fd).st_mtime_ns
        wait_until(lambda: time.time_ns() - before > 50_000_000, "a tick of the clock that files have their times from")
        with mmap.mmap(fd, mmap.PAGESIZE) as mapped:
            mapped[0] = 1
            wait_until(lambda: os.fstat(fd).st_mtime_ns > before, "the write shows", 3)


def test_a_mapped_write_shows_when_the_file_was_known_before_and_is_closed_again(directory: Path) -> None:
    """The kernel may keep attributes for an hour of files that nobody maps, and of no others."""
    path = directory / "f"
    path.write_bytes(bytes(mmap.PAGESIZE))
    written = time.monotonic()
    # What is known since it was open runs out after a second; what is known then is for an hour.
    wait_until(lambda: path.stat() and time.monotonic() - written > 1.2, "a second passed")
    before = mtime_alone(path)
    with opened(path) as fd:
        mapped = mmap.mmap(fd, mmap.PAGESIZE)
    with mapped:
        assert mtime_alone(path) == before
        mapped[0] = 1
        wait_until(lambda: mtime_alone(path) > before, "the write shows", 3)


def said(act: Callable[[], object]) -> object:
    """What a call gives, or its errno."""
    try:
        return act()
    except OSError as error:
        return error.errno


def test_files_can_be_polled(directory: Path, plain_tmpfs: Path) -> None:
    """FUSE has a poll for files, so epoll(7) takes them. They are always ready."""

    def ready(place: Path) -> object:
        with opened(place / "f", NEW) as fd, select.epoll() as poll:
            poll.register(fd, select.EPOLLIN)
            return len(poll.poll(1))

    assert [said(lambda place=place: ready(place)) for place in (plain_tmpfs, directory)] == [EPERM, 1]  # type: ignore[misc]


_libc = ctypes.CDLL(None, use_errno=True)
_FAN_REPORT_FID, _FAN_MARK_ADD, _FAN_MARK_FILESYSTEM, _FAN_OPEN = 0x200, 0x1, 0x100, 0x20


def watch_filesystem(place: Path, flags: int) -> int:
    fd = _libc.fanotify_init(flags, os.O_RDONLY)
    if fd < 0:
        pytest.skip("this kernel lets nobody use fanotify")
    try:
        mark = _libc.fanotify_mark
        mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
        done = mark(fd, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, _FAN_OPEN, -100, bytes(place))
        return 0 if done == 0 else ctypes.get_errno()
    finally:
        os.close(fd)


def test_a_whole_filesystem_is_watched_by_descriptors_only(directory: Path, plain_tmpfs: Path) -> None:
    """FUSE has no filesystem id for the kernel to report in place of a descriptor."""
    assert [watch_filesystem(place, _FAN_REPORT_FID) for place in (plain_tmpfs, directory)] == [0, ENODEV]
    assert [watch_filesystem(place, 0) for place in (plain_tmpfs, directory)] == [0, 0]


def test_the_page_cache_and_the_uuid_are_not_told(directory: Path, plain_tmpfs: Path) -> None:
    """The pages are the pool's own tmpfs's, which the kernel does not ask in place of FUSE's inode."""
    get_uuid = 0x80111500  # FS_IOC_GETFSUUID, linux/fs.h

    def cached(place: Path) -> int:
        with opened(place / "f", NEW) as fd:
            os.write(fd, b"x" * (10 * mmap.PAGESIZE))
            return cachestat.resident_pages(fd, 0, 9)

    def uuid(place: Path) -> int:
        with opened(place / "f", NEW) as fd:
            return len(fcntl.ioctl(fd, get_uuid, bytes(17)))

    if cachestat.can_be_asked():
        assert [cached(place) for place in (plain_tmpfs, directory)] == [10, 0]
    on_tmpfs, on_pool = (said(lambda place=place: uuid(place)) for place in (plain_tmpfs, directory))  # type: ignore[misc]
    assert on_tmpfs in (17, ENOTTY), "since Linux 6.9"
    assert on_pool == ENOTTY
