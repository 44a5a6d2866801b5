"""Moves the pages of a file that nobody uses, a window of 2 MiB at a time, and leaves its holes holes.

An exclusive lease proves that nobody has a file open or maps it. It does not prove that nobody can store into its
pages. A process can have registered them as a buffer of io_uring, or a device can be writing to them. Such a holder has
the pages themselves (a pin), and needs no file or mapping any more. The kernel tells nobody which pages are pinned. But
it refuses to collapse them into a huge page. So the daemon has it collapse a window: what was moved was not pinned.

Collapsing fills the window's holes with pages of zeros. They are punched out again afterwards, and nobody can have
seen them: requests wait, and nobody maps the file. A daemon that is killed in between leaves the next one a note
(`storage/move_buffer.py`).
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from errno import EAGAIN, EBUSY, EINVAL, ENOENT, ENOMEM, ESTALE

import numpy as np

from sharedfs.accounting.books import Books
from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import PageRange, gaps
from sharedfs.linux import cachestat, huge_pages, syscalls
from sharedfs.linux.page_charges import frame_of
from sharedfs.pages.reconcile import Reconcile
from sharedfs.storage.fault_injection import RECHARGE, Faults, Point, collapse_is_hidden
from sharedfs.storage.move_buffer import Filled
from sharedfs.storage.node import Node
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tree import Store

SPARE_BYTES = 4 << 20
"""Room in the pool that nobody else can fill in that moment."""
_WHY_NOT = {
    EAGAIN: "some of them are held by the kernel or a device (a pipe, io_uring, direct I/O)",
    EBUSY: "some of them are held by the kernel or a device (a pipe, io_uring, direct I/O)",
    EINVAL: "this kernel collapses no pages of a tmpfs (needs Linux 6.1 and huge pages that are not denied)",
    ENOMEM: "the kernel has no huge page to spare",
}


class CannotMove(Exception):
    """Not now, and why."""


def why_not_collapsed(error: OSError) -> str:
    """Why the kernel did not collapse pages, as a part of a sentence."""
    return _WHY_NOT.get(error.errno or 0, str(error))


class UnusedWindows:
    """Of one pool. For one thread at a time: `move` is called with the store's lock held, while requests wait."""

    def __init__(
        self, store: Store, books: Books, reconcile: Reconcile, state: StateFiles, faults: Faults | None = None
    ) -> None:
        self._store = store
        self._books = books
        self._reconcile = reconcile
        self._faults = faults
        # Without cachestat(2) nobody knows the holes, nor does anybody map the pool's pages: there is no passthrough.
        can_ask = cachestat.can_be_asked() and not collapse_is_hidden()
        self.bytes = reconcile.huge_bytes if can_ask else None
        self._filled = Filled(state, (self.bytes or PAGE_BYTES) // PAGE_BYTES)

    def can_be_moved(self) -> bool:
        """Whether this kernel collapses pages now: an administrator can deny huge pages at any time."""
        return self.bytes is not None and huge_pages.can_collapse()

    def resume(self) -> int | None:
        """Make holes again of what a killed daemon had filled; the inode. Before any request is served."""
        inode = self._filled.held
        if inode is None:
            return None
        try:
            with self._store.lock, self._store.opened(self._store.find(inode), os.O_RDWR) as fd:
                self._make_holes(fd, self._filled.holes, self._filled.times_ns)
        except OSError as error:
            if error.errno not in (ENOENT, ESTALE):
                raise
            inode = None  # it went, with its last user
        self._filled.release()
        return inode

    def move(self, node: Node, fd: int, start: int) -> list[PageRange]:
        """Have the kernel move the pages of the window that begins at byte `start`; those that are there afterwards.

        Nobody has the file open or maps it. What was there is in other frames afterwards, so nobody holds a page of it
        any more. The books have what is there. Raises CannotMove, or OSError when some are held (EAGAIN, EBUSY) or when
        the kernel has no huge page (ENOMEM); the file is as before then.
        """
        assert self.bytes is not None
        if not self._store.tmpfs.room.has(self.bytes):
            raise CannotMove("a limit of memory leaves the pool no room for them")
        window = start // PAGE_BYTES, (start + self.bytes) // PAGE_BYTES - 1
        found, there = os.fstat(fd), self._reconcile.resident(fd, *window)
        holes = list(gaps(there, *window))
        self._filled.hold(found, start, holes)
        with self._room_for(sum(last - first + 1 for first, last in holes) * PAGE_BYTES):
            try:
                self._exchange(fd, start, there[0][0] if there else None)
                if self._faults is not None:
                    self._faults.reached(RECHARGE, Point.HALFWAY)
            finally:
                self._make_holes(fd, holes, (found.st_atime_ns, found.st_mtime_ns))
                self._filled.release()
        return self._reconcile.book_there(node, fd, *window)

    def _exchange(self, fd: int, start: int, page: int | None) -> None:
        """Collapse the window, of which `page` is there. A huge page that is there already is split before that."""
        assert self.bytes is not None
        before = 0 if page is None else frame_of(fd, page)
        self._reconcile.collapse(fd, start, start + self.bytes)
        if before and page is not None and frame_of(fd, page) == before:
            huge_pages.collapse(fd, start, start + self.bytes, split=True)
            self._reconcile.collapse(fd, start, start + self.bytes)
            if frame_of(fd, page) == before:
                raise CannotMove("they are in a huge page that the kernel or a device holds")

    def _room_for(self, hole_bytes: int) -> AbstractContextManager[None]:
        """Filled holes take no room that others were about to have, nor is a full pool in the way."""
        tmpfs = self._store.tmpfs
        return tmpfs.larger(hole_bytes) if tmpfs.free_bytes() < SPARE_BYTES + hole_bytes else nullcontext()

    @staticmethod
    def _make_holes(fd: int, holes: Iterable[PageRange], times_ns: tuple[int, int]) -> None:
        """Nothing but zeros is punched out, whatever the kernel said where the holes are."""
        punched = False
        for first, last in holes:
            start, length = first * PAGE_BYTES, (last - first + 1) * PAGE_BYTES
            if not np.frombuffer(os.pread(fd, length, start), dtype=np.uint8).any():
                syscalls.punch_hole(fd, start, length)
                punched = True
        if punched:
            syscalls.restore_times(fd, *times_ns)
