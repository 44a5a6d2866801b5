"""Detached pages: in no file any more, and still in memory and charged to the pool, because somebody holds them.

A page stays when it is cut off its file, or the file is removed, as long as it is in a pipe, in a buffer of io_uring or
under direct I/O. tmpfs counts it no more. The books do, so that nobody holds memory for nothing: the pool's size is
smaller by it (`storage/room.py` asks at each 64 MiB that are written), and those who used the pages last pay for it
(`accounting/detached.py`).
"""

from sharedfs.accounting.books import Books
from sharedfs.common.units import PAGE_BYTES
from sharedfs.linux.cgroup_memory import batch_bytes
from sharedfs.pages.moved_charges import MovedCharges
from sharedfs.pages.pool_charge import PoolCharge


class DetachedPages:
    """Of one pool. `look` is for one thread, `bytes_now` for any."""

    def __init__(self, books: Books, charge: PoolCharge, moved: MovedCharges) -> None:
        self._books = books
        self._charge = charge
        self._moved = moved
        self._error_bytes = batch_bytes()
        self._before_bytes = 0

    def bytes_now(self) -> int:
        """What there is by one reading, less the error; 0 for little."""
        found_bytes = self._charge.surplus_bytes() + self._moved.bytes - self._error_bytes
        return found_bytes // PAGE_BYTES * PAGE_BYTES if found_bytes > self._error_bytes else 0

    def look(self) -> None:
        """Book it. What two looks found is no page that was just on its way into a file or out of it."""
        found_bytes = self.bytes_now()
        steady_bytes, self._before_bytes = min(found_bytes, self._before_bytes), found_bytes
        if abs(steady_bytes - self._books.detached.bytes) > self._error_bytes or not steady_bytes:
            self._books.detached.put(steady_bytes)
