"""What the kernel charges the pool's cgroup for, beside the pages of its files.

More than the files have: pages that are in no file any more, because somebody holds them (a pipe, a buffer of io_uring,
direct I/O) while they were cut off or their file was removed. Less: charges that have moved to others.
"""

from collections.abc import Callable

from sharedfs.accounting.books import Books
from sharedfs.linux.cgroup_memory import CgroupMemory
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tmpfs import PrivateTmpfs


class PoolCharge:
    """For one pool. `memory` is that of its cgroup, which is also charged for the files of `state`, and for what the
    pool's processes have on other tmpfs: `beside_bytes`."""

    def __init__(
        self,
        tmpfs: PrivateTmpfs,
        books: Books,
        state: StateFiles,
        memory: CgroupMemory | None,
        beside_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._tmpfs = tmpfs
        self._books = books
        self._state = state
        self._memory = memory
        self._beside_bytes = beside_bytes

    def surplus_bytes(self) -> int:
        """How much more it is charged for than files have, negative where it is less; 0 where the kernel does not tell.

        Up to `cgroup_memory.batch_bytes` too much, and inexact by what is written between two readings.
        """
        charged_bytes = None if self._memory is None else self._memory.tmpfs_bytes()
        if charged_bytes is None:
            return 0
        elsewhere_bytes = self._books.questions.foreign_bytes() + self._books.swapped.bytes
        own_bytes = self._state.held_bytes() + self._beside_bytes()
        return charged_bytes - own_bytes - (self._tmpfs.used_bytes() - elsewhere_bytes)
