"""Reconcile: pages that come and go without a request to the daemon, and their line in the books.

A page fault in a hole makes a page, or a whole huge page; the kernel takes what it likes beyond a file's end, and a
tenant punches holes through a mapping (`pages/lost_pages.py`). So after each mapping scan the files that are or were
mapped are compared with their books, and what a fault brought along is asked of the kernel page by page: which pages
are there, and whom it charges for them (`pages/kernel_charges.py`).

Huge pages are made of small ones here too, in the background: the pool's tmpfs makes none of its own accord.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from sharedfs.accounting.books import Books
from sharedfs.common.errors import SCARCE
from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange, Runs, as_runs, common, without
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import cachestat, huge_pages, syscalls
from sharedfs.linux.huge_pages import ALWAYS, WITHIN_SIZE
from sharedfs.pages.kernel_charges import Charged, KernelCharges
from sharedfs.pages.lost_pages import LostPages
from sharedfs.pages.page_moves import PageMoves, Round
from sharedfs.storage.inodes import Inodes
from sharedfs.storage.node import Node

# Making a huge page of small ones takes 1 to 3 ms, and faults in it wait.
_COLLAPSED_AT_ONCE = 8


class Reconcile:
    """For one pool. `keep_up` is for one thread, the rest safe from any.

    `huge` is the pool's option: huge pages are made of small ones where it is "always" or "within_size".
    """

    def __init__(self, inodes: Inodes, books: Books, moves: PageMoves, huge: str, charges: KernelCharges) -> None:
        self._inodes = inodes
        self._charges = charges
        self._books = books
        self._moves = moves
        # Not before Linux 6.5: there is no passthrough then, so no page comes about without a request.
        self._can_ask = cachestat.can_be_asked()
        self.huge_bytes = huge_pages.page_bytes()
        self._huge_bytes = self.huge_bytes or PAGE_BYTES
        self._makes_huge = huge in (ALWAYS, WITHIN_SIZE)
        # Files with pages beyond their size, which the kernel may take from a huge page when memory is short.
        self._with_tail: set[int] = set()
        self._lost = LostPages(inodes, books)
        # Pages that a look found unbooked, by inode.
        self._suspects: dict[int, list[PageRange]] = {}
        # Windows in which a huge page was made of small ones, by number; of files that are mapped.
        self._collapsed: dict[int, set[int]] = {}

    def resident(self, fd: int, first: int, last: int) -> list[PageRange]:
        """The pages of an inclusive range that a file has; none where the kernel cannot be asked."""
        return cachestat.resident_runs(fd, first, last) if self._can_ask else []

    def note_tail(self, inode: int) -> None:
        """A file has pages beyond its size."""
        self._with_tail.add(inode)

    # -- strays: pages that the books have not -----------------------------------------------------------------------

    def book_strays(self, node: Node, fd: int | None = None, asked: PageRange | None = None) -> None:
        """Find pages that a mapping brought into a hole and that no scan saw, for it was gone by then.

        When no write or allocation of the file is between its system call and its line in the books. `fd` saves to
        open the file. Pages that it has lost are left to the next look. The caller makes the pages `asked`, and books
        those that a daemon had made for it already when it was killed.
        """
        if self._has_strays(node, fd):
            with self._inodes.opened(node) as opened_fd:
                found = self._books.questions.absent(node.inode, self.resident(opened_fd, 0, LAST_PAGE))
                if asked is not None and found:
                    own = self._made_by_us(opened_fd, common(found, [asked]))
                    found = [(first, last) for first, last in without(as_runs(found), as_runs(own)).tolist()]
                self._charge_strays(node.inode, opened_fd, found)

    def _made_by_us(self, fd: int, pages: list[PageRange]) -> list[PageRange]:
        """Which of these a daemon made: no fault makes pages behind a file's end, or charges any to the pool."""
        end = -(-os.fstat(fd).st_size // PAGE_BYTES)
        return [*common(pages, [(end, LAST_PAGE)]), *common(pages, self._charges.of(fd, pages).of_pool())]

    def _has_strays(self, node: Node, fd: int | None = None) -> bool:
        with self._inodes.lock:
            blocks = (self._inodes.stat(node) if fd is None else os.fstat(fd)).st_blocks
        surplus = blocks * syscalls.STAT_BLOCK_BYTES - self._books.questions.resident_bytes_of(node.inode)
        if surplus < 0:
            self._lost.suspect(node.inode)
        return surplus > 0

    def _find_strays(self) -> None:
        """As `book_strays`, of files that stay open. What two looks found is no write that is just under way."""
        suspects: dict[int, list[PageRange]] = {}
        if self._inodes.tmpfs.used_bytes() != self._books.questions.resident_bytes():
            for node in [node for node in list(self._inodes.nodes.values()) if node.may_be_mapped]:
                with suppress(OSError):  # gone
                    found = self._unbooked(node)
                    if found:
                        suspects[node.inode] = found
                        self._charge_known(node, common(found, self._suspects.get(node.inode, ())))
        self._suspects = suspects

    def _charge_known(self, node: Node, pages: list[PageRange]) -> None:
        """Unless the file is gone: the daemon had it open, and the books will not be told once more."""
        if pages:
            with self._inodes.opened(node) as fd, self._inodes.lock:
                if self._inodes.nodes.get(node.inode) is node:
                    self._charge_strays(node.inode, fd, pages)

    def _charge_strays(self, inode: int, fd: int, pages: list[PageRange]) -> None:
        """Book pages for whom the kernel charges; for nobody what it does not tell of, as what is in swap."""
        charged = self._charges.of(fd, pages)
        self._books.pages.charge_strays(inode, charged.of_pool(), foreign=False)
        for tenant in charged.tenants:
            self._books.pages.charge_strays(inode, charged.pages_of(tenant), tenant)
        self._books.pages.charge_strays(inode, pages)

    def _unbooked(self, node: Node) -> list[PageRange]:
        if node.inode in self._books.changes.in_change or not self._has_strays(node):
            return []
        with self._inodes.opened(node) as fd:
            return self._books.questions.absent(node.inode, self.resident(fd, 0, LAST_PAGE))

    def book_brought(self, inode: int, tenant: TenantId, pages: Runs) -> None:
        """Pages that the books do not have, and `tenant` maps: a page fault brought them into a hole, or huge pages.

        They are whose the kernel says, and `tenant`'s where it does not tell. What it charges to the pool a request is
        about to book.
        """
        per_huge = self._huge_bytes // PAGE_BYTES
        windows = as_runs(pages // per_huge * per_huge + (0, per_huge - 1)).tolist()
        brought, charged = pages, Charged()
        with suppress(OSError), self._inodes.opened(self._known(inode)) as fd:  # else it is gone
            if any(last * PAGE_BYTES >= os.fstat(fd).st_size for _, last in windows):
                self.note_tail(inode)
            along = [run for window in windows for run in self.resident(fd, *window)]
            brought = as_runs([*[(first, last) for first, last in pages.tolist()], *along])
            charged = self._charges.of(fd, self._books.questions.absent(inode, _pairs(brought)))
        for maker in charged.tenants:
            self._books.mappings.bring(inode, maker, charged.pages_of(maker))
        self._books.mappings.bring(inode, tenant, _pairs(without(brought, as_runs(charged.of_pool()))))

    # -- after a mapping scan ----------------------------------------------------------------------------------------

    def keep_up(self, mapped: Sequence[tuple[int, Runs]]) -> None:
        """After each mapping scan, with what it saw mapped of which inode. For one thread."""
        self._find_lost()
        if self._can_ask:
            self._lost.look(inode for inode, _ in mapped)
        self._find_strays()
        if self._makes_huge:
            self._collapse(mapped)

    def _find_lost(self) -> None:
        """Find what the kernel took of the pages beyond files' sizes."""
        for inode in list(self._with_tail):
            try:
                node = self._known(inode)
            except OSError as error:  # it is gone
                if error.errno in SCARCE:
                    raise
                self._with_tail.discard(inode)
                continue
            with self._inodes.opened(node) as fd:
                first = -(-os.fstat(fd).st_size // PAGE_BYTES)
                if not self.resident(fd, first, LAST_PAGE):
                    self._with_tail.discard(inode)
            self._lost.compare(node, first)

    def find_lost_in(self, inode: int, fd: int, part: PageRange) -> None:
        """Take out of the books what an open file has not of a range of pages, whatever its sum says."""
        if self._can_ask:
            self._lost.compare_part(inode, fd, part)

    # -- huge pages of small ones ------------------------------------------------------------------------------------

    def _collapse(self, mapped: Sequence[tuple[int, Runs]]) -> None:
        """Make some huge pages of small ones where files are mapped: all in one huge page's place must be resident.

        The kernel's khugepaged would do so too if the tmpfs let it, and charge the tenant. Foreign pages are left as
        they are, for they would be the pool's afterwards and no foreign ones any more.
        """
        inodes = {inode for inode, _ in mapped}
        self._collapsed = {inode: done for inode, done in self._collapsed.items() if inode in inodes}
        left = _COLLAPSED_AT_ONCE
        with self._moves.round() as moves:
            for inode, pages in mapped:
                if left and not self._books.questions.has_foreign(inode):
                    left -= self._collapse_file(inode, pages, moves, left)

    def _collapse_file(self, inode: int, pages: Runs, moves: Round, most: int) -> int:
        """How many huge pages were made of small ones, or tried, at most `most`."""
        done = self._collapsed.setdefault(inode, set())
        tried = 0
        # It may be gone, or its pages be held just now: perhaps with the next mapping.
        with suppress(OSError), self._inodes.opened(self._known(inode), os.O_RDWR) as fd:
            for window in self._windows(pages, os.fstat(fd).st_size):
                start, end = window * self._huge_bytes, (window + 1) * self._huge_bytes
                full = self._huge_bytes // PAGE_BYTES
                in_window = window * full, (window + 1) * full - 1
                if window not in done and cachestat.resident_pages(fd, *in_window) == full:
                    tried += 1
                    done.add(window)
                    with moves.moving(inode, *in_window):
                        huge_pages.collapse(fd, start, end)
                if tried == most:
                    break
        return tried

    def _windows(self, pages: Runs, size: int) -> Iterator[int]:
        """Where huge pages may be within a file's size, by number, as far as one of `pages` is in them."""
        for first, last in as_runs(pages // (self._huge_bytes // PAGE_BYTES)).tolist():
            for window in range(first, last + 1):
                if (window + 1) * self._huge_bytes <= size:
                    yield window

    def collapse(self, fd: int, start: int, end: int) -> None:
        """Have the kernel charge the pool for a window of 2 MiB, whoever it charged before: `huge_pages.collapse`.

        In a pool without huge pages small ones are made of them again.
        """
        huge_pages.collapse(fd, start, end, split=not self._makes_huge)

    def book_filled(self, node: Node, fd: int, first: int, last: int, tenant: TenantId) -> list[PageRange]:
        """After `collapse`: pages that it made in holes are `tenant`'s, and go again where they are beyond the end.

        Returns what is resident of the window. When nobody else changes the file by a request.
        """
        beyond = max(first, -(-os.fstat(fd).st_size // PAGE_BYTES))
        for start, end in self._books.questions.absent(node.inode, [(beyond, last)]) if beyond <= last else ():
            syscalls.punch_hole(fd, start * PAGE_BYTES, (end - start + 1) * PAGE_BYTES)
        return self.book_there(node, fd, first, last, tenant)

    def book_there(self, node: Node, fd: int, first: int, last: int, tenant: TenantId = NOBODY) -> list[PageRange]:
        """What is resident of a window that only the daemon changes: pages that the books have not are `tenant`'s."""
        there = self.resident(fd, first, last)
        if there and there[-1][1] * PAGE_BYTES >= os.fstat(fd).st_size:
            self.note_tail(node.inode)
        self._books.pages.charge_allocated(node.inode, there, tenant)
        return there

    def _known(self, inode: int) -> Node:
        with self._inodes.lock:
            return self._inodes.find(inode)


def _pairs(runs: Runs) -> list[PageRange]:
    return [(first, last) for first, last in runs.tolist()]
