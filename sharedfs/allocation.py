"""Allocation: what gives a file pages or takes them away other than a write, and its line in the books.

The pool's tmpfs makes no huge pages of its own accord (kernel/huge_pages.py), so a write brings the pages that it
wrote and no others. We make them: where a file gets as much at once, and in the background of small pages that are
mapped. Tenants can make some too, by madvise(2). So what a cut left in a huge page that did not split, and what a
fault brought along, is asked of the kernel page by page.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from sharedfs.books import Books
from sharedfs.inodes import Inodes
from sharedfs.kernel import huge_pages, page_cache, syscalls
from sharedfs.kernel.huge_pages import ALWAYS, WITHIN_SIZE
from sharedfs.kernel.pagemap import PAGE_BYTES
from sharedfs.kernel.shortage import SCARCE
from sharedfs.lost_pages import LostPages
from sharedfs.model.cells import PAGES_PER_CHUNK
from sharedfs.model.ranges import LAST_PAGE, PageRange, Runs, as_runs, common
from sharedfs.model.tenant import NOBODY, TenantId
from sharedfs.node import Node
from sharedfs.page_moves import PageMoves, Round

# Making a huge page of small ones takes 1 to 3 ms, and faults in it wait.
_COLLAPSED_AT_ONCE = 8
_CHUNK_BYTES = PAGES_PER_CHUNK * PAGE_BYTES

ByteRange = tuple[int, int]


class Allocation:
    """For one pool. Safe from any thread: the kernel lets in one change of a file at a time.

    `huge` is the pool's option: where huge pages are made within a file's size, or beyond it as well ("always").
    """

    def __init__(self, inodes: Inodes, books: Books, moves: PageMoves, huge: str) -> None:
        self._inodes = inodes
        self._books = books
        self.moves = moves
        # Before Linux 6.5 we cannot ask; there is no passthrough then, so nothing comes about without us.
        self._can_ask = page_cache.can_be_asked()
        self.huge_bytes = huge_pages.page_bytes()
        self._huge_bytes = self.huge_bytes or PAGE_BYTES
        self._makes_huge = huge in (ALWAYS, WITHIN_SIZE)
        self._beyond_size = huge == ALWAYS
        # Files with pages beyond their size, which the kernel may take from a huge page when memory is short.
        self._with_tail: set[int] = set()
        self._lost = LostPages(inodes, books)
        # Pages that a look found unbooked, by inode.
        self._suspects: dict[int, list[PageRange]] = {}
        # Windows in which a huge page was made of small ones, by number; of files that are mapped.
        self._collapsed: dict[int, set[int]] = {}

    # -- what tenants ask for ----------------------------------------------------------------------------------------

    def allocate(self, node: Node, mode: int, start: int, end: int, tenant: TenantId) -> None:
        """fallocate(2) on bytes `start`..`end` (exclusive) for `tenant`. When it fails, nothing was allocated."""
        with (
            self._inodes.opened(node, os.O_RDWR) as fd,
            self._inodes.tmpfs.room.allocating(self._needed_bytes(fd, start, end)),
            self._books.changing(node.inode),
        ):
            self.book_strays(node)  # or they would be taken for what this call brings
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
            self._books.charge_allocated(node.inode, [_pages(start, end)], tenant)
            beyond = [window for window in made if window[0] < start or window[1] > end]
            for window in beyond:
                self._books.charge_allocated(node.inode, self._resident(fd, *_pages(*window)), tenant)
                self._with_tail.add(node.inode)

    def _needed_bytes(self, fd: int, start: int, end: int) -> int:
        """How much is to be made for bytes `start`..`end` of a file: what it has not, where that matters."""
        if end - start <= self._inodes.tmpfs.room.credit[0]:
            return end - start
        first, last = _pages(start, end)
        there = page_cache.resident_pages(fd, first, last) if self._can_ask else 0
        return (last - first + 1 - there) * PAGE_BYTES

    def _make_huge(self, fd: int, start: int, end: int, size: int, *, keep_size: bool) -> list[ByteRange]:
        """Huge pages where an allocation will be and nothing is yet; the byte ranges where it was tried.

        They can be made within the file's size only, which is what it will be: with KEEP_SIZE the rest stays small.
        """
        huge, free = self._huge_bytes, os.fstatvfs(fd)
        within = min(end, size) if keep_size else end
        if self._beyond_size:
            first, last = start // huge * huge, -(-within // huge) * huge
        else:
            first, last = -(-start // huge) * huge, within // huge * huge
        if not first < last <= first + free.f_bavail * free.f_bsize:
            return []
        if end > size and not keep_size:
            os.ftruncate(fd, end)
            size = end
        made = []
        with suppress(OSError):  # full, or no huge pages to be had: fallocate(2) will say what is to be said
            for window in range(first, last, huge):
                if page_cache.resident_pages(fd, *_pages(window, window + huge)) == 0:
                    made.append((window, window + huge))
                    huge_pages.populate(fd, window, window + huge, size)
        return made

    def punch(self, node: Node, mode: int, start: int, end: int) -> None:
        """fallocate(2) with FALLOC_FL_PUNCH_HOLE, chunk by chunk: whoever waits for the file's pages gets on."""
        with self._inodes.opened(node, os.O_RDWR) as fd:
            for chunk in self._books.chunks_of(node.inode, *_pages(start, end)):
                first, last = max(start, chunk * _CHUNK_BYTES), min(end, (chunk + 1) * _CHUNK_BYTES)
                syscalls.fallocate(fd, mode, first, last - first)
                self._uncharge(node.inode, fd, first, last)
            syscalls.fallocate(fd, mode, start, end - start)  # and what the books know nothing of
            self._uncharge(node.inode, fd, start, end)

    def free_chunk(self, inode: int, fd: int, chunk: int) -> int:
        """Free PAGES_PER_CHUNK pages of a file that nobody can use any more. The pages that are gone."""
        before = self._books.resident_bytes_of(inode)
        syscalls.punch_hole(fd, chunk * _CHUNK_BYTES, _CHUNK_BYTES)
        self._uncharge(inode, fd, chunk * _CHUNK_BYTES, (chunk + 1) * _CHUNK_BYTES)
        return (before - self._books.resident_bytes_of(inode)) // PAGE_BYTES

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
        kept = self._resident(fd, first, last)
        if kept:
            self._with_tail.add(inode)
        self._books.uncharge(inode, first, last, kept)

    # -- what comes about without us ---------------------------------------------------------------------------------

    def book_strays(self, node: Node, fd: int | None = None) -> None:
        """Find pages that a mapping brought into a hole and that no scan saw, for it was gone by then.

        When no write or allocation of the file is between its system call and its line in the books. `fd` saves to
        open the file. Pages that it has lost are left to the next look.
        """
        if self._has_strays(node, fd):
            with self._inodes.opened(node) as opened_fd:
                self._books.charge_strays(node.inode, self._resident(opened_fd, 0, LAST_PAGE))

    def _has_strays(self, node: Node, fd: int | None = None) -> bool:
        with self._inodes.lock:
            blocks = (self._inodes.stat(node) if fd is None else os.fstat(fd)).st_blocks
        surplus = blocks * syscalls.STAT_BLOCK_BYTES - self._books.resident_bytes_of(node.inode)
        if surplus < 0:
            self._lost.suspect(node.inode)
        return surplus > 0

    def keep_up(self, mapped: Sequence[tuple[int, Runs]]) -> None:
        """After each mapping scan, with what it saw mapped of which inode. For one thread."""
        self._find_lost()
        if self._can_ask:
            self._lost.look(inode for inode, _ in mapped)
        self._find_strays()
        if self._makes_huge:
            self._collapse(mapped)

    def _find_strays(self) -> None:
        """As `book_strays`, of files that stay open. What two looks found is no write that is just under way."""
        suspects: dict[int, list[PageRange]] = {}
        if self._inodes.tmpfs.used_bytes() != self._books.resident_bytes():
            for node in [node for node in list(self._inodes.nodes.values()) if node.may_be_mapped]:
                with suppress(OSError):  # gone
                    found = self._unbooked(node)
                    if found:
                        suspects[node.inode] = found
                        self._charge_strays(node, common(found, self._suspects.get(node.inode, ())))
        self._suspects = suspects

    def _charge_strays(self, node: Node, pages: list[PageRange]) -> None:
        """Unless the file is gone: we had it open, and the books will not be told once more."""
        with self._inodes.lock:
            if self._inodes.nodes.get(node.inode) is node:
                self._books.charge_strays(node.inode, pages)

    def _unbooked(self, node: Node) -> list[PageRange]:
        if node.inode in self._books.in_change or not self._has_strays(node):
            return []
        with self._inodes.opened(node) as fd:
            return self._books.absent(node.inode, self._resident(fd, 0, LAST_PAGE))

    def brought_along(self, inode: int, pages: Runs) -> list[PageRange]:
        """What is resident in the huge pages around `pages`, which a tenant's fault brought into a hole."""
        per_huge = self._huge_bytes // PAGE_BYTES
        windows = as_runs(pages // per_huge * per_huge + (0, per_huge - 1)).tolist()
        with suppress(OSError), self._inodes.opened(self._known(inode)) as fd:
            if any(last * PAGE_BYTES >= os.fstat(fd).st_size for _, last in windows):
                self._with_tail.add(inode)
            return [run for window in windows for run in self._resident(fd, *window)]
        return []  # it is gone

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
                if not self._resident(fd, first, LAST_PAGE):
                    self._with_tail.discard(inode)
            self._lost.compare(node, first)

    def _collapse(self, mapped: Sequence[tuple[int, Runs]]) -> None:
        """Make some huge pages of small ones where files are mapped: all in one huge page's place must be resident.

        The kernel's khugepaged would do so too if the tmpfs let it, and charge the tenant. Foreign pages are left as
        they are, for they would be the pool's afterwards and no foreign ones any more.
        """
        inodes = {inode for inode, _ in mapped}
        self._collapsed = {inode: done for inode, done in self._collapsed.items() if inode in inodes}
        left = _COLLAPSED_AT_ONCE
        with self.moves.round() as moves:
            for inode, pages in mapped:
                if left and not self._books.has_foreign(inode):
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
                if window not in done and page_cache.resident_pages(fd, *_pages(start, end)) == full:
                    tried += 1
                    done.add(window)
                    with moves.moving(inode, *_pages(start, end)):
                        huge_pages.collapse(fd, start, end)
                if tried == most:
                    break
        return tried

    def collapse(self, fd: int, start: int, end: int) -> None:
        """Have the kernel charge the pool for a window of 2 MiB, whoever it charged before: `huge_pages.collapse`.

        In a pool without huge pages small ones are made of them again.
        """
        huge_pages.collapse(fd, start, end, split=not self._makes_huge)

    def book_filled(self, node: Node, fd: int, first: int, last: int) -> list[PageRange]:
        """After `collapse`: the pages that it made in holes are nobody's, and go again where they are beyond the end.

        Returns what is resident of the window. When nobody else changes the file by a request.
        """
        beyond = max(first, -(-os.fstat(fd).st_size // PAGE_BYTES))
        for start, end in self._books.absent(node.inode, [(beyond, last)]) if beyond <= last else ():
            syscalls.punch_hole(fd, start * PAGE_BYTES, (end - start + 1) * PAGE_BYTES)
        there = self._resident(fd, first, last)
        if any(end >= beyond for _, end in there):
            self._with_tail.add(node.inode)
        self._books.charge_allocated(node.inode, there, NOBODY)
        return there

    def _windows(self, pages: Runs, size: int) -> Iterator[int]:
        """Where huge pages may be within a file's size, by number, as far as one of `pages` is in them."""
        for first, last in as_runs(pages // (self._huge_bytes // PAGE_BYTES)).tolist():
            for window in range(first, last + 1):
                if (window + 1) * self._huge_bytes <= size:
                    yield window

    def _resident(self, fd: int, first: int, last: int) -> list[PageRange]:
        return page_cache.resident_runs(fd, first, last) if self._can_ask else []

    def _known(self, inode: int) -> Node:
        with self._inodes.lock:
            return self._inodes.find(inode)


def _pages(start: int, end: int) -> PageRange:
    """The pages of bytes `start`..`end` (exclusive, not empty)."""
    return start // PAGE_BYTES, (end - 1) // PAGE_BYTES
