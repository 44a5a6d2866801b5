"""What the books answer: who holds how much, and where. Nothing here changes them.

What concerns all classes or many files is copied with the lock held, at the speed of memory, and worked out without it.
"""

from dataclasses import dataclass

from sharedfs.accounting.core import Core
from sharedfs.accounting.unasked import Unasked
from sharedfs.ledger.class_view import Predicate, Verdicts
from sharedfs.ledger.ledger_view import LedgerStatistics
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange, batched
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import Tenant, TenantId

_FILES_AT_ONCE = 2048  # looked at while the lock is held: a millisecond

Holdings = list[tuple[SharingClass, int]]
"""Sharing classes and the bytes that each holds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All of the books at one moment; `tenants` are the live ones.

    `detached` are bytes that are in no file, by who pays; NOBODY's are unclaimed.
    """

    sequence: int
    foreign_bytes: int
    tenants: list[Tenant]
    unasked: Unasked
    detached: dict[TenantId, int]
    holdings: Holdings


@dataclass(frozen=True, slots=True)
class FileReading:
    """Who uses a file. `opened` have a handle on it through which they read without a request.

    `tenants` are those of `opened`, and of the payers, that live.
    """

    holdings: Holdings
    opened: tuple[TenantId, ...]
    tenants: dict[TenantId, Tenant]


class Questions:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = core.lock
        self._ledger = core.ledger
        self._page_bytes = core.page_bytes

    # -- of all files ------------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """Rises with each change of the ledger."""
        return self._ledger.sequence

    def statistics(self) -> LedgerStatistics:
        """`Ledger.statistics`."""
        with self._lock:
            return self._ledger.statistics()

    def resident_bytes(self) -> int:
        with self._lock:
            return self._ledger.resident_bytes

    def foreign_bytes(self) -> int:
        """O(foreign classes)."""
        with self._lock:
            return self._ledger.foreign_bytes

    def files(self) -> list[int]:
        """The files that have pages, in no order."""
        with self._lock:
            return self._ledger.all_files()

    def reading(self) -> Reading:
        with self._lock:
            classes, tenants = self._ledger.classes(), self._core.tenants.live()
            sequence = self._ledger.sequence + self._core.detached.changes
            foreign_bytes, unasked = self._ledger.foreign_bytes, self._core.unasked.copy()
            detached = dict(self._core.detached.by_payer)
        return Reading(sequence, foreign_bytes, tenants, unasked, detached, self._ledger.holdings_of(classes))

    def holdings(self) -> Holdings:
        """`Ledger.holdings`."""
        with self._lock:
            classes = self._ledger.classes()
        return self._ledger.holdings_of(classes)

    def bytes_where(self, wanted: Predicate) -> int:
        return sum(held_bytes for held, held_bytes in self.holdings() if wanted(held))

    def files_where(self, wanted: Predicate) -> list[int]:
        """Files with pages in a class that is `wanted`, ascending. The lock is let go between parts of the files.

        A file that changes meanwhile is as it was when its part was looked at. O(classes) where there is none.
        """
        with self._lock:
            classes = self._ledger.classes()
        if not any(wanted(held) for held, _ in classes.holdings()):
            return []
        with self._lock:
            files = self._ledger.all_files()
        verdicts = Verdicts(classes, wanted)
        found: list[int] = []
        for part in batched(files, _FILES_AT_ONCE):
            with self._lock:
                found += self._ledger.files_among(part, verdicts)
        return sorted(found)

    # -- of one file -------------------------------------------------------------------------------------------------

    def resident_bytes_of(self, inode: int) -> int:
        with self._lock:
            return self._ledger.resident_pages_of(inode) * self._page_bytes

    def absent(self, inode: int, pages: list[PageRange]) -> list[PageRange]:
        with self._lock:
            return self._ledger.absent(inode, pages)

    def runs_where(self, inode: int, wanted: Predicate, first: int = 0, last: int = LAST_PAGE) -> list[PageRange]:
        with self._lock:
            return self._ledger.runs_where(inode, wanted, first, last)

    def classes_in(self, inode: int, pages: PageRange) -> list[SharingClass]:
        """The classes that have pages in a range. O(pages with a cell)."""
        with self._lock:
            return list(self._ledger.holdings_in(inode, [pages]))

    def chunks_of(self, inode: int, first: int, last: int) -> list[int]:
        """The chunks of PAGES_PER_CHUNK pages that have pages in a range, by number, in order. O(chunks log chunks)."""
        with self._lock:
            chunks = self._ledger.chunks_of(inode, first, last)
        return sorted(chunks)

    def file_holdings(self, inode: int) -> Holdings:
        """`Ledger.file_holdings`, worked out without the lock where the file has many classes."""
        with self._lock:
            if not self._ledger.is_large(inode):
                return self._ledger.file_holdings(inode)
            counts, classes = self._ledger.counts_of(inode), self._ledger.classes()
        return [(held, count * self._page_bytes) for held, count in classes.held_by(counts)]

    def has_foreign(self, inode: int) -> bool:
        return any(held.foreign for held, _ in self.file_holdings(inode))

    def file_reading(self, inode: int) -> FileReading:
        """O(readers) with the lock held."""
        holdings = self.file_holdings(inode)
        with self._lock:
            opened = self._core.readers.of(inode)
            named: dict[TenantId, Tenant] = {}
            for number in frozenset(opened).union(*(held.payers for held, _ in holdings)):
                if (tenant := self._core.tenants.get(number)) is not None:
                    named[number] = tenant
        return FileReading(holdings, opened, named)

    def detached_of(self, tenant: TenantId) -> int:
        """The bytes in no file that `tenant` pays for."""
        with self._lock:
            return self._core.detached.by_payer.get(tenant, 0)

    def maker_of(self, inode: int) -> str | None:
        """The cgroup that first had pages of a file, also when it is gone; None when that is not known."""
        with self._lock:
            return self._core.makers.path_of(inode)
