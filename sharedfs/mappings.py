"""Mappings: which tenants map which pages of the pool, found in page tables.

A mapped access never calls the daemon, so a scan looks for it: the processes of the host whose maps show the mount,
and of these mappings the pages that are present. The kernel maps up to 64 KiB around a page that is read for the first
time (fault-around), so a page that was mapped and never looked at can be among them: to the kernel it is in use.

`scan` reads /proc only and runs in a worker thread; what it saw is put into the books afterwards.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sharedfs.allocation import Allocation
from sharedfs.books import Books
from sharedfs.kernel import proc
from sharedfs.kernel.pagemap import PagemapReader
from sharedfs.model.ranges import NO_RUNS, Runs, as_runs, merged
from sharedfs.model.tenant import NOBODY, TenantId
from sharedfs.page_tables import present_pages, tenant_of
from sharedfs.process_walk import ProcessWalk

_TRIES = 5  # to look at a process whose threads end

Seen = dict[tuple[int, TenantId], Runs]


class MappingScan:
    """Finds the mappings of one mount, known by its `device`, and keeps the books' view of them."""

    def __init__(self, books: Books, allocation: Allocation, device: tuple[int, int]) -> None:
        self._books = books
        self._allocation = allocation
        self._device = device
        self._known: set[tuple[int, TenantId]] | None = None
        """What the last scan saw. None: none has yet, and what is mapped in the books is left of another daemon's."""
        self.scans = 0
        self.walk = ProcessWalk()

    def scan(self) -> Seen:
        """The pages of each file that each tenant maps now. Blocks on /proc.

        That may take for ever where a process is stuck. Raises GivenUp.
        """
        self._books.begin_scan()
        with self._books.lock:
            gone = self._books.kept.kept()
        reader = PagemapReader()
        ranges: defaultdict[tuple[int, TenantId], list[Runs]] = defaultdict(list)
        for process_id in self.walk.processes():
            found = self._look_at(reader, process_id)
            if found is None:
                continue
            process, tenant, present = found
            for inode, pages in present:
                ranges[inode, tenant].append(pages)
                gone.discard((inode, process))
        with self._books.lock:
            self._books.kept.forget(gone)
        return {key: as_runs(np.concatenate(pages)) for key, pages in ranges.items() if key[1] != NOBODY}

    def _look_at(
        self, reader: PagemapReader, process_id: int
    ) -> tuple[proc.Process, TenantId, list[tuple[int, Runs]]] | None:
        """Whose a process is and what it maps of which inodes; None when it maps nothing of the mount.

        The thread that is looked through may end meanwhile, so that another one has to be found.
        """
        for _ in range(_TRIES):
            with self._books.lock:
                since = self._books.kept.sequence
            task, mappings = proc.mappings_of_device(process_id, self._device)
            process = proc.process_with(process_id)
            if not mappings or process is None:
                return None
            try:
                tenant = tenant_of(self._books, task)
                present = present_pages(reader, task, mappings)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if proc.process_with(process_id) == process:
                return process, tenant, [*present.items(), *self._kept(process, mappings, present, since)]
            # else the id became another process's: what was read is a mixture of two
        return None

    def _kept(
        self, process: proc.Process, mappings: Sequence[proc.Mapping], present: dict[int, Runs], since: int
    ) -> list[tuple[int, Runs]]:
        """What a process maps although its page tables do not show it, by inode."""
        with self._books.lock:
            inodes = [inode for inode in present if (inode, process) in self._books.kept]
        found = []
        for inode in inodes:
            mapped = merged(mapping.pages for mapping in mappings if mapping.inode == inode)
            shown = [(first, last) for first, last in as_runs(present[inode]).tolist()]
            with self._books.lock:
                still = self._books.kept.mapped_still(inode, process, mapped, shown, since)
            found.append((inode, as_runs(still)))
        return found

    def apply(self, seen: Seen) -> None:
        """Put what a scan saw into the books; mappings that it no longer saw are gone. In pieces, in a thread."""
        known = self._books.mapped() if self._known is None else self._known
        for inode, tenant in known - seen.keys():
            self._books.set_mapped(inode, tenant, NO_RUNS)
        for (inode, tenant), pages in seen.items():
            brought = self._books.unbooked(inode, tenant, pages)
            along = self._allocation.brought_along(inode, brought) if len(brought) else []
            self._books.set_mapped(inode, tenant, pages, [*brought.tolist(), *along])
        self._books.refresh_readers()
        self._known = set(seen)
        self.scans += 1
