"""Who used a file while another thread was about to take its content away: openings and truncations, as they come."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class RecentUses:
    """For one pool. `lock` is the store's."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._watched: dict[int, int] = {}
        self._opened: set[int] = set()

    def opened(self, inode: int) -> None:
        """Call with the lock held, as `truncated`."""
        self._opened.add(inode)
        self._count(inode)

    def truncated(self, inode: int) -> None:
        self._count(inode)

    def _count(self, inode: int) -> None:
        if inode in self._watched:
            self._watched[inode] += 1

    def take_opened(self) -> set[int]:
        """The files that were opened since the last call."""
        with self._lock:
            opened, self._opened = self._opened, set()
        return opened

    @contextmanager
    def watched(self, inode: int) -> Iterator[Callable[[], int]]:
        """How often a file was opened or truncated since, asked with the lock held. One at a time watches a file."""
        self._watched[inode] = 0
        try:
            yield lambda: self._watched[inode]
        finally:
            del self._watched[inode]
