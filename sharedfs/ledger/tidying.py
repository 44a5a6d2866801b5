"""What the books do for themselves, in pieces of at most some milliseconds: nobody's request has to wait for all of it.

Classes that have changed get their keys (`SharingTable.settle`). When ids have become many, page maps that have dead
ones are written anew and the ids are free again. When there are too many classes, the books get coarser
(`class_limit`). A log that is mostly history is written anew. Between two pieces anything may happen to the books, and
they are right at any moment: what is dead when a compaction begins is in no page map that is written afterwards.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.class_limit import ClassBound
from sharedfs.ledger.class_table import UNIT, SharingTable
from sharedfs.ledger.page_map import Move
from sharedfs.ledger.page_maps import PageMaps
from sharedfs.ledger.page_ranges import batched
from sharedfs.ledger.storage import Log, Record
from sharedfs.ledger.tenant import TenantId
from sharedfs.ledger.transitions import StepMemo

SETTLED_AT_ONCE = 64
IDS_AT_ONCE = 256
FILES_AT_ONCE = 256
CHUNKS_AT_ONCE = 4
PAGES_AT_ONCE = 64  # that may be of as many classes


class Tidying:
    """Of one ledger, by its parts. `dump` gives all that the log is to say, `changed` is told of what changes a page's
    payers."""

    def __init__(
        self,
        table: SharingTable,
        files: PageMaps,
        steps: StepMemo,
        bound: ClassBound,
        log: Log,
        dump: Callable[[], Iterable[Record]],
        book: Callable[[Sequence[Move]], None],
        changed: Callable[[], None],
    ) -> None:
        self._table = table
        self._files = files
        self._steps = steps
        self._bound = bound
        self._log = log
        self._dump = dump
        self._book = book
        self._changed = changed
        self._under_way: Iterator[None] | None = None
        self.compactions = 0

    @property
    def due(self) -> bool:
        """Whether there is anything to do. O(1)."""
        table = self._table
        return bool(self._under_way or table.behind or table.crowded or self._bound.exceeded or self._log.overgrown)

    def step(self) -> bool:
        """Do one piece; False when all is done."""
        if self._under_way is None:
            self._under_way = self._pieces()
        for _ in self._under_way:
            return True
        self._under_way = None
        return False

    def _pieces(self) -> Iterator[None]:
        while True:
            if self._table.behind:
                yield from self.settling()
            elif self._bound.exceeded:
                self._steps.clear()
                yield from self._bound.enforcing(self)
            elif self._table.crowded:
                yield from self.compacting()
            elif self._log.overgrown:
                yield from self._log.rewriting(self._dump())
            else:
                return

    def settling(self) -> Iterator[None]:
        while self._table.behind:
            self._table.settle(SETTLED_AT_ONCE)
            yield

    def reduce(self, owner: TenantId) -> bool:
        self._steps.clear()
        changed = self._table.reduce(owner)
        if changed:
            self._changed()
        return changed

    def coarsening(self, file: int, unit_pages: int) -> Iterator[None]:
        pages = self._files[file]
        self._files.set_unit(file, min(unit_pages, PAGES_PER_CHUNK))
        self._log.append((UNIT, file, pages.unit_pages))
        at_once = max(PAGES_AT_ONCE, pages.unit_pages)
        for index in pages.chunks():
            for first_page in range(index * PAGES_PER_CHUNK, (index + 1) * PAGES_PER_CHUNK, at_once):
                if self._files.get(file) is not pages:
                    return  # it is gone
                moves = self._bound.unite(pages, first_page, first_page + at_once - 1)
                self._book(moves)
                if moves:
                    yield
            yield

    def compacting(self) -> Iterator[None]:
        """Write the page maps that hold aliases with what these stand for, and free the ids. O(pages), amortised.

        Whenever the daemon is killed, what is kept is right: an alias and what it stands for are the same until the log
        says that its id is free, and by then no page map has one.
        """
        dead = self._table.dead_ids()
        if dead:
            yield from self._relabelling(dead)
            self._steps.clear()
            for part in batched(sorted(dead), IDS_AT_ONCE):
                self._table.free(part)
                yield
        for start in range(0, len(self._table.alias), IDS_AT_ONCE):
            empty = self._table.empty_ids(start, IDS_AT_ONCE)
            if empty:
                self._steps.clear()  # a step may have one for its target
                self._table.free(empty)
            yield
        self._table.compacted()
        self.compactions += 1

    def _relabelling(self, dead: frozenset[int]) -> Iterator[None]:
        canonical = np.array(self._table.alias, dtype=np.uint32)
        for part in batched(list(self._files), FILES_AT_ONCE):
            chunks = 0
            for file in part:
                pages = self._files.get(file)
                if pages is None or dead.isdisjoint(pages.pages_by_class):
                    continue
                for indices in batched(pages.chunks(), CHUNKS_AT_ONCE):
                    pages.relabel(indices, canonical)
                    chunks += len(indices)
                    if chunks >= CHUNKS_AT_ONCE:
                        chunks = 0
                        yield
            yield
