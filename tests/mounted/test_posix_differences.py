"""Where a pool is not like tmpfs, both sides of each. docs/posix.md has them in a table, with the reasons.

Two more are tested where their reasons are: sendfile(2) and splice(2) from the mount (`test_posix_mmap`), and the
memory that extending a file reserves (`test_full_pool`).
"""

import fcntl
import mmap
import os
import subprocess
import time
from errno import EINVAL
from pathlib import Path

import pytest

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
