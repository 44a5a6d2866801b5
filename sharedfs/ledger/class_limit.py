"""The bound on sharing classes: a tenant, or a few in league, could make a million of them.

Over the bound the books get coarser, and stay exact in sum (I1): first the files with the most classes are accounted
for in larger units, up to a chunk, so that neighbouring pages have the same users. Where no file has many classes, the
owner with the most of them gets one payer for each of its pages, until others use them again. So the coarse part is
who made it necessary: nobody is billed for a file that it does not use, and nobody's pages for another owner's games.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from functools import reduce
from typing import Protocol

from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.page_map import Move, PageMap
from sharedfs.ledger.page_maps import PageMaps
from sharedfs.ledger.page_ranges import PageRange, batched
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import TenantId

MOST_CLASSES = 16384
"""Each takes 1 to 2 KiB, and some 10 us of each answer to the controller and of a start: so the table is a few dozen
MiB at most, and an answer takes a fraction of a second."""

_ORDINARY_CLASSES = 4
"""A file with so many is never one of the worst."""
_GROWTH = 8
_FILES_AT_ONCE = 2048


class Acts(Protocol):
    """What the bound has done by the ledger. Iterators are work in pieces, of which each step does one."""

    def compacting(self) -> Iterator[None]:
        """Free the ids of classes without pages."""

    def settling(self) -> Iterator[None]:
        """Give all classes that are behind their keys."""

    def coarsening(self, file: int, unit_pages: int) -> Iterator[None]:
        """Give a file a unit of accounting."""

    def reduce(self, owner: TenantId) -> bool:
        """`SharingTable.reduce`."""


class ClassBound:
    """Keeps the classes of `table` down to about `most`."""

    def __init__(self, table: SharingTable, files: PageMaps, most: int) -> None:
        self._table = table
        self._files = files
        self._most = self._at = most
        self.reductions = 0

    @property
    def exceeded(self) -> bool:
        return self._table.classes > self._at

    def enforcing(self, acts: "Acts") -> Iterator[None]:
        """Bring the classes that have pages down to three quarters of the bound, where they are more, in pieces.

        O(pages) for each round of at most four, paid for by the classes made since.
        """
        yield from acts.compacting()
        while (excess := self._table.classes - self._most * 3 // 4) > 0:
            mixed = yield from self._mixed()
            if not mixed and not (yield from self._reducing(acts)):
                break
            for classes, file in sorted(mixed, reverse=True):
                pages = self._files.get(file)
                if pages is not None:
                    yield from acts.coarsening(file, min(pages.unit_pages * _GROWTH, PAGES_PER_CHUNK))
                excess -= classes
                if excess <= 0:
                    break
            yield from acts.compacting()
        self._at = max(self._most, self._table.classes * 4 // 3)

    def _mixed(self) -> Generator[None, None, list[tuple[int, int]]]:
        """The files with many classes that can be accounted for in larger units: how many, and which."""
        mixed: list[tuple[int, int]] = []
        for part in batched(list(self._files), _FILES_AT_ONCE):
            for file in part:
                pages = self._files.get(file)
                if pages is not None and pages.unit_pages < PAGES_PER_CHUNK:
                    classes = len(pages.pages_by_class)
                    if classes > _ORDINARY_CLASSES:
                        mixed.append((classes, file))
            yield
        return mixed

    def unite(self, pages: PageMap, first_page: int, last_page: int) -> Sequence[Move]:
        """The moves that give each unit that reaches into a range the same users."""
        table = self._table

        def one_for(ids: list[int]) -> dict[int, int]:
            if len(ids) < 2:
                return {}
            before = {raw: table.held(raw) for raw in ids}
            whole = reduce(SharingClass.united, before.values())
            after = {raw: held.used_as(whole) for raw, held in before.items()}
            return {raw: table.intern(held) for raw, held in after.items() if held != before[raw]}

        return pages.unite(first_page, last_page, one_for)

    def _reducing(self, acts: "Acts") -> Generator[None, None, bool]:
        """Let the owner with the most classes have one payer for each; False when that makes no class less."""
        owned = Counter(held.owner for held, _ in self._table.holdings())
        for owner, _ in sorted(owned.items(), key=lambda item: (-item[1], item[0])):
            before = self._table.classes
            if acts.reduce(owner):
                self.reductions += 1
            yield from acts.settling()
            if self._table.classes < before:
                return True
        return False


def whole_units(pages: PageMap, first_page: int, last_page: int) -> PageRange:
    """The range made wider, to the units of accounting that it reaches into."""
    return first_page & -pages.unit_pages, last_page | (pages.unit_pages - 1)
