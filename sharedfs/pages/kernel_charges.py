"""Whom the kernel charges for pages of the pool's files: the pool, a tenant's own cgroup, or one that is gone.

It decides when a page is made: whoever makes it is charged. It also lets a charge move: who has small pages made into a
huge one (MADV_COLLAPSE) is charged for that. /proc/kpagecgroup tells. Where there is none, nobody knows.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from sharedfs.accounting.books import Books
from sharedfs.common.errors import HostFault
from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import PageRange, Runs, as_runs, chosen_in
from sharedfs.ledger.tenant import TenantId
from sharedfs.linux.page_charges import PageCharges

PART_PAGES = 512
"""Looked at in one piece, a huge page of most machines: a few 100 us where small pages lie apart."""


@dataclass(slots=True)
class Charged:
    """Pages by whom the kernel charges; NOBODY for a cgroup that is gone. What is in swap is in none."""

    pool: list[Runs] = field(default_factory=list)
    tenants: dict[TenantId, list[Runs]] = field(default_factory=dict)

    def elsewhere(self) -> list[PageRange]:
        """The pages that are charged to others than the pool, ascending."""
        return _ranges([runs for part in self.tenants.values() for runs in part])

    def pages_of(self, tenant: TenantId) -> list[PageRange]:
        return _ranges(self.tenants.get(tenant, []))

    def of_pool(self) -> list[PageRange]:
        return _ranges(self.pool)


class KernelCharges:
    """For one pool, whose cgroup has this inode number. Safe from any thread."""

    def __init__(self, books: Books, pool_inode: int) -> None:
        self._books = books
        self._pool_inode = pool_inode
        self._charges: PageCharges | None = None
        self._fault: HostFault | None = None
        try:
            self._charges = PageCharges().__enter__()
        except HostFault as fault:
            self._fault = fault

    @property
    def are_told(self) -> bool:
        """Whether this kernel tells."""
        return self._charges is not None

    def check_told(self) -> None:
        """Raises HostFault unless it does."""
        if self._fault is not None:
            raise HostFault(str(self._fault))

    def close(self) -> None:
        if self._charges is not None:
            self._charges.__exit__(None, None, None)

    def of(self, fd: int, pages: Iterable[PageRange]) -> Charged:
        """Of the resident pages in ascending ranges, as far as they are in the file's size. O(pages).

        `fd` is open for reading. Nothing where the kernel does not tell.
        """
        found, runs = Charged(), as_runs(list(pages))
        size, done = os.fstat(fd).st_size, -1
        for first, last in (runs // PART_PAGES).tolist() if self._charges is not None else ():
            for part in range(max(first, done + 1), min(last, size // (PART_PAGES * PAGE_BYTES)) + 1):
                self._look_at(fd, part, size, runs, found)
            done = max(done, last)
        return found

    def _look_at(self, fd: int, part: int, size: int, runs: Runs, found: Charged) -> None:
        first, start = part * PART_PAGES, part * PART_PAGES * PAGE_BYTES
        length = min(PART_PAGES * PAGE_BYTES, size - start)
        seen = self._charges.of_part(fd, start, length) if self._charges is not None and length > 0 else None
        if seen is None:
            return
        pages, groups = seen
        chosen = chosen_in(runs, first, PART_PAGES)
        if not isinstance(chosen, bool):
            wanted = chosen[pages - first]
            pages, groups = pages[wanted], groups[wanted]
        for group in np.unique(groups).tolist():
            self._places(group, found).append(as_runs(np.repeat(pages[groups == group], 2)))

    def _places(self, group: int, found: Charged) -> list[Runs]:
        if group in (self._pool_inode, 0):  # 0: nobody is charged
            return found.pool
        return found.tenants.setdefault(self._books.tenants.charged(group), [])


def _ranges(parts: list[Runs]) -> list[PageRange]:
    return [(first, last) for first, last in as_runs(np.concatenate(parts)).tolist()] if parts else []
