"""Mappings: which tenants map which pages of the pool, found in page tables.

A mapped access never calls the daemon, so a scan looks for it: the processes of the host whose maps show the mount,
and of these mappings the pages that are present. The kernel maps up to 64 KiB around a page that is read for the first
time (fault-around), so a page that was mapped and never looked at can be among them: to the kernel it is in use.

`scan` reads /proc only and runs in a worker thread; what it saw is put into the books afterwards.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

import psutil

from sharedfs.allocation import Allocation
from sharedfs.books import Books
from sharedfs.kernel import proc
from sharedfs.kernel.pagemap import PAGE_BYTES, PagemapReader
from sharedfs.model.ranges import PageRange, merged
from sharedfs.model.tenant import NOBODY, TenantId

Seen = dict[tuple[int, TenantId], list[PageRange]]


class MappingScan:
    """Finds the mappings of one mount, known by its `device`, and keeps the books' view of them."""

    def __init__(self, books: Books, allocation: Allocation, device: tuple[int, int]) -> None:
        self._books = books
        self._allocation = allocation
        self._device = device
        self._reader = PagemapReader()
        self._known: set[tuple[int, TenantId]] | None = None
        """What the last scan saw. None: none has yet, and what is mapped in the books is left of another daemon's."""
        self.scans = 0
        self.at = (0, 0)
        """The running scan's number, and the process that it looks at."""
        self._stuck: set[int] = set()

    def scan(self) -> Seen:
        """The page ranges (inclusive, in order, apart) of each file that each tenant maps now. Blocks on /proc.

        That may take for ever where a process is stuck: see `give_up`.
        """
        self._books.begin_scan()
        number, reader = self.at[0], self._reader
        ranges: defaultdict[tuple[int, TenantId], list[PageRange]] = defaultdict(list)
        for process_id in proc.process_ids():
            if process_id in self._stuck:
                continue
            self.at = (number, process_id)
            mappings = proc.mappings_of_device(process_id, self._device)
            if self.at[0] != number:  # given up meanwhile; what was stuck is so no more
                self._stuck.discard(process_id)
                return {}
            if not mappings:
                continue
            try:
                process = psutil.Process(process_id)
                tenant = self._tenant_of(process_id)
                present = list(self._present(reader, process_id, mappings))
                if not process.is_running():
                    continue  # the id became another process's: what was read is a mixture of two
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
            for inode, pages in present:
                ranges[inode, tenant] += pages
        return {key: merged(pages) for key, pages in ranges.items() if key[1] != NOBODY}

    def give_up(self) -> int:
        """The running scan does not get on: it counts for nothing. The process that it looks at, left out from now on.

        A process can keep whoever looks at its maps waiting: one whose filesystem does not answer, for example.
        """
        number, process_id = self.at
        self._stuck.add(process_id)
        self.at = (number + 1, 0)
        self._reader = PagemapReader()  # the other one may be in use
        return process_id

    def apply(self, seen: Seen) -> None:
        """Put what a scan saw into the books; mappings that it no longer saw are gone."""
        known = self._books.mapped() if self._known is None else self._known
        for inode, tenant in known - seen.keys():
            self._books.set_mapped(inode, tenant, [])
        for (inode, tenant), pages in seen.items():
            brought = self._books.unbooked(inode, tenant, pages)
            if brought:
                brought += self._allocation.brought_along(inode, brought)
            self._books.set_mapped(inode, tenant, pages, brought)
        self._books.refresh_readers()
        self._known = set(seen)
        self.scans += 1

    def _tenant_of(self, process_id: int) -> TenantId:
        text = proc.process_cgroup(process_id)
        return NOBODY if text is None else self._books.tenant_in(text)

    def _present(
        self, reader: PagemapReader, process_id: int, mappings: Sequence[proc.Mapping]
    ) -> Iterable[tuple[int, list[PageRange]]]:
        fd = os.open(f"/proc/{process_id}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for mapping in mappings:
                yield (
                    mapping.inode,
                    [
                        (
                            (start - mapping.start + mapping.offset) // PAGE_BYTES,
                            (end - mapping.start + mapping.offset) // PAGE_BYTES - 1,
                        )
                        for start, end in reader.present(fd, mapping.start, mapping.end, shared=mapping.shared)
                    ],
                )
        finally:
            os.close(fd)
