"""The room that a pool has left: its tmpfs's own size follows the limits of memory, so that a tenant gets ENOSPC where
the kernel would kill.

tmpfs counts the pages of files. A limit counts more: a page that somebody has pinned (io_uring, a pipe) stays charged
to the pool when its file is cut, and tmpfs then lets in another one. So what is made is counted as well, whatever is
taken away: each write takes its bytes from a credit, and when that is used up the limits are looked at before the next
one. Near a bound each write looks; far from it none does but every 64 MiB. Where nothing is left the tmpfs is made as
small as it is full: what is there can still be changed, and the kernel refuses what is new.

A credit is less than the reserve, so what others do between two looks is never on top of what the pool did. Without any
limit the looks are for what is in no file: that takes room, too. So do names and inodes, of which some thousands may be
made between two looks (`inode_cost.py`).
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EINVAL, ENFILE, ENOSPC

from sharedfs.common.errors import CallerMistake
from sharedfs.common.units import PAGE_BYTES, UNLIMITED_BYTES, format_size
from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import MemoryHierarchy
from sharedfs.linux.memory_limits import MemoryLimits
from sharedfs.storage import inode_cost
from sharedfs.storage.bound import IN_NO_FILE, INODES, Bound, bound

log = logging.getLogger("sharedfs")

RESERVE_BYTES = 64 << 20
"""What stays free for the pool's processes: `sharedfs reload` takes 61 MiB more than the 66 that they have for two
seconds, and a daemon's books and caches grow."""
PROCESS_BYTES = 66 << 20
"""What keeper, spare and daemon of an empty pool have."""
LEAST_BYTES = 4 << 20
"""A pool of less is not worth mounting."""

_CREDIT_BYTES = RESERVE_BYTES
_LEAST_CREDIT_BYTES = 1 << 20
NAME_BYTES = 4096
"""Taken for an inode and its name, which are 1 KiB in the kernel and some hundred bytes of ours."""
_MOST_INODES_AT_ONCE = 4096
_ATTRIBUTE_BYTES = 1024  # of which tmpfs counts one for an inode
_EDGE_BYTES = 2 * PAGE_BYTES  # a write touches a page more at each end
_NEAR_BYTES = 1 << 30
_OFTEN_SECONDS, _SELDOM_SECONDS = 0.05, 0.5
_TRIES = 8


class Room:
    """Of the tmpfs whose root `mount_fd` is. Safe from any thread. Without `limits` only the size counts."""

    def __init__(self, mount_fd: int, size_bytes: int, limits: MemoryLimits | None = None) -> None:
        self._mount_fd = mount_fd
        self._size_bytes = size_bytes
        self._limits = limits
        self._lock = threading.Lock()
        self._aside: Callable[[], int] | None = None
        self._lent_bytes = 0
        self._allocating_bytes = 0  # of allocations under way, which may not be charged yet
        self.credit = memoryview(bytearray(8)).cast("q")
        """Bytes that may be made before the limits are looked at again. Also for sharedfs/ops/fastpath.c."""
        self.credit[0] = UNLIMITED_BYTES
        self.bound = Bound(size_bytes, "size", None)
        self._detached_bytes = 0
        # Inodes that were afforded, and how many may be before the next look, and in all. In numbers that only rise:
        # what is afforded while another thread looks is not lost.
        self._inodes_afforded = 0
        self._inodes_until_look = self._inodes_until = UNLIMITED_BYTES
        if limits is not None:
            self.look()

    @property
    def hides_limits(self) -> bool:
        return self._limits is not None and self._limits.hides_some

    @property
    def pause_seconds(self) -> float:
        """How long until the limits are to be looked at again, whoever writes or not."""
        room_bytes = self.bound.room_bytes
        return _OFTEN_SECONDS if room_bytes is not None and room_bytes < _NEAR_BYTES else _SELDOM_SECONDS

    @property
    def size_bytes(self) -> int:
        """The pool's own size, whatever limits leave of it."""
        return self._size_bytes

    def resize(self, size_bytes: int) -> None:
        """The pool's own size is another one."""
        self._size_bytes = size_bytes
        self.look()

    def put_aside(self, aside: Callable[[], int]) -> None:
        """At each look so many bytes of the size are taken by pages that are in no file."""
        self._aside = aside

    @contextmanager
    def lent(self, more_bytes: int) -> Iterator[None]:
        """While the tmpfs may hold so much more than the bound: whoever looks meanwhile leaves it that."""
        with self._lock:
            self._lent_bytes += more_bytes
        try:
            yield
        finally:
            with self._lock:
                self._lent_bytes -= more_bytes

    def look(self) -> Bound:
        """Look at the limits, and let the tmpfs hold as much as they allow."""
        with self._lock:
            return self._look()

    def _look(self) -> Bound:
        if self._limits is None:
            self.credit[0] = UNLIMITED_BYTES
            return self.bound
        self._detached_bytes = 0 if self._aside is None else self._aside()
        for _ in range(_TRIES):  # who maps a hole takes room without asking
            afforded = self._inodes_afforded
            pool = os.fstatvfs(self._mount_fd)
            used_bytes = (pool.f_blocks - pool.f_bfree) * pool.f_frsize
            aside = {IN_NO_FILE: self._detached_bytes, INODES: self._beyond_bytes(pool)}
            readings = self._limits.read(RESERVE_BYTES + self._allocating_bytes + 2 * _CREDIT_BYTES)
            found = bound(self._size_bytes, used_bytes, readings, RESERVE_BYTES, aside)
            size_bytes = max(PAGE_BYTES, found.bytes // PAGE_BYTES * PAGE_BYTES)  # 0 is no bound to tmpfs
            size_bytes += self._lent_bytes
            if self._let_hold(size_bytes, pool.f_blocks * pool.f_frsize):
                break
        self._tell(found)
        self.bound = found
        self.credit[0] = self._credit_in(found)
        some = max(1, self._size_bytes // 16 // inode_cost.INODE_BYTES)
        left = self.inodes_left(pool)
        self._inodes_until = afforded + left
        self._inodes_until_look = afforded + min(left, some, _MOST_INODES_AT_ONCE)
        return found

    def inodes_left(self, pool: os.statvfs_result) -> int:
        """How many more inodes there may be when the tmpfs is as full as it says."""
        if not pool.f_files:
            return UNLIMITED_BYTES
        used_bytes = (pool.f_blocks - pool.f_bfree) * pool.f_frsize
        free_bytes = self._size_bytes - self._detached_bytes - self._beyond_bytes(pool) - used_bytes
        return min(pool.f_ffree, inode_cost.left(self._size_bytes, inode_cost.shown(pool), free_bytes))

    def _beyond_bytes(self, pool: os.statvfs_result) -> int:
        return inode_cost.beyond_bytes(self._size_bytes, inode_cost.shown(pool)) if pool.f_files else 0

    def _let_hold(self, size_bytes: int, now_bytes: int) -> bool:
        if size_bytes == now_bytes:
            return True
        try:
            syscalls.reconfigure_tmpfs(self._mount_fd, {"size": str(size_bytes)})
        except OSError as error:
            if error.errno != EINVAL:  # it holds more by now
                raise
            return False
        return True

    def _credit_in(self, found: Bound) -> int:
        if found.room_bytes is None:
            return UNLIMITED_BYTES if self._aside is None else _CREDIT_BYTES
        free_bytes = found.room_bytes - self._allocating_bytes
        return 0 if free_bytes <= 0 else max(_LEAST_CREDIT_BYTES, min(_CREDIT_BYTES, free_bytes // 2))

    def _tell(self, found: Bound) -> None:
        if found.by != self.bound.by:
            log.warning("the pool may hold %s: bounded by %s", format_size(found.bytes), found.by)

    # -- before something is made ------------------------------------------------------------------------------------

    def permit(self, new_bytes: int) -> None:
        """A write of so many bytes is about to be made: from here on tmpfs refuses what there is no room for.

        Raises OSError (ENOSPC) where no file has a page and there is none for it: tmpfs cannot be made that small.
        """
        needed_bytes = new_bytes + _EDGE_BYTES
        if self.credit[0] < needed_bytes and not self.look().bytes:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        self.credit[0] -= needed_bytes

    def grew(self) -> bool:
        """After tmpfs was full: whether it may hold more than it knew."""
        if self._limits is None:
            return False
        before = self.bound.bytes
        return self.look().bytes > before

    def afford(self, new_bytes: int = 0) -> None:
        """A name, and so many bytes that are in no page, are about to be made. Raises OSError (ENOSPC)."""
        inodes = 1 + new_bytes // _ATTRIBUTE_BYTES
        if self._inodes_afforded + inodes > self._inodes_until_look:
            self.look()
        if self._inodes_afforded + inodes > self._inodes_until or not self._has(new_bytes + NAME_BYTES, 0):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        self._inodes_afforded += inodes

    def afford_open(self) -> None:
        """The kernel is about to hold another file open for the pool, which may take half of the reserve. ENFILE."""
        if not self._has(NAME_BYTES, RESERVE_BYTES // 2):
            raise OSError(ENFILE, os.strerror(ENFILE))

    def _has(self, needed_bytes: int, of_reserve_bytes: int) -> bool:
        if self.credit[0] < needed_bytes:
            room_bytes = self.look().room_bytes
            if room_bytes is not None and room_bytes + of_reserve_bytes < needed_bytes:
                return False
        self.credit[0] -= needed_bytes
        return True

    def has(self, new_bytes: int) -> bool:
        """Whether so much may be charged to the pool now, in files or not."""
        room_bytes = self.look().room_bytes
        return room_bytes is None or room_bytes - self._allocating_bytes >= new_bytes

    @contextmanager
    def allocating(self, new_bytes: int) -> Iterator[None]:
        """While one call makes so many bytes, which may take long. Raises OSError (ENOSPC) where that is too much."""
        if new_bytes <= self.credit[0]:  # which the reserve covers, whatever becomes of it
            self.credit[0] -= new_bytes
            yield
            return
        with self._lock:
            room_bytes = self._look().room_bytes
            if room_bytes is not None and room_bytes - self._allocating_bytes < new_bytes:
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            self._allocating_bytes += new_bytes
            self.credit[0] = self._credit_in(self.bound)
        try:
            yield
        finally:
            with self._lock:
                self._allocating_bytes -= new_bytes

    def close(self) -> None:
        if self._limits is not None:
            self._limits.close()


def check_room(hierarchy: MemoryHierarchy, path: str, size_bytes: int) -> None:
    """Raises CallerMistake where limits leave a new pool there nothing. Warns where that is less than its size."""
    needed_bytes = PROCESS_BYTES + RESERVE_BYTES
    limits = MemoryLimits(hierarchy, path)
    try:
        readings = limits.read(size_bytes + needed_bytes)
    finally:
        limits.close()
    found = bound(size_bytes, 0, readings, needed_bytes)
    least_bytes = min(LEAST_BYTES, size_bytes)
    if found.room_bytes is not None and found.room_bytes < least_bytes:
        raise CallerMistake(
            f"a limit of memory leaves a pool nothing, for its processes need {format_size(needed_bytes)}: raise "
            f"{found.by} by {format_size(least_bytes - found.room_bytes)}, or choose another --cgroup-parent"
        )
    if found.bytes < size_bytes:
        print(
            f"sharedfs: warning: {found.by} leaves the pool {format_size(found.bytes)} "
            f"of its size of {format_size(size_bytes)}: beyond that writers get ENOSPC",
            file=sys.stderr,
        )
