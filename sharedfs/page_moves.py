"""Page moves: who uses pages stays their user while the kernel moves them.

To move a page the kernel takes it out of all page tables, and whoever has read it need not come back for it. A mapping
scan half a second later would find nobody. So right before pages are moved the daemon looks at the page tables of those
who map them, books what it sees, and keeps it for the scans that follow (`model/kept_mappings.py`).

Between that look and the move, some 0.1 ms, a process can fault further pages in. The kernel counts page faults: where
the count has not changed, there were none. Where it has, the tenant has touched all pages that were moved and that it
maps: it may pay for 2 MiB that it has not read, until that touch is old, and none that it has read is lost. The same
holds for a mapping that is new after a round of moves. A fault that a third process causes in another's memory
(process_vm_readv(2)) is counted as the third one's, and not seen in that tenth of a millisecond.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sharedfs.books import Books
from sharedfs.kernel import proc
from sharedfs.kernel.pagemap import PagemapReader
from sharedfs.model.ranges import PageRange, as_runs, common, merged
from sharedfs.model.tenant import NOBODY, TenantId
from sharedfs.page_tables import present_pages, tenant_of
from sharedfs.process_walk import GivenUp, ProcessWalk


@dataclass(frozen=True, slots=True)
class _Mapper:
    process: proc.Process
    tenant: TenantId
    task: str
    mapping: proc.Mapping


Mappers = dict[int, list[_Mapper]]


class PageMoves:
    """Of one pool, whose mount is known by its `device`. For one thread.

    It looks at processes, which may wait for the daemon: not with a lock, and not while requests wait. Raises GivenUp.
    """

    def __init__(self, books: Books, device: tuple[int, int]) -> None:
        self._books = books
        self._device = device
        self.walk = ProcessWalk()

    @contextmanager
    def round(self) -> Iterator["Round"]:
        """Some moves, soon one after the other."""
        moves = Round(self._books, self.walk, self._mappers)
        try:
            yield moves
        except GivenUp:  # another thread goes on
            raise
        except BaseException:
            moves.end()
            raise
        moves.end()

    def _mappers(self) -> Mappers:
        """Who maps what of the mount, by inode."""
        found: Mappers = defaultdict(list)
        for process_id in self.walk.processes():
            task, mappings = proc.mappings_of_device(process_id, self._device)
            process = proc.process_with(process_id)
            if mappings and process is not None:
                tenant = tenant_of(self._books, task)
                for mapping in mappings if tenant != NOBODY else ():
                    found[mapping.inode].append(_Mapper(process, tenant, task, mapping))
        return found


class Round:
    """Knows who maps the files from the first move on."""

    def __init__(self, books: Books, walk: ProcessWalk, find_mappers: Callable[[], Mappers]) -> None:
        self._books = books
        self._walk = walk
        self._find_mappers = find_mappers
        self._mappers: Mappers | None = None
        self.took_seconds = 0.0
        """To find out who maps what: O(processes), and some 10 ms."""
        self._moved: dict[int, list[PageRange]] = defaultdict(list)
        self._reader = PagemapReader()

    @contextmanager
    def moving(self, inode: int, first_page: int, last_page: int) -> Iterator[None]:
        """While the kernel may move pages of a file, whatever comes of it."""
        if self._mappers is None:
            started = time.monotonic()
            self._mappers = self._find_mappers()
            self.took_seconds = time.monotonic() - started
        moved = [(first_page, last_page)]
        looks = []
        for mapper in self._mappers.get(inode, ()):
            part = common([mapper.mapping.pages], moved)
            if part:
                looks.append((mapper, part, self._look(mapper, inode, *part[0])))
        self._moved[inode] += moved
        try:
            yield
        finally:
            for mapper, part, before in looks:
                if _faults(mapper.process) != before:
                    self._books.touch_pages(inode, part, mapper.tenant)

    def end(self) -> None:
        """Who maps the files and was not known to has touched what was moved meanwhile."""
        if not self._moved:
            return
        known = {(mapper.process, mapper.mapping) for found in (self._mappers or {}).values() for mapper in found}
        for inode, mappers in self._find_mappers().items():
            moved = merged(self._moved.get(inode, ()))
            for mapper in mappers:
                if (mapper.process, mapper.mapping) not in known:
                    self._books.touch_pages(inode, common([mapper.mapping.pages], moved), mapper.tenant)

    def _look(self, mapper: _Mapper, inode: int, first_page: int, last_page: int) -> int | None:
        """Keep what a process has of these pages in its page tables; its page faults before that. None: not known."""
        before = _faults(mapper.process)
        shrinks = self._books.shrinks
        whole = mapper.mapping
        part = proc.Mapping(
            whole.address_of(first_page),
            whole.address_of(last_page + 1),
            whole.shared,
            first_page * proc.PAGE_BYTES,
            inode,
        )
        try:
            with self._walk.looking_at(mapper.process.id):
                shown = as_runs(present_pages(self._reader, mapper.task, [part])[inode])
        except (FileNotFoundError, ProcessLookupError):
            return None
        present = [(first, last) for first, last in shown.tolist()]
        self._books.keep_mapped(inode, mapper.process, mapper.tenant, present, shrinks)
        return before


def _faults(process: proc.Process) -> int | None:
    """The page faults of a process so far; None when it is gone."""
    found = proc.process_faults(process.id)
    return found[1] if found is not None and found[0] == process else None
