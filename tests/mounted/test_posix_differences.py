"""Where a pool is not like tmpfs, held here so that nobody is surprised: each is refused aloud or harmless.

Two more are tested where their reasons are: sendfile(2) and splice(2) from the mount (`test_posix_mmap`), and the
memory that extending a file reserves (`test_full_pool`).
"""

import fcntl
import os
import struct
import subprocess
from errno import ENOTTY, EOPNOTSUPP
from pathlib import Path

import pytest

from tests.support.mount import MountedPool
from tests.support.posix import as_user, fails, opened

FS_IOC_GETFLAGS = 0x80086601


@pytest.fixture
def directory(shared_pool: MountedPool) -> Path:
    directory = shared_pool.path / f"test-{len(os.listdir(shared_pool.path))}"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def test_a_file_is_never_made_without_a_name(directory: Path) -> None:
    """libfuse has no TMPFILE. tempfile.TemporaryFile and others make a file and unlink it then."""
    with fails(EOPNOTSUPP):
        os.open(directory, os.O_TMPFILE | os.O_RDWR)


def test_access_control_lists_are_refused_rather_than_kept_and_ignored(directory: Path) -> None:
    (directory / "f").write_bytes(b"")
    entries = ((1, 6, -1), (2, 0, 1000), (4, 4, -1), (16, 4, -1), (32, 4, -1))  # acl(5): user 1000 may not
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        with fails(EOPNOTSUPP):
            os.setxattr(directory if "default" in name else directory / "f", name, acl)
    run = subprocess.run(["cp", "-a", directory / "f", directory / "g"], capture_output=True, check=True)
    assert run.stderr == b""


def test_there_are_no_inode_flags(directory: Path) -> None:
    with opened(directory / "f", os.O_RDWR | os.O_CREAT) as fd, fails(ENOTTY):
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytearray(8))


def test_there_is_no_time_of_birth(directory: Path) -> None:
    (directory / "f").write_bytes(b"")
    assert subprocess.run(["stat", "-c", "%W", directory / "f"], capture_output=True, check=True).stdout == b"0\n"


def test_a_removed_directory_keeps_its_last_attributes(directory: Path) -> None:
    """Its attributes are remembered, not its inode: a change of them is lost with it."""
    (directory / "d").mkdir(0o755)
    with opened(directory / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (directory / "d").rmdir()
        os.fchmod(fd, 0o700)
        assert os.fstat(fd).st_mode & 0o7777 == 0o755


def test_set_gid_without_x_survives_a_write_from_outside_its_group(directory: Path) -> None:
    """The bit does nothing without x, and whether the writer is in the group is not told to us."""
    (directory / "f").write_bytes(b"")
    (directory / "f").chmod(0o2766)

    def write() -> None:
        with opened(directory / "f", os.O_WRONLY) as fd:
            os.write(fd, b"x")

    as_user(write)
    assert (directory / "f").stat().st_mode & 0o7777 == 0o2766
