"""A write beyond a file's end leaves a gap: it is filled where the file can be mapped, so that the pool is charged and
no tenant, and stays a hole where it cannot.

The control of each is the sparse writer, or the same tenant with `--reserve 0`: the kernel then charges the tenant.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

import pytest

from tests.support.mount import MountedPool, mounted_pool
from tests.support.posix import FALLOC_KEEP_SIZE, fails, fallocate, opened
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
NEW, NEW_WRITE_ONLY = os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT


def resident(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


@contextmanager
def pool_with(run_dir: Path, name: str, *options: str) -> Iterator[MountedPool]:
    with mounted_pool(run_dir / "mnt", name, "--size", "256M", "--cgroup-parent", f"{name}-pools", *options) as mounted:
        yield mounted


@pytest.mark.parametrize("gap", [0, 1, PAGE - 1, PAGE, PAGE + 1, MIB, 40 * MIB])
@pytest.mark.parametrize("start", [0, 1, PAGE, PAGE + 1])
def test_a_gap_that_can_be_mapped_is_filled(shared_pool: MountedPool, start: int, gap: int) -> None:
    with opened(shared_pool.path / f"gap-{start}-{gap}", NEW) as fd:
        os.pwrite(fd, b"x" * start, 0)
        assert os.pwrite(fd, b"y", start + gap) == 1
        assert os.fstat(fd).st_size == start + gap + 1
        assert resident(fd) == -(-(start + gap + 1) // PAGE) * PAGE
        assert os.pread(fd, start + min(gap, MIB), 0) == b"x" * start + bytes(min(gap, MIB))
    os.unlink(shared_pool.path / f"gap-{start}-{gap}")
    shared_pool.check_conservation()


def test_who_cannot_map_pays_for_no_hole(shared_pool: MountedPool) -> None:
    path = shared_pool.path / "sparse"
    with opened(path, NEW_WRITE_ONLY) as fd:
        os.pwrite(fd, b"x", 20 * MIB - 1)
        assert resident(fd) == PAGE
        with opened(path, os.O_RDONLY):  # who can map it now
            os.pwrite(fd, b"x", 21 * MIB - 1)
            assert resident(fd) == PAGE + MIB, "from the old end on; what was sparse stays so"
        os.pwrite(fd, b"x", 22 * MIB - 1)
        assert resident(fd) == PAGE + 2 * MIB, "a mapping may be left for as long as it is open"
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"x", 23 * MIB - 1)
        assert resident(fd) == 2 * PAGE + 2 * MIB, "nobody has it open any more"
    os.unlink(path)


def test_a_mapping_that_is_left_counts(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    tenant.do(f"fd = os.open('{pool.path}/f', {NEW}); os.pwrite(fd, b'x', 4095); m = mmap.mmap(fd, 4096); os.close(fd)")
    path = pool.path / "f"
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"x", 4 * MIB - 1)
        assert resident(fd) == 4 * MIB


def test_allocations_copies_and_appends(shared_pool: MountedPool) -> None:
    with opened(shared_pool.path / "allocated", NEW) as fd:
        os.posix_fallocate(fd, 8 * MIB, PAGE)
        assert resident(fd) == 8 * MIB + PAGE
    with opened(shared_pool.path / "kept", NEW) as fd:
        fallocate(fd, FALLOC_KEEP_SIZE, 8 * MIB, PAGE)
        assert (os.fstat(fd).st_size, resident(fd)) == (0, PAGE), "the file did not grow"
    with opened(shared_pool.path / "copy", NEW) as fd, opened(shared_pool.path / "source", NEW) as source:
        os.pwrite(source, b"s" * PAGE, 0)
        assert os.copy_file_range(source, fd, PAGE, 0, 24 * MIB) == PAGE
        assert resident(fd) == 24 * MIB + PAGE
        assert os.pread(fd, PAGE + 1, 24 * MIB - 1) == b"\0" + b"s" * PAGE
    with opened(shared_pool.path / "appended", NEW | os.O_APPEND) as fd:
        os.write(fd, b"abc")
        os.ftruncate(fd, 1)
        os.write(fd, b"d")
        assert (os.pread(fd, 9, 0), resident(fd)) == (b"ad", PAGE)
    shared_pool.check_conservation()


def test_what_the_pool_or_the_bound_does_not_allow_stays_a_hole(run_dir: Path, unique_name: str) -> None:
    with pool_with(run_dir, unique_name, "--reserve", "64M") as pool, opened(pool.path / "f", NEW) as fd:
        os.pwrite(fd, b"x", 64 * MIB)
        assert resident(fd) == PAGE, "beyond --reserve"
        os.ftruncate(fd, 0)
        with opened(pool.path / "g", NEW) as other:
            os.posix_fallocate(other, 0, 230 * MIB)
            os.pwrite(fd, b"x", 60 * MIB)
            assert resident(fd) == PAGE, "beyond the pool"
            with fails(ENOSPC):
                os.posix_fallocate(fd, 0, 60 * MIB)
        pool.check_conservation()


NUMPY = """
import os, sys, numpy
m = numpy.memmap(sys.argv[1], dtype="u1", mode="w+", shape=(96 << 20,))
m[::4096] = 1
"""


@pytest.mark.parametrize("reserve", ["1G", "0"])
def test_numpy_memmap_is_the_pools_charge_and_not_its_makers(
    run_dir: Path, unique_name: str, tenants: Tenants, reserve: str
) -> None:
    """With --reserve 0, the control, the kernel charges the maker for 96 MiB, and it is killed at its limit."""
    with pool_with(run_dir, unique_name, "--reserve", reserve) as pool:
        tenant = tenants.make("maker", 80 * MIB)
        tenant.forbid_swap()
        done = subprocess.run(
            tenant.join([sys.executable, "-c", NUMPY, f"{pool.path}/m"]), capture_output=True, check=False
        )
        if reserve == "0":
            assert done.returncode == -9
        else:
            assert done.returncode == 0, done.stderr
            assert tenant.statistic("shmem") == 0
            assert pool.check_conservation().foreign_bytes == 0


def test_the_gap_is_filled_once_when_the_daemon_is_killed_in_it(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    tenant.do(f"fd = os.open('{pool.path}/f', {NEW})")
    for number in range(6):
        restarts = pool.status().restarts
        tenant.do(
            "import threading, time\n"
            f"killer = threading.Thread(target=lambda: (time.sleep({0.004 * number}), "
            f"os.kill({pool.status().daemon_pid}, 9)))\n"
            f"os.ftruncate(fd, 0); killer.start(); wrote = os.pwrite(fd, b'end', {128 * MIB}); killer.join()"
        )
        assert tenant.do(f"result = wrote == 3 and os.pread(fd, 9, {128 * MIB - 1}) == bytes(1) + b'end'")
        wait_until(
            lambda r=restarts: pool.status_or_none() is not None and pool.status().restarts > r, "it is back", 20
        )  # type: ignore[misc]
        assert os.stat(pool.path / "f").st_blocks * 512 == 128 * MIB + PAGE
        assert pool.check_conservation().resident_bytes == pool.used(tenant) == 128 * MIB + PAGE
