"""Which tenants map which pages, as the mapping scan finds it in page tables, and what it cannot find there."""

from collections.abc import Iterator, Sequence

from sharedfs.accounting.changes import Changes
from sharedfs.accounting.core import RANGES_AT_ONCE, Core, pause
from sharedfs.accounting.pages import Pages
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.page_ranges import NO_RUNS, PageRange, Runs, as_runs, batched, common, without
from sharedfs.ledger.pieces import PIECE_CHUNKS
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux.procfs import Process

_MOST_MARKED = 4096
_MAPS_AT_ONCE = 256  # read after a start, while the lock is held: a few milliseconds


class MappedPages:
    def __init__(self, core: Core, changes: Changes, pages: Pages) -> None:
        self._core = core
        self._changes = changes
        self._pages = pages

    def known(self) -> set[tuple[int, TenantId]]:
        """The files and tenants of which the books say that pages are mapped; a fast reader counts as one."""
        with self._core.lock:
            files = self._core.ledger.all_files()
        found: set[tuple[int, TenantId]] = set()
        for part in batched(files, _MAPS_AT_ONCE):
            with self._core.lock:
                found |= self._core.ledger.mapped_among(part)
        return found

    def begin_scan(self) -> tuple[set[tuple[int, Process]], int]:
        """A scan begins: the files and processes of which something is kept, and the number of the last `keep`."""
        with self._core.lock:
            self._changes.shrunk = set(self._changes.shrinking)
            return self._core.kept.kept(), self._core.kept.sequence

    def unbooked(self, inode: int, tenant: TenantId, pages: Runs) -> Runs:
        """Which of the pages that `tenant` maps the books do not have. O(ranges) when all is as before.

        Not for the request pump: in pieces.
        """
        core = self._core
        with core.lock:
            if inode not in self._changes.doubtful and core.ledger.is_mapped(inode, tenant, pages):
                return NO_RUNS
            chunks = core.ledger.chunks_of(inode)
        resident: list[PageRange] = []
        for part in batched(chunks, PIECE_CHUNKS):
            with core.lock:
                resident += core.ledger.resident_in(inode, part)
            pause()
        return without(pages, as_runs(resident))

    def bring(self, inode: int, tenant: TenantId, brought: Sequence[PageRange]) -> None:
        """What the books do not have of these pages, a page fault in a hole allocated, as the running scan saw it.

        The kernel charged `tenant` for them: they become `foreign` (I2). Not so in a file that shrank meanwhile; the
        next scan tells.
        """
        core = self._core
        for part in core.in_pieces(brought):
            if (tenant == NOBODY or tenant in core.tenants) and inode not in self._changes.shrunk:
                for first, last in core.ledger.absent(inode, part):
                    core.charge(inode, first, last, tenant, foreign=True)
                    if tenant != NOBODY:
                        core.makers.used(inode, tenant)

    def put(self, inode: int, tenant: TenantId, pages: Runs, *, adds: bool = False) -> None:
        """`tenant` maps just these pages of a file, as the running scan saw it. Not for the request pump: in pieces.

        `adds`: and those that it mapped before, for the scan did not see all.
        """
        core = self._core
        with core.lock:
            if tenant not in core.tenants:
                return
            doubtful = self._changes.doubtful
            (doubtful.add if inode in self._changes.shrunk else doubtful.discard)(inode)
            if (inode, tenant) in core.readers:
                return
            pieces: Iterator[object]
            if adds:
                pieces = self._adding(inode, tenant, pages)
            else:
                core.record_mapped(inode, tenant, pages)
                pieces = core.ledger.mapping(inode, tenant, pages)
        # A tenant that exits meanwhile, or opens the file to read it unseen, has its pages as that says.
        core.in_turns(pieces, lambda: tenant in core.tenants and (inode, tenant) not in core.readers)

    def _adding(self, inode: int, tenant: TenantId, pages: Runs) -> Iterator[None]:
        core = self._core
        for part in batched([(first, last) for first, last in pages.tolist()], RANGES_AT_ONCE):
            core.ledger.add_mapped(inode, tenant, part)
            yield
        if core.tape is not None:  # which is told all that is mapped
            runs = core.ledger.class_runs(inode)
            core.tape.mapped(inode, tenant, [(first, last) for first, last, held in runs if tenant in held.mapped])

    def was_mapped(self, inode: int, tenant: TenantId, pages: Sequence[PageRange]) -> None:
        """`tenant` had these pages of a file mapped, and has no more: those that are there count as touched once.

        In pieces, and for as long as it lives. What it has touched already takes no time.
        """
        core = self._core
        with core.lock:
            marked = core.by_range[0]
            if inode in marked or len(marked) < _MOST_MARKED:
                marked.setdefault(inode, set()).add(tenant)
            chunks = sorted({chunk for first, last in pages for chunk in core.ledger.chunks_of(inode, first, last)})
        for part in batched(chunks, PIECE_CHUNKS):
            with core.lock:
                if tenant not in core.tenants or core.ledger.settled_pages(inode, tenant) is not None:
                    return
            start, end = part[0] * PAGES_PER_CHUNK, (part[-1] + 1) * PAGES_PER_CHUNK - 1
            self._pages.touch_pages(inode, common(pages, [(start, end)]), tenant)
            pause()

    def billed_by_range(self, inode: int) -> tuple[TenantId, ...]:
        """Who uses pages of a file by `was_mapped`, lately."""
        with self._core.lock:
            found = {tenant for part in self._core.by_range for tenant in part.get(inode, ())}
        return tuple(sorted(found))

    # -- what page tables do not show because the kernel moves pages (`ledger/kept_mappings.py`) -----------------------

    def keep(self, inode: int, process: Process, tenant: TenantId, pages: list[PageRange], shrinks: int) -> None:
        """`process` of `tenant` maps these pages, which the kernel is about to take out of its page tables.

        It stays their user until it unmaps them. What it brought into holes is booked as by `put`, unless pages went
        since `shrinks` was read.
        """
        core = self._core
        with core.lock:
            if tenant not in core.tenants:
                return
            if self._changes.shrinks == shrinks:
                for first, last in core.ledger.absent(inode, pages):
                    core.charge(inode, first, last, tenant, foreign=True)
            core.kept.keep(inode, process, pages)
        self._pages.touch_pages(inode, pages, tenant)

    def keeps(self, inode: int, process: Process) -> bool:
        """Whether anything is kept of a file and a process."""
        with self._core.lock:
            return (inode, process) in self._core.kept

    def mapped_still(
        self, inode: int, process: Process, mapped: Sequence[PageRange], present: Sequence[PageRange], since: int
    ) -> list[PageRange]:
        """`KeptMappings.mapped_still`."""
        with self._core.lock:
            return self._core.kept.mapped_still(inode, process, mapped, present, since)

    def forget_kept(self, keys: Sequence[tuple[int, Process]]) -> None:
        """These processes do not map these files any more."""
        with self._core.lock:
            self._core.kept.forget(keys)
