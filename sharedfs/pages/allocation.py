"""Allocation: what gives a file pages or takes them away other than a write, and its line in the books.

The pool's tmpfs makes no huge pages of its own accord (linux/huge_pages.py), so a write brings the pages that it
wrote and no others. The daemon makes them where a file gets as much at once, and `pages/reconcile.py` of small pages
that are mapped. Tenants can make some too, by madvise(2). So what a cut left in a huge page that did not split is asked
of the kernel page by page.
"""

import os
from contextlib import suppress

from sharedfs.accounting.books import Books
from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange
from sharedfs.ledger.tenant import TenantId
from sharedfs.linux import cachestat, huge_pages, syscalls
from sharedfs.linux.huge_pages import ALWAYS, WITHIN_SIZE
from sharedfs.pages.reconcile import Reconcile
from sharedfs.storage.inodes import Inodes
from sharedfs.storage.node import Node

_CHUNK_BYTES = PAGES_PER_CHUNK * PAGE_BYTES

ByteRange = tuple[int, int]


class Allocation:
    """For one pool. Safe from any thread: the kernel lets in one change of a file at a time.

    `huge` is the pool's option: where huge pages are made within a file's size, or beyond it as well ("always").
    """

    def __init__(self, inodes: Inodes, books: Books, reconcile: Reconcile, huge: str) -> None:
        self._inodes = inodes
        self._books = books
        self._reconcile = reconcile
        self._can_ask = cachestat.can_be_asked()
        self._huge_bytes = reconcile.huge_bytes or PAGE_BYTES
        self._makes_huge = huge in (ALWAYS, WITHIN_SIZE)
        self._beyond_size = huge == ALWAYS

    def allocate(self, node: Node, mode: int, start: int, end: int, tenant: TenantId) -> None:
        """fallocate(2) on bytes `start`..`end` (exclusive) for `tenant`. When it fails, nothing was allocated."""
        with (
            self._inodes.opened(node, os.O_RDWR) as fd,
            self._inodes.tmpfs.room.allocating(self._needed_bytes(fd, start, end)),
            self._books.changes.under_way(node.inode),
        ):
            # Or they would be taken for what this call brings.
            self._reconcile.book_strays(node, asked=_pages(start, end))
            made: list[ByteRange] = []
            size = os.fstat(fd).st_size
            if self._makes_huge:
                made = self._make_huge(fd, start, end, size, keep_size=bool(mode & syscalls.FALLOC_FL_KEEP_SIZE))
            try:
                syscalls.fallocate(fd, mode, start, end - start)
            except OSError:
                for first, last in made:
                    syscalls.punch_hole(fd, first, last - first)
                if os.fstat(fd).st_size > size:
                    os.ftruncate(fd, size)
                    self._uncharge(node.inode, fd, size, None)
                raise
            self._books.pages.charge_allocated(node.inode, [_pages(start, end)], tenant)
            beyond = [window for window in made if window[0] < start or window[1] > end]
            for window in beyond:
                self._books.pages.charge_allocated(node.inode, self._reconcile.resident(fd, *_pages(*window)), tenant)
                self._reconcile.note_tail(node.inode)

    def _needed_bytes(self, fd: int, start: int, end: int) -> int:
        """How much is to be made for bytes `start`..`end` of a file: what it has not, where that matters."""
        if end - start <= self._inodes.tmpfs.room.credit[0]:
            return end - start
        first, last = _pages(start, end)
        there = cachestat.resident_pages(fd, first, last) if self._can_ask else 0
        return (last - first + 1 - there) * PAGE_BYTES

    def _make_huge(self, fd: int, start: int, end: int, size: int, *, keep_size: bool) -> list[ByteRange]:
        """Huge pages where an allocation will be and nothing is yet; the byte ranges where it was tried.

        They can be made within the file's size only, which is what it will be: with KEEP_SIZE the rest stays small.
        """
        huge = self._huge_bytes
        within = min(end, size) if keep_size else end
        if self._beyond_size:
            first, last = start // huge * huge, -(-within // huge) * huge
        else:
            first, last = -(-start // huge) * huge, within // huge * huge
        if not first < last <= first + self._inodes.tmpfs.free_bytes():
            return []
        if end > size and not keep_size:
            os.ftruncate(fd, end)
            size = end
        made = []
        with suppress(OSError):  # full, or no huge pages to be had: fallocate(2) will say what is to be said
            for window in range(first, last, huge):
                if cachestat.resident_pages(fd, *_pages(window, window + huge)) == 0:
                    made.append((window, window + huge))
                    huge_pages.populate(fd, window, window + huge, size)
        return made

    def punch(self, node: Node, mode: int, start: int, end: int) -> None:
        """fallocate(2) with FALLOC_FL_PUNCH_HOLE, chunk by chunk: whoever waits for the file's pages gets on."""
        with self._inodes.opened(node, os.O_RDWR) as fd:
            for chunk in self._books.questions.chunks_of(node.inode, *_pages(start, end)):
                first, last = max(start, chunk * _CHUNK_BYTES), min(end, (chunk + 1) * _CHUNK_BYTES)
                syscalls.fallocate(fd, mode, first, last - first)
                self._uncharge(node.inode, fd, first, last)
            syscalls.fallocate(fd, mode, start, end - start)  # and what the books know nothing of
            self._uncharge(node.inode, fd, start, end)

    def free_chunk(self, inode: int, fd: int, chunk: int) -> int:
        """Free PAGES_PER_CHUNK pages of a file that nobody can use any more. The pages that are gone."""
        before = self._books.questions.resident_bytes_of(inode)
        syscalls.punch_hole(fd, chunk * _CHUNK_BYTES, _CHUNK_BYTES)
        self._uncharge(inode, fd, chunk * _CHUNK_BYTES, (chunk + 1) * _CHUNK_BYTES)
        return (before - self._books.questions.resident_bytes_of(inode)) // PAGE_BYTES

    def truncated(self, node: Node, size: int) -> None:
        """The file was cut to `size`."""
        with self._inodes.opened(node) as fd:
            self.truncated_by(node.inode, fd, size)

    def truncated_by(self, inode: int, fd: int, size: int) -> None:
        self._uncharge(inode, fd, size, None)

    def _uncharge(self, inode: int, fd: int, start: int, end: int | None) -> None:
        first = -(-start // PAGE_BYTES)
        last = LAST_PAGE if end is None else end // PAGE_BYTES - 1
        if first > last:
            return
        kept = self._reconcile.resident(fd, first, last)
        if kept:
            self._reconcile.note_tail(inode)
        self._books.pages.uncharge(inode, first, last, kept)


def _pages(start: int, end: int) -> PageRange:
    """The pages of bytes `start`..`end` (exclusive, not empty)."""
    return start // PAGE_BYTES, (end - 1) // PAGE_BYTES
