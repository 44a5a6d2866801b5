"""Which files have pages come or go just now, or lost some lately: what a look saw of them may not be true any more."""

from collections.abc import Iterator
from contextlib import contextmanager

from sharedfs.accounting.core import Core


class Changes:
    def __init__(self, core: Core) -> None:
        self._lock = core.lock
        self.in_change: set[int] = set()
        """Files whose pages come or go, and whose line in the books is to follow."""
        self.shrinking: set[int] = set()
        """Files that lose pages just now, in a thread beside the request pump: nobody is to copy or move these."""
        self.shrunk: set[int] = set()
        """Files that lost pages since the running mapping scan began: what it saw of them may be gone."""
        self.doubtful: set[int] = set()
        """Files that were mapped where the books have no page, and had shrunk meanwhile: the next scan tells."""
        self.shrinks = 0
        """Rises whenever pages go: what was seen of page tables before may be gone."""

    @contextmanager
    def under_way(self, inode: int) -> Iterator[None]:
        """While pages of a file come or go and their line in the books is to follow, however long that takes.

        One at a time for a file, as the kernel lets them in.
        """
        with self._lock:
            self.in_change.add(inode)
        try:
            yield
        finally:
            self.in_change.discard(inode)

    def begin_shrinking(self, inode: int) -> None:
        """Pages of a file are about to go, without a lock. With the store's lock held: who moves pages has it, too."""
        with self._lock:
            self.shrinking.add(inode)
            self.shrunk.add(inode)

    def end_shrinking(self, inode: int) -> None:
        with self._lock:
            self.shrunk.add(inode)
            self.shrinking.discard(inode)
