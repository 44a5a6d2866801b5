"""Page moves: who uses pages stays their user while the kernel moves them.

To move a page the kernel takes it out of all page tables, and whoever has read it need not come back for it. A mapping
scan half a second later would find nobody. So right before pages are moved the daemon looks at the page tables of those
who map them, books what it sees, and keeps it for the scans that follow (`ledger/kept_mappings.py`).

Between that look and the move, some 0.1 ms, a process can fault further pages in. The kernel counts page faults: where
the count has not changed, there were none. Where it has, the tenant has touched all pages that were moved and that it
maps: it may pay for what it has not read, until that touch is old, and none that it has read is lost. As nobody knows
which, it counts as no act of its own (`accounting/unasked.py`). The same holds for a mapping that is new after a round
of moves. A fault that a third process causes in another's memory (process_vm_readv(2)) is counted as the third one's,
and not seen in that tenth of a millisecond.

A file that a process mapped when it was last seen, and that cannot be looked at now, is not moved.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sharedfs.accounting.books import Books
from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import PageRange, common, merged
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import procfs
from sharedfs.pages.page_tables import Parts, Sight
from sharedfs.pages.process_looks import NotLookedAt, ProcessLooks, Unseen, by_process


@dataclass(frozen=True, slots=True)
class _Mapper:
    process: procfs.Process
    tenant: TenantId
    task: str
    mapping: procfs.Mapping


class _Mappers:
    """Who maps which files of the mount, and the processes whose mappings are not known."""

    def __init__(self, sights: list[tuple[Sight, TenantId]], unseen: tuple[Unseen, ...]) -> None:
        self.unseen = unseen
        self._sights: defaultdict[int, list[tuple[Sight, TenantId]]] = defaultdict(list)
        for sight, tenant in sights:
            for inode in sight.mappings.inodes() if tenant != NOBODY else ():
                self._sights[inode].append((sight, tenant))

    def of(self, inode: int, moved: list[PageRange]) -> list[tuple[_Mapper, PageRange]]:
        """Those who map any of these pages of a file, with the part of them that is in a mapping."""
        return [
            (_Mapper(sight.process, tenant, sight.task, mapping), part)
            for sight, tenant in self._sights.get(inode, ())
            for mapping in sight.mappings.within(inode, moved[0][0], moved[-1][1]).mappings()
            for part in common([mapping.pages], moved)
        ]


class PageMoves:
    """Of one pool. It looks at processes, which may wait for the daemon: not with a lock, not while requests wait."""

    def __init__(self, books: Books, looks: ProcessLooks) -> None:
        self._books = books
        self._looks = looks

    @contextmanager
    def round(self) -> Iterator["Round"]:
        """Some moves, soon one after the other."""
        moves = Round(self._books, self._looks, self._mappers)
        try:
            yield moves
        finally:
            moves.end()

    def _mappers(self) -> _Mappers:
        return _Mappers(*self._looks.all(pages=False))


class Round:
    """Knows who maps the files from the first move on."""

    def __init__(self, books: Books, looks: ProcessLooks, find_mappers: Callable[[], _Mappers]) -> None:
        self._books = books
        self._looks = looks
        self._find_mappers = find_mappers
        self._mappers: _Mappers | None = None
        self.took_seconds = 0.0
        """To find out who maps what: O(processes), and some 10 ms."""
        self._moved: dict[int, list[PageRange]] = defaultdict(list)

    @contextmanager
    def moving(self, inode: int, first_page: int, last_page: int) -> Iterator[None]:
        """While the kernel may move pages of a file, whatever comes of it. Raises NotLookedAt, with nothing moved."""
        if self._mappers is None:
            started = time.monotonic()
            self._mappers = self._find_mappers()
            self.took_seconds = time.monotonic() - started
        self._looks.check(inode, self._mappers.unseen)
        moved = [(first_page, last_page)]
        parts = self._mappers.of(inode, moved)
        before = self._look(inode, parts)
        self._moved[inode] += moved
        try:
            yield
        finally:
            after = self._faults([mapper for mapper, _ in parts])
            for mapper, part in parts:
                if after.get(mapper.process) != before.get(mapper.process):
                    self._books.pages.touch_unasked(inode, [part], mapper.tenant)

    def end(self) -> None:
        """Who maps the files and was not known to has touched what was moved meanwhile."""
        if not self._moved or self._mappers is None:
            return
        now = self._find_mappers()
        for inode, ranges in self._moved.items():
            moved = merged(ranges)
            known = {(mapper.process, mapper.mapping) for mapper, _ in self._mappers.of(inode, moved)}
            for mapper, part in now.of(inode, moved):
                if (mapper.process, mapper.mapping) not in known:
                    self._books.pages.touch_unasked(inode, [part], mapper.tenant)

    def _look(self, inode: int, parts: list[tuple[_Mapper, PageRange]]) -> dict[procfs.Process, int]:
        """Keep what processes have of these pages in their page tables; their page faults before that."""
        if not parts:
            return {}
        shrinks = self._books.changes.shrinks
        asked = ((mapper.process.id, mapper.task, _part(mapper.mapping, pages)) for mapper, pages in parts)
        sights = self._looks.parts(Parts(by_process(asked)))
        tenants = {mapper.process: mapper.tenant for mapper, _ in parts}
        for sight in sights.values():
            if sight.process in tenants:  # else the id is another process's by now
                present = [(first, last) for first, last in sight.present[inode].tolist()]
                self._books.mappings.keep(inode, sight.process, tenants[sight.process], present, shrinks)
        return {sight.process: sight.faults for sight in sights.values()}

    def _faults(self, mappers: list[_Mapper]) -> dict[procfs.Process, int]:
        """The page faults of processes so far; nothing of those that are gone. None at all when one hangs."""
        if not mappers:
            return {}
        sights = {}
        with suppress(NotLookedAt):
            sights = self._looks.parts(Parts({mapper.process.id: (mapper.task, ()) for mapper in mappers}))
        return {sight.process: sight.faults for sight in sights.values()}


def _part(whole: procfs.Mapping, pages: PageRange) -> procfs.Mapping:
    start, end = whole.address_of(pages[0]), whole.address_of(pages[1] + 1)
    return procfs.Mapping(start, end, whole.shared, pages[0] * PAGE_BYTES, whole.inode)
