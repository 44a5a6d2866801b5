"""A full pool: ENOSPC, and what was acknowledged before stays (I7). Each test has a small pool of its own."""

import mmap
import os
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest

from tests.support.mount import MountedPool, mounted_pool
from tests.support.posix import FALLOC_KEEP_SIZE, fails, fallocate, opened
from tests.support.tenants import wait_until

PAGE = 4096
MIB = 1 << 20
POOL_BYTES = 16 * MIB
NEW = os.O_RDWR | os.O_CREAT


@pytest.fixture
def small(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def fill(fd: int, part: bytes) -> int:
    """Write until the pool is full; the bytes that were acknowledged."""
    written = 0
    with fails(ENOSPC):
        while True:
            written += os.pwrite(fd, part, written)
    return written


@pytest.mark.parametrize("part_bytes", [PAGE, 100_000, MIB])
def test_what_was_written_before_is_kept_and_space_comes_back(small: MountedPool, part_bytes: int) -> None:
    pattern = os.urandom(part_bytes)
    with opened(small.path / "f", NEW) as fd:
        written = fill(fd, pattern)
        assert POOL_BYTES - MIB < written <= POOL_BYTES
        assert os.fstat(fd).st_size == written
        content = os.pread(fd, POOL_BYTES, 0)
        assert content == (pattern * (POOL_BYTES // part_bytes + 1))[:written]
        os.pwrite(fd, b"in place", 10)
        assert os.pread(fd, 8, 10) == b"in place", "what is there can still be changed"
        assert small.check_conservation().resident_bytes == POOL_BYTES
        assert os.statvfs(small.path).f_bavail == 0
        (small.path / "empty").write_bytes(b"")
        with fails(ENOSPC):
            (small.path / "one byte").write_bytes(b"x")
        with fails(ENOSPC):
            (small.path / "long").symlink_to("x" * 500)
        os.ftruncate(fd, MIB)
        small.check_conservation()
    (small.path / "more").write_bytes(bytes(10 * MIB))
    os.unlink(small.path / "f")
    os.unlink(small.path / "more")
    wait_until(lambda: small.resident_by_statfs() == 0, "all space is free again")
    assert small.check_conservation().resident_bytes == 0


def test_an_allocation_beyond_the_pool_leaves_no_blocks(small: MountedPool) -> None:
    with opened(small.path / "f", NEW) as fd:
        os.pwrite(fd, b"kept", 0)
        for mode in (0, FALLOC_KEEP_SIZE):
            for size in (17 * MIB, 1 << 40):
                with fails(ENOSPC):
                    fallocate(fd, mode, 0, size)
                assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks * 512) == (4, PAGE)
        os.posix_fallocate(fd, 0, 8 * MIB)
        assert os.pread(fd, 4, 0) == b"kept"
    assert small.check_conservation().resident_bytes == 8 * MIB


def test_extending_beyond_the_pool_makes_a_sparse_file(small: MountedPool) -> None:
    """As on tmpfs: the size is no promise of memory. What cannot be reserved stays a hole."""
    with opened(small.path / "f", NEW) as fd:
        os.ftruncate(fd, 1 << 30)
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (1 << 30, 0)
        assert fill(fd, bytes(MIB)) == POOL_BYTES
    small.check_conservation()


def test_extending_within_the_pool_reserves_what_a_mapping_will_use(small: MountedPool) -> None:
    """A difference to tmpfs: a page fault in a hole would charge the tenant, and may fail with SIGBUS later (I2).

    ray#14182, torchx#428, pytorch#5040: killed by SIGBUS where memory had been promised.
    """
    with opened(small.path / "f", NEW) as fd:
        os.ftruncate(fd, 4 * MIB)
        assert os.fstat(fd).st_blocks * 512 == 4 * MIB
        with opened(small.path / "g", NEW) as other:
            fill(other, bytes(MIB))
        with mmap.mmap(fd, 4 * MIB) as mapping:
            for offset in range(0, 4 * MIB, PAGE):
                mapping[offset] = 1
    assert small.check_conservation().foreign_bytes == 0
