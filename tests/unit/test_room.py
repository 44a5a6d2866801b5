"""The room of a pool: a real tmpfs, and limits in a directory that looks like a hierarchy.

What is written is charged here as the kernel would: pages stay charged when somebody has pinned them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from errno import ENFILE, ENOSPC
from itertools import count
from pathlib import Path

import pytest

from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy
from sharedfs.linux.memory_limits import MemoryLimits, Reading
from sharedfs.storage import inode_cost, room
from sharedfs.storage.room import RESERVE_BYTES, Room
from sharedfs.storage.tmpfs import make_tmpfs
from tests.support.posix import fails

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a tmpfs of one's own needs root")

MIB = 1 << 20
SIZE = 512 * MIB


class Pool:
    """A tmpfs in a cgroup with a limit, and somebody who pins what is written."""

    def __init__(self, place: Path, limit: int, size: int = SIZE) -> None:
        self.level = place / "a"
        self.level.mkdir()
        self.charge(0)
        for name, text in {"high": "max", "stat": "", "events": ""}.items():
            (self.level / f"memory.{name}").write_text(text)
        self.limit(limit)
        self.mount_fd, self.root_fd = make_tmpfs(size)
        self.limits = MemoryLimits(MemoryHierarchy(CgroupVersion.V2, place), "/a")
        self.room = Room(self.root_fd, size, self.limits)

    def limit(self, limit: int) -> None:
        (self.level / "memory.max").write_text(f"{limit + RESERVE_BYTES}\n")

    def charge(self, charged: int) -> None:
        self.charged = charged
        (self.level / "memory.current").write_text(f"{charged}\n")

    def write_pin_and_cut(self, length: int) -> None:
        """One write of a new file; its pages stay charged when it is gone."""
        self.room.permit(length)
        fd = os.open("f", os.O_RDWR | os.O_CREAT, dir_fd=self.root_fd)
        try:
            written = os.pwrite(fd, bytes(length), 0)
            self.charge(self.charged + written)
        finally:
            os.close(fd)
            os.unlink("f", dir_fd=self.root_fd)

    @property
    def shown(self) -> int:
        found = os.fstatvfs(self.root_fd)
        return found.f_blocks * found.f_frsize

    def close(self) -> None:
        self.room.close()
        os.close(self.root_fd)
        os.close(self.mount_fd)


@contextmanager
def pool_at(place: Path, limit: int) -> Iterator[Pool]:
    pool = Pool(place, limit)
    try:
        yield pool
    finally:
        pool.close()


def test_tmpfs_is_as_large_as_the_limit_leaves_it(tmp_path: Path) -> None:
    with pool_at(tmp_path, 100 * MIB) as pool:
        assert pool.shown == 100 * MIB
        pool.limit(40 * MIB)
        pool.room.look()
        assert (pool.shown, pool.room.bound.by) == (40 * MIB, "memory.max of /a")
        pool.limit(SIZE * 2)
        pool.room.look()
        assert (pool.shown, pool.room.bound.by) == (SIZE, "size")


def test_where_nothing_is_left_an_empty_tmpfs_is_not_without_bound(tmp_path: Path) -> None:
    with pool_at(tmp_path, -MIB) as pool:
        assert pool.shown == 4096
        with fails(ENOSPC):
            pool.room.afford()


@pytest.mark.parametrize("length", [4096, 100_000, MIB])
def test_what_is_written_pinned_and_cut_ends_at_the_limit(tmp_path: Path, length: int) -> None:
    with pool_at(tmp_path, 4 * MIB) as pool:
        with fails(ENOSPC):
            while True:
                pool.write_pin_and_cut(length)
                assert pool.charged <= 4 * MIB + RESERVE_BYTES // 8, "the reserve is not what it writes into"
        assert pool.charged >= 4 * MIB - length


def test_control_the_size_alone_lets_it_in_for_ever(tmp_path: Path) -> None:
    with pool_at(tmp_path, 4 * MIB) as pool:
        pool.room.credit[0] = 1 << 62  # nobody looks again
        for _ in range(100):
            pool.write_pin_and_cut(MIB)
        assert pool.charged == 100 * MIB > 4 * MIB + RESERVE_BYTES


def test_a_credit_is_never_more_than_the_reserve(tmp_path: Path) -> None:
    with pool_at(tmp_path, 1 << 40) as pool:
        assert 0 < pool.room.credit[0] <= RESERVE_BYTES
        pool.charge((1 << 40) - 10 * MIB)
        pool.room.look()
        assert pool.room.credit[0] <= 10 * MIB


def test_a_long_allocation_counts_until_it_is_done(tmp_path: Path) -> None:
    with pool_at(tmp_path, 300 * MIB) as pool:
        with pool.room.allocating(200 * MIB):
            assert not pool.room.has(150 * MIB)
            with fails(ENOSPC), pool.room.allocating(150 * MIB):
                pass
        assert pool.room.has(150 * MIB)
        with fails(ENOSPC), pool.room.allocating(301 * MIB):
            pass


def test_without_limits_nothing_is_looked_at(tmp_path: Path) -> None:
    mount_fd, root_fd = make_tmpfs(SIZE)
    room = Room(root_fd, SIZE)
    for _ in range(3):
        room.permit(1 << 62)
    room.afford()
    assert room.has(1 << 60)
    os.close(root_fd)
    os.close(mount_fd)


def test_names_that_are_made_while_another_thread_looks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were forgotten: a flood in a busy guest made 24 more than the size has room for."""
    size = 4 * MIB
    most = inode_cost.included(size) + size // inode_cost.INODE_BYTES
    with closing(Pool(tmp_path, SIZE, size)) as pool:
        names = count()

        def make(number: int) -> None:
            for _ in range(number):
                pool.room.afford()
                os.mknod(str(next(names)), dir_fd=pool.root_fd)

        make(most - 50)
        pool.room.look()
        read = pool.limits.read

        def make_and_read(needed_bytes: int) -> list[Reading]:
            make(24)
            return read(needed_bytes)

        with monkeypatch.context() as patch:
            patch.setattr(pool.limits, "read", make_and_read)
            pool.room.look()
        with fails(ENOSPC):
            make(most)
        assert most - 8 <= next(names) - 1 <= most


def test_the_shortcut_counts_the_same_pages_at_a_writes_ends() -> None:
    """It is compiled, and cannot ask."""
    source = (Path(room.__file__).parents[1] / "ops" / "fastpath.c").read_text()
    (pages,) = re.findall(r"^#define EDGE_PAGES (\d+)$", source, re.MULTILINE)
    assert int(pages) * os.sysconf("SC_PAGESIZE") == room._EDGE_BYTES


def test_files_are_opened_until_half_of_the_reserve_is_left(tmp_path: Path) -> None:
    """What the kernel keeps of each is charged to the pool, and the daemon is to live."""
    with pool_at(tmp_path, 8 * MIB) as pool:
        pool.charge(8 * MIB + RESERVE_BYTES // 4)
        pool.room.look()
        pool.room.afford_open()
        pool.charge(8 * MIB + RESERVE_BYTES // 2)
        pool.room.look()
        with fails(ENFILE):
            pool.room.afford_open()
