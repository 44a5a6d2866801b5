"""References: the kernel's to inodes, and what becomes of an inode that the kernel and the tree know no more."""

import logging
from collections.abc import Sequence

from sharedfs.accounting.books import Books
from sharedfs.fuse.protocol import ROOT_NODE
from sharedfs.pages.reaper import Reaper
from sharedfs.pages.spill import Spill
from sharedfs.storage.fault_injection import Point
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

_FEW_FORGOTTEN = 32  # files that are removed at once: 1 ms


class References:
    """Call with the store's lock held."""

    def __init__(self, store: Store, books: Books, files: Descriptors, spill: Spill, reaper: Reaper) -> None:
        self._store = store
        self._books = books
        self._files = files
        self._spill = spill
        self._reaper = reaper

    def forget(self, inode: int, lookups: int, *, one_of_many: bool = False) -> None:
        """The kernel has only so many references left. To do this twice does no harm.

        A file that is large, or `one_of_many`, is freed in the background. Of others the books close the account first:
        what is killed after that is found in removed/ and done again.
        """
        if lookups == 0 and inode in self._store.removed:
            if one_of_many or self._reaper.takes(inode):
                self._let_go(inode)
                self._store.slot.reached(Point.HALFWAY)
                self._store.drop(inode)
                self._reaper.add(inode, self._store.removed.pop(inode))
                return
            self.gone(inode)
            self._store.slot.reached(Point.HALFWAY)
        self._store.forget(inode, lookups)

    def forget_all(self, unique: int, dropped: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references: (inode, how many). Goes on where a daemon before us was killed in it."""
        slot = self._store.slot
        done = slot.begin_forgets(unique)
        if done < 0:
            return
        for index in range(done, len(dropped)):
            inode, references = dropped[index]
            lookups = self._store.lookups_of(inode)
            if references > lookups and inode != ROOT_NODE:
                log.error(
                    "the kernel forgets inode %d %d times and was told of it %d times", inode, references, lookups
                )
            if lookups and inode != ROOT_NODE:
                slot.begin_forget(index, inode, max(0, lookups - references))
                self.forget(inode, max(0, lookups - references), one_of_many=len(dropped) > _FEW_FORGOTTEN)
            slot.end_forget(index)
        slot.end_forgets()

    def ended(self, inode: int | None) -> None:
        """An inode without a name that the kernel does not know, if it is one: gone, or in removed/ if it is large."""
        if inode is not None:
            self.forget(inode, 0) if inode in self._store.removed else self.gone(inode)

    def gone(self, inode: int) -> None:
        """An inode leaves the store: no descriptor of the daemon holds its pages, and the books close its account."""
        self._let_go(inode)
        self._books.pages.drop(inode)

    def _let_go(self, inode: int) -> None:
        self._files.discard(inode)
        self._spill.forget(inode)
