"""Swap: which pages of the pool the kernel has swapped out, found by looking, so that they are billed as swap.

A page in swap is one of the pool like any other (I1): it has its users, and they share it. But it takes swap and no
memory, so it is to come off their swap limits. The look costs nothing where the host uses no swap, else O(pages) in a
worker thread. What it found is as old as the last look; a page that has come back meanwhile is billed as swap so long.
"""

import os
from contextlib import suppress
from pathlib import Path

from sharedfs.accounting.books import Books
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange
from sharedfs.linux.cachestat import swapped_pages, swapped_runs
from sharedfs.storage.inodes import Inodes


class SwapScan:
    """For one pool. `look` is for one thread."""

    def __init__(self, inodes: Inodes, books: Books) -> None:
        self._inodes = inodes
        self._books = books

    def look(self) -> None:
        found: dict[int, list[PageRange]] = {}
        if host_uses_swap():
            for inode in self._books.questions.files_where(lambda _: True):
                with suppress(OSError):  # gone meanwhile; or a kernel before 6.5, which cannot say
                    if runs := self._look_at(inode):
                        found[inode] = runs
        self._books.swapped.put(found)

    def _look_at(self, inode: int) -> list[PageRange]:
        with self._inodes.lock:
            node = self._inodes.find(inode)
        with self._inodes.opened(node, os.O_RDONLY | os.O_NONBLOCK) as fd:
            if not swapped_pages(fd, 0, LAST_PAGE):
                return []
            return swapped_runs(fd, self._books.questions.runs_where(inode, lambda _: True))


def host_uses_swap(meminfo: Path = Path("/proc/meminfo")) -> bool:
    sizes = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return sizes["SwapTotal"].split() != sizes["SwapFree"].split()
