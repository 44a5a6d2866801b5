"""Mappings: which tenants map which pages of the pool, found in page tables.

A mapped access never calls the daemon, nor does read(2) of a file that is read fast, so a scan looks for it: the
processes of the host whose maps show the mount, and of these mappings the pages that are present. The kernel maps up to
64 KiB around a page that is read for the first time (fault-around), so a page that was mapped and never looked at can
be among them: to the kernel it is in use.

`scan` waits for the process that looks at others (`pages/process_looks.py`), in a worker thread; what it saw is put
into the books afterwards. What is known of a process that cannot be looked at stays in the books.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from sharedfs.accounting.books import Books
from sharedfs.ledger.page_ranges import NO_RUNS, Runs, as_runs
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.pages.page_tables import Sight
from sharedfs.pages.process_looks import ProcessLooks, Unseen
from sharedfs.pages.reconcile import Reconcile
from sharedfs.pages.short_mappings import Gone, ShortMappings

Key = tuple[int, TenantId]
Seen = dict[Key, Runs]


class MappingScan:
    """Finds the mappings of one mount and keeps the books' view of them."""

    def __init__(
        self,
        books: Books,
        reconcile: Reconcile,
        looks: ProcessLooks,
        reads_fast: Callable[[], bool] = lambda: False,
        short: ShortMappings | None = None,
    ) -> None:
        """`reads_fast`: who has a file open for reading only may read all of it unseen."""
        self._books = books
        self._reconcile = reconcile
        self._looks = looks
        self._known: set[Key] | None = None
        """What the last scan saw. None: none has yet, and what is mapped in the books is left of another daemon's."""
        self._unseen: tuple[Unseen, ...] = ()
        self._reads_fast = reads_fast
        self.short = ShortMappings(books, None, lambda _: NOBODY) if short is None else short
        self._gone: list[Gone] = []
        """What was mapped before the last scan, and no more when it looked."""
        self._opened: set[Key] = set()
        """Who has which file open so, of the last scan."""
        self.scans = 0

    def scan(self) -> Seen:
        """The pages of each file that each tenant maps now, as far as its processes can be looked at."""
        gone, since = self._books.mappings.begin_scan()
        waiting = self.short.begin_scan()
        sights, self._unseen = self._looks.all(pages=True, opened=self._reads_fast())
        self._opened = {(inode, tenant) for sight, tenant in sights for inode in sight.opened if tenant != NOBODY}
        unseen = {process.process_id for process in self._unseen}
        mapped = {
            (sight.process.id, inode): sight.mappings.pages_of(inode)
            for sight, _ in sights
            if waiting
            for inode in sight.mappings.inodes()
        }
        self._gone += self.short.gone(waiting, mapped, unseen)
        ranges: defaultdict[Key, list[Runs]] = defaultdict(list)
        for sight, tenant in sights:
            for inode, pages in sight.present.items():
                ranges[inode, tenant] += [pages, *self._kept(sight, inode, pages, since)]
                gone.discard((inode, sight.process))
        self._books.mappings.forget_kept([(inode, process) for inode, process in gone if process.id not in unseen])
        return {key: as_runs(np.concatenate(pages)) for key, pages in ranges.items() if key[1] != NOBODY}

    def _kept(self, sight: Sight, inode: int, present: Runs, since: int) -> list[Runs]:
        """What a process maps of a file although its page tables do not show it; nothing when nothing is kept."""
        if not self._books.mappings.keeps(inode, sight.process):
            return []
        mapped = [(first, last) for first, last in as_runs(sight.mappings.pages_of(inode)).tolist()]
        shown = [(first, last) for first, last in present.tolist()]
        return [as_runs(self._books.mappings.mapped_still(inode, sight.process, mapped, shown, since))]

    def apply(self, seen: Seen) -> None:
        """Put what a scan saw into the books; mappings that it no longer saw are gone. In pieces, in a thread.

        Not those of whom it could not look at: these files lose no mapping of that tenant's.
        """
        known = self._books.mappings.known() if self._known is None else self._known
        held = self._held(known)
        self._books.readers.see(self._opened | (held & self._books.readers.seen()))
        for inode, tenant in known - seen.keys() - held:
            self._books.mappings.put(inode, tenant, NO_RUNS)
        for (inode, tenant), pages in seen.items():
            brought = self._books.mappings.unbooked(inode, tenant, pages)
            if len(brought):
                self._reconcile.book_brought(inode, tenant, brought)
            self._books.mappings.put(inode, tenant, pages, adds=(inode, tenant) in held)
        while self._gone:
            self._books.mappings.was_mapped(*self._gone.pop())
        self._books.readers.refresh()
        self._known = seen.keys() | held | self._opened
        self.scans += 1

    def _held(self, known: Iterable[Key]) -> set[Key]:
        """What of the known mappings may be those of processes that the scan could not look at."""
        held: set[Key] = set()
        strange: set[TenantId] = set()
        for process in self._unseen:
            if process.known is not None:
                held.update((inode, process.known.tenant) for inode in process.known.inodes)
            elif self._looks.is_older(process):
                strange.add(self._books.tenants.tenant_in(process.cgroup))
        return {key for key in known if key in held or key[1] in strange}
