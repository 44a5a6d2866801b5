"""A limit of memory at or above the pool's cgroup: writers get ENOSPC, and the kernel kills nobody.

The control is plain tmpfs, written from a cgroup with the same limit: its writer is killed, and so would the daemon be.
"""

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path

import pytest

from sharedfs.linux.cgroups import CgroupVersion, find_memory_hierarchy
from sharedfs.storage.room import PROCESS_BYTES, RESERVE_BYTES
from tests.support.mount import MountedPool, mounted_pool, sharedfs, unmount
from tests.support.posix import fails, opened, tmpfs
from tests.support.tenants import Tenant, wait_until

PAGE = 4096
MIB = 1 << 20
NEW = os.O_RDWR | os.O_CREAT
NEEDED = PROCESS_BYTES + RESERVE_BYTES
PATIENCE = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limited:
    """A cgroup that pools and their siblings are made in."""

    parent: Tenant
    pools: str
    place: Path
    name: str

    def limit(self, limit_bytes: int) -> None:
        self.parent.set_limit(limit_bytes)

    @property
    def usage(self) -> int:
        v1 = self.parent.hierarchy.version is CgroupVersion.V1
        return int((self.parent.directory / ("memory.usage_in_bytes" if v1 else "memory.current")).read_text())

    @contextmanager
    def pool(self, *, booked: bool = True) -> Iterator[MountedPool]:
        """`booked`: nothing was punched behind the daemon's back, which the books would not know of."""
        names = ("--size", "512M", "--cgroup-parent", self.pools)
        with mounted_pool(self.place, self.name, *names) as mounted:
            daemon = mounted.status().daemon_pid
            (mounted.path / "precious").write_bytes(b"precious")
            yield mounted
            assert (mounted.path / "precious").read_bytes() == b"precious"
            assert (mounted.status().daemon_pid, mounted.status().restarts) == (daemon, 0), "nobody was killed"
            if booked:
                mounted.check_conservation()


@pytest.fixture
def limited(run_dir: Path, unique_name: str) -> Iterator[Limited]:
    hierarchy = find_memory_hierarchy()
    parent = Tenant(hierarchy, f"/{unique_name}-limited")
    hierarchy.enable_memory(f"{parent.path}/below")
    try:
        yield Limited(parent, f"{parent.path}/pools", run_dir / "mnt", unique_name)
    finally:
        wait_until(lambda: _removed(parent.directory), f"{parent.directory} is empty", PATIENCE)


def _removed(directory: Path) -> bool:
    with suppress(OSError):
        for below in sorted(directory.glob("**/"), reverse=True):
            below.rmdir()
    return not directory.exists()


def fill(path: Path) -> int:
    """Write until there is no room; how much went in."""
    written = 0
    with suppress(OSError), opened(path, NEW) as fd:  # there may be none for the name
        while True:
            written += os.pwrite(fd, bytes(MIB), written)
    return written


def write_all(fd: int, length: int) -> None:
    """As much as goes in with one write may be less than it has."""
    written = 0
    while written < length:
        written += os.pwrite(fd, bytes(length - written), written)


def bound_of(pool: MountedPool) -> int:
    found = os.statvfs(pool.path)
    return found.f_blocks * found.f_frsize


def test_a_reload_that_has_no_room_is_refused(limited: Limited) -> None:
    """The kernel killed the new daemon, the old one and the process that looks at others."""
    limited.limit(NEEDED + 48 * MIB)
    with mounted_pool(limited.place, limited.name, "--size", "512M", "--cgroup-parent", limited.pools) as pool:
        fill(pool.path / "big")
        sharedfs("reload", str(pool.path))
        assert (pool.status().reloads, pool.status().restarts) == (1, 1), "control: a full pool has that much left"
    with limited.pool() as pool:
        fill(pool.path / "big")
        limited.limit(limited.usage + 30 * MIB)
        refused = sharedfs("reload", str(pool.path), check=False)
        assert refused.returncode == 2
        assert f"of {limited.parent.path} leaves" in refused.stderr
        limited.limit(limited.usage + RESERVE_BYTES)


def test_writes_beyond_a_limit_above_fail_and_the_pool_lives(limited: Limited) -> None:
    limited.limit(NEEDED + 48 * MIB)
    with limited.pool() as pool:
        assert pool.status().bound_bytes < 80 * MIB
        assert f"of {limited.parent.path}" in pool.status().bounded_by
        assert abs(bound_of(pool) - pool.status().bound_bytes) < 8 * MIB, "statfs follows it"
        written = fill(pool.path / "big")
        assert 16 * MIB < written < 80 * MIB
        with opened(pool.path / "big") as fd:
            assert os.pwrite(fd, b"in place" * MIB, 0) >= MIB, "what is there can still be changed"
            for ask in (  # the processes of the pool may have given back a little meanwhile
                lambda number: os.pwrite(fd, b"x" * PAGE, written + (number + 1) * MIB),
                lambda _: os.posix_fallocate(fd, 0, 200 * MIB),
                lambda number: (pool.path / f"name{number}").write_bytes(b"x" * PAGE),
            ):
                with fails(ENOSPC):
                    for number in range(4_000):
                        ask(number)
            size = os.fstat(fd).st_size
            os.ftruncate(fd, size + 100 * MIB)
            assert os.fstat(fd).st_blocks * 512 <= size + PAGE, "what nobody asked for stays a hole"
        assert f"bounded by {pool.status().bounded_by}" in sharedfs("status").stdout
        os.unlink(pool.path / "big")
        wait_until(lambda: fill(pool.path / "again") > 8 * MIB, "the room comes back", PATIENCE)


def test_control_a_writer_of_plain_tmpfs_is_killed_at_that_limit(limited: Limited) -> None:
    limited.limit(48 * MIB)
    write = "import os, sys\nwith open(sys.argv[1], 'wb') as f:\n    for _ in range(96): f.write(bytes(1 << 20))"
    with tmpfs(limited.place) as place:
        writer = Tenant(limited.parent.hierarchy, f"{limited.parent.path}/writer")
        writer.forbid_swap()
        done = subprocess.run(writer.join([sys.executable, "-S", "-E", "-c", write, str(place / "f")]), check=False)
        assert done.returncode == -9
    writer.exit()


def test_a_limit_that_leaves_nothing_is_refused_and_one_that_leaves_little_is_warned_of(limited: Limited) -> None:
    limited.place.mkdir()
    options = ("--name", limited.name, "--size", "512M", "--cgroup-parent", limited.pools)
    limited.limit(NEEDED - MIB)
    done = sharedfs("mount", str(limited.place), *options, check=False)
    assert done.returncode == 2
    assert "raise memory" in done.stderr
    assert done.stderr.count("\n") == 1
    limited.limit(NEEDED + 32 * MIB)
    done = sharedfs("mount", str(limited.place), *options)
    assert "warning" in done.stderr
    assert done.stderr.count("\n") == 1
    unmount(str(limited.place))


def test_the_bound_follows_limits_and_siblings(limited: Limited) -> None:
    with limited.pool() as pool:
        assert (pool.status().bound_bytes, pool.status().bounded_by) == (512 * MIB, "size")
        (pool.path / "f").write_bytes(bytes(20 * MIB))
        limited.limit(limited.usage + RESERVE_BYTES + 100 * MIB)
        wait_until(lambda: bound_of(pool) < 130 * MIB, "a lower limit counts", PATIENCE)
        before = bound_of(pool)
        sibling = Tenant(limited.parent.hierarchy, f"{limited.parent.path}/sibling")
        try:
            sibling.do(f"private = bytearray(50 * {MIB}); private[::4096] = bytes(50 * {MIB // PAGE})")
            wait_until(lambda: bound_of(pool) < before - 40 * MIB, "what a sibling has counts", PATIENCE)
            assert fill(pool.path / "g") < 70 * MIB
            sibling.do("del private")
            wait_until(lambda: bound_of(pool) > before - 30 * MIB, "what it gave back counts", PATIENCE)
        finally:
            sibling.exit()
        own = Tenant.__new__(Tenant)
        own.hierarchy, own.directory = (
            limited.parent.hierarchy,
            limited.parent.hierarchy.directory(pool.status().pool_cgroup),
        )
        own.set_limit(limited.usage + RESERVE_BYTES + 4 * MIB)
        wait_until(
            lambda: pool.status().bounded_by.endswith(pool.status().pool_cgroup), "its own limit counts", PATIENCE
        )
        with fails(ENOSPC):
            (pool.path / "h").write_bytes(bytes(100 * MIB))
        own.set_limit(1 << 40)
        limited.limit(1 << 40)
        wait_until(lambda: pool.status().bounded_by == "size", "without limits the size counts", PATIENCE)
        assert bound_of(pool) == 512 * MIB


def test_many_empty_files_end_with_enospc(limited: Limited) -> None:
    limited.limit(NEEDED + 64 * MIB)
    with limited.pool() as pool:
        # The daemon's own memory grows with its first requests: in a guest with v2 by nearly 4 MiB.
        limited.limit(limited.usage + RESERVE_BYTES + 12 * MIB)
        wait_until(lambda: pool.status().bound_bytes < 30 * MIB, "little is left", PATIENCE)
        made = 0
        with fails(ENOSPC):
            while True:
                (pool.path / f"{made}-{'x' * 200}").touch()
                made += 1
        assert 100 < made < 40_000
        for act in (  # the kernel may have dropped something meanwhile: then there is room for a few more
            lambda number: (pool.path / f"d{number}").mkdir(),
            lambda number: os.setxattr(pool.path / "precious", f"user.{number}", b"y" * 900),
        ):
            with fails(ENOSPC):
                for number in range(2_000):
                    act(number)
        limited.limit(limited.usage + RESERVE_BYTES + 40 * MIB)
        wait_until(lambda: pool.status().bound_bytes > 20 * MIB, "there is room", PATIENCE)
        (pool.path / "d").mkdir()


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def pin(fd: int, length: int, pipes: ExitStack) -> int:
    """Pin the pages of a file in pipes; how many bytes."""
    pinned = 0
    with mmap.mmap(fd, length) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        while pinned < length:
            reader, writer = os.pipe()
            pipes.callback(os.close, reader)
            pipes.callback(os.close, writer)
            part = min(fcntl(writer, F_SETPIPE_SZ, MIB), length - pinned)
            vector = _Vector(address + pinned, part)
            done = _libc.vmsplice(writer, ctypes.byref(vector), ctypes.c_ulong(1), 0)
            assert done > 0, os.strerror(ctypes.get_errno())
            pinned += done
    return pinned


@pytest.mark.parametrize("way", ["truncate", "unlink", "remove"])
def test_pinned_pages_in_no_file_cost_writes_an_error_and_no_life(limited: Limited, way: str) -> None:
    """They stay charged to the pool when their file is cut, and tmpfs lets in as much again."""
    limited.limit(NEEDED + 48 * MIB)
    with limited.pool(booked=way != "remove") as pool, ExitStack() as pipes:
        pinned = 0
        with fails(ENOSPC):
            for number in range(100):
                with opened(pool.path / f"f{number}", NEW) as fd:
                    write_all(fd, 4 * MIB)
                    pinned += pin(fd, 4 * MIB, pipes)
                    if way == "truncate":
                        os.ftruncate(fd, 0)
                    elif way == "remove":  # which asks nobody
                        with mmap.mmap(fd, 4 * MIB) as mapping:
                            mapping.madvise(mmap.MADV_REMOVE)
                if way == "unlink":
                    os.unlink(pool.path / f"f{number}")
        assert 16 * MIB < pinned < 100 * MIB
        with fails(ENOSPC):
            (pool.path / "more").write_bytes(bytes(4 * MIB))
        pipes.close()
        wait_until(lambda: fill(pool.path / "again") > 16 * MIB, "the room comes back", PATIENCE)


def test_the_pool_is_protected_where_that_is_permitted(limited: Limited) -> None:
    with limited.pool() as pool:
        status = pool.status()
        probe = "import os; os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')"
        permitted = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0
        assert (status.oom_score_adj == -1000) == permitted
        assert ("lack CAP_SYS_RESOURCE" in sharedfs("status").stdout) == (not permitted)
