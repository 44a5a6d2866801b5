"""The bound on sharing classes: a tenant, or a few in league, could make a million of them.

Over the bound the books get coarser, and stay exact in sum (I1): first the files with the most classes are accounted
for in larger units, up to a chunk, so that neighbouring pages have the same users. Where no file has many classes, the
owner with the most of them gets one payer for each of its pages, until others use them again. So the coarse part is
who made it necessary: nobody is billed for a file that it does not use, and nobody's pages for another owner's games.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

from sharedfs.model.cells import PAGES_PER_CHUNK
from sharedfs.model.page_maps import PageMaps
from sharedfs.model.pages import Move, PageMap
from sharedfs.model.ranges import PageRange
from sharedfs.model.sharing import SharingClass
from sharedfs.model.sharing_table import SharingTable

MOST_CLASSES = 16384
"""Each takes 1 to 2 KiB, and some 10 us of each answer to the controller and of a start: so the table is a few dozen
MiB at most, and an answer takes a fraction of a second."""

_ORDINARY_CLASSES = 4
"""A file with so many is never one of the worst."""
_GROWTH = 8


class ClassBound:
    """Keeps the classes of `table` down to about `most`. `book` takes moves of pages that have been made."""

    def __init__(self, table: SharingTable, files: PageMaps, most: int, book: Callable[[Sequence[Move]], None]) -> None:
        self._table = table
        self._files = files
        self._most = self._at = most
        self._book = book
        self.reductions = 0

    @property
    def exceeded(self) -> bool:
        return self._table.classes > self._at

    def enforce(self, coarsen: Callable[[int, int], None], compact: Callable[[], None]) -> None:
        """Bring the classes that have pages down to three quarters of the bound, where they are more.

        `coarsen` gives a file a unit, `compact` frees the ids of classes without pages. O(pages) for each round of
        at most four, paid for by the classes made since.
        """
        compact()
        while (excess := self._table.classes - self._most * 3 // 4) > 0:
            mixed = [
                (len(pages.pages_by_class), file)
                for file, pages in self._files.all()
                if len(pages.pages_by_class) > _ORDINARY_CLASSES and pages.unit_pages < PAGES_PER_CHUNK
            ]
            if not mixed and not self._reduce():
                break
            for classes, file in sorted(mixed, reverse=True):
                coarsen(file, min(self._files[file].unit_pages * _GROWTH, PAGES_PER_CHUNK))
                excess -= classes
                if excess <= 0:
                    break
            compact()
        self._at = max(self._most, self._table.classes * 4 // 3)

    def unite(self, pages: PageMap, first_page: int, last_page: int) -> Sequence[Move]:
        """The moves that give each unit that reaches into a range the same users."""
        table = self._table

        def one_for(ids: list[int]) -> dict[int, int]:
            if len(ids) < 2:
                return {}
            whole = reduce(SharingClass.united, map(table.held, ids))
            targets = {raw: table.intern(table.held(raw).used_as(whole)) for raw in ids}
            return {raw: target for raw, target in targets.items() if table.alias[raw] != target}

        return pages.unite(first_page, last_page, one_for)

    def _reduce(self) -> bool:
        """Let the owner with the most classes have one payer for each; False when that makes no class less."""
        owned = Counter(held.owner for held, _ in self._table.holdings())
        for owner, _ in sorted(owned.items(), key=lambda item: (-item[1], item[0])):
            before = self._table.classes
            if self._table.reduce(owner):
                self.reductions += 1
            if self._table.classes < before:
                return True
        return False


def whole_units(pages: PageMap, first_page: int, last_page: int) -> PageRange:
    """The range made wider, to the units of accounting that it reaches into."""
    return first_page & -pages.unit_pages, last_page | (pages.unit_pages - 1)
