"""Where a pool is not like tmpfs, held here so that nobody is surprised: each is refused aloud or harmless.

Two more are tested where their reasons are: sendfile(2) and splice(2) from the mount (`test_posix_mmap`), and the
memory that extending a file reserves (`test_full_pool`).
"""

import os
from pathlib import Path

import pytest

from tests.support.mount import MountedPool
from tests.support.posix import as_user, opened


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
