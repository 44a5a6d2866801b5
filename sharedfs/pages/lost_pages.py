"""Lost pages: those that a file no longer has, although nobody asked the daemon to take them away.

A tenant can punch holes through a mapping that is passed through (MADV_REMOVE), and the kernel takes what it likes of a
huge page beyond a file's end. The books would have more than the tmpfs, and their owner would pay for nothing. So files
that are mapped, or were at the look before, are compared with their books by their sums, and by the page where these
say that pages are missing. That costs a system call a file that is mapped, and nothing else as long as nothing is lost.
Where as many pages came as went, the file's change time tells (`pages/moved_charges.py`).
"""

import time
from collections.abc import Iterable
from functools import partial

from sharedfs.accounting.books import Books
from sharedfs.common.errors import SCARCE
from sharedfs.common.lane import PAUSE_SECONDS
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange, as_runs, gaps, without
from sharedfs.linux import cachestat, syscalls
from sharedfs.storage.inodes import Inodes
from sharedfs.storage.node import Node

_FILES_AT_ONCE = 1000  # some 10 us each
_PAGES_AT_ONCE = 64  # looked at with the books' lock held: some 10 us, a millisecond where every other page is gone


class LostPages:
    """Of one pool. `look` is for one thread, the rest safe from any."""

    def __init__(self, inodes: Inodes, books: Books) -> None:
        self._inodes = inodes
        self._books = books
        self._mapped: frozenset[int] = frozenset()
        # Files to be compared soon, whether they are mapped or not: all after a start, for a daemon that was killed may
        # have had suspects.
        self._suspects = set(books.questions.files())

    def suspect(self, inode: int) -> None:
        """Its sum says that a file has lost pages, and it may not be mapped any more: the next look compares it."""
        self._suspects.add(inode)

    def look(self, mapped: Iterable[int]) -> None:
        """After a mapping scan, which saw these inodes mapped."""
        before, self._mapped = self._mapped, frozenset(mapped)
        suspects = {self._suspects.pop() for _ in range(min(len(self._suspects), _FILES_AT_ONCE))}
        if (
            self._inodes.tmpfs.used_bytes() < self._books.questions.resident_bytes()
        ):  # a mapping can come and go between two scans
            suspects |= {node.inode for node in list(self._inodes.nodes.values()) if node.may_be_mapped}
        for inode in self._mapped | before | suspects:
            try:
                self._look_at(inode)
            except OSError as error:
                if error.errno in SCARCE:
                    self._suspects.add(inode)
                    raise
                # else it is gone

    def _look_at(self, inode: int) -> None:
        with self._inodes.lock:
            node = self._inodes.find(inode)
            found = self._inodes.stat(node)
        if found.st_blocks * syscalls.STAT_BLOCK_BYTES < self._books.questions.resident_bytes_of(inode):
            self.compare(node)

    def compare(self, node: Node, first: int = 0) -> None:
        """Take out of the books what a file has not of its pages from `first` on."""
        with self._inodes.opened(node) as fd:
            for chunk in self._books.questions.chunks_of(node.inode, first, LAST_PAGE):
                start, end = chunk * PAGES_PER_CHUNK, (chunk + 1) * PAGES_PER_CHUNK - 1
                self.compare_part(node.inode, fd, (max(first, start), end))

    def compare_part(self, inode: int, fd: int, part: PageRange) -> None:
        """Take out of the books what an open file has not of a range of pages."""
        there = partial(cachestat.resident_runs, fd)
        booked = gaps(self._books.questions.absent(inode, [part]), *part)
        lost = without(as_runs(list(booked)), as_runs(there(*part)))
        pieces = (range(first, last + 1) for first, last in (lost // _PAGES_AT_ONCE).tolist())
        for start in dict.fromkeys(number * _PAGES_AT_ONCE for piece in pieces for number in piece):
            self._books.pages.lose_absent(inode, max(start, part[0]), min(start + _PAGES_AT_ONCE - 1, part[1]), there)
            time.sleep(PAUSE_SECONDS)
