"""What the books of a pool are asked: holdings of all, of a tenant, of a file, and which files and pages are such.

No answer changes anything. Questions about all classes can be answered from a copy of them (`classes`), without the
ledger.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.class_view import ClassView, Predicate, Verdicts
from sharedfs.ledger.page_maps import PageMaps
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange, gaps, merged
from sharedfs.ledger.pieces import is_more_than_a_piece
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import TenantId
from sharedfs.ledger.transitions import StepMemo


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """How big the books are. `classes` have pages; `class_ids` counts dead ids and empty classes too.

    `page_map_bytes` are the entries and cells of all page maps; `memory_bytes` is an estimate of the whole ledger, its
    storage included. `coarse_files` have a unit of accounting of more than a page; `reductions` counts how often one
    payer was made to pay for all.
    """

    sequence: int
    resident_bytes: int
    foreign_bytes: int
    files: int
    classes: int
    class_ids: int
    compactions: int
    page_map_bytes: int
    memory_bytes: int
    coarse_files: int
    reductions: int


class LedgerView:
    """The questions. `Ledger` has the operations, and gives the parts."""

    def __init__(self, page_bytes: int, table: SharingTable, files: PageMaps) -> None:
        self._page_bytes = page_bytes
        self._table = table
        self._files = files
        self._steps = StepMemo(table)
        self._sequence = 0

    @property
    def sequence(self) -> int:
        """Rises with every change of what pages there are and who uses them: unchanged, all answers are unchanged."""
        return self._sequence

    @property
    def resident_bytes(self) -> int:
        """O(1)."""
        return self._table.resident_pages * self._page_bytes

    @property
    def foreign_bytes(self) -> int:
        """Resident bytes that the kernel charged to their owner's cgroup instead of the pool's (I2).

        O(foreign classes).
        """
        return self._table.foreign_pages * self._page_bytes

    # -- Classes, and what they hold -----------------------------------------------------------------------------------

    def holdings(self) -> list[tuple[SharingClass, int]]:
        """Every class that has pages, with its bytes; they sum to `resident_bytes` (I1). By class id. O(classes)."""
        return self.holdings_of(self._table)

    def classes(self) -> ClassView:
        """The classes as they are now, for questions that nobody should wait for. O(ids), at the speed of memory."""
        return self._table.copy()

    def holdings_of(self, classes: ClassView) -> list[tuple[SharingClass, int]]:
        """As `holdings`, of what `classes` gave, which needs no ledger."""
        return [(held, pages * self._page_bytes) for held, pages in classes.holdings()]

    def classes_of(self, tenant: TenantId) -> int:
        """How many classes `tenant` is in, and was in before it aged out of some. O(1)."""
        return len(self._table.ids_of(tenant))

    def holdings_of_tenant(self, tenant: TenantId) -> list[tuple[SharingClass, int]]:
        """The part of `holdings` that `tenant` pays for. O(its classes)."""
        counts = {raw: self._table.pages_of(raw) for raw in self._table.ids_of(tenant)}
        held = self._table.held_by({raw: pages for raw, pages in counts.items() if pages})
        return [(one, pages * self._page_bytes) for one, pages in held if tenant in one.payers]

    def bytes_where(self, wanted: Predicate) -> int:
        """Resident bytes in the classes that are `wanted`. O(classes)."""
        return sum(pages for held, pages in self._table.holdings() if wanted(held)) * self._page_bytes

    def holdings_in(self, file: int, ranges: Iterable[PageRange]) -> dict[SharingClass, int]:
        """The part of `file_holdings` that is in page ranges, which are apart. O(pages in them)."""
        found: dict[SharingClass, int] = {}
        pages = self._files.get(file)
        if pages is None:
            return found
        for first_page, last_page in ranges:
            for raw, count in pages.count(first_page, last_page).items():
                held = self._table.held(raw)
                found[held] = found.get(held, 0) + count * self._page_bytes
        return found

    # -- Files and pages -----------------------------------------------------------------------------------------------

    def file_holdings(self, file: int) -> list[tuple[SharingClass, int]]:
        """The part of `holdings` that is in `file`; nothing when it has no resident page. O(classes of the file)."""
        pages = self._files.get(file)
        if pages is None:
            return []
        return [(held, count * self._page_bytes) for held, count in self._table.held_by(pages.pages_by_class)]

    def counts_of(self, file: int) -> dict[int, int]:
        """The pages of a file by raw id, for `ClassView.held_by`. O(its classes), at the speed of memory."""
        pages = self._files.get(file)
        return {} if pages is None else pages.pages_by_class.copy()

    def class_runs(self, file: int) -> list[tuple[int, int, SharingClass]]:
        """The resident pages of `file` as ascending runs of one class: first page, last page, class. O(pages)."""
        pages = self._files.get(file)
        return [] if pages is None else [(*run[:2], self._table.held(run[2])) for run in pages.class_runs()]

    def mapped(self) -> set[tuple[int, TenantId]]:
        """The files and tenants for which `set_mapped` said last that pages are mapped. O(files x their classes)."""
        return self.mapped_among(self.all_files())

    def mapped_among(self, files: Iterable[int]) -> set[tuple[int, TenantId]]:
        """As `mapped`, of these files."""
        held = self._table.held
        maps = ((file, self._files.get(file)) for file in files)
        return {
            (file, tenant)
            for file, pages in maps
            if pages is not None
            for raw in pages.pages_by_class
            for tenant in held(raw).mapped
        }

    def all_files(self) -> list[int]:
        """Files that have resident pages, in no order. O(files), at the speed of memory: no page map is looked at."""
        return list(self._files)

    def make_some(self, files: int) -> bool:
        """After a start, read up to so many page maps that nobody asked for yet; whether others wait."""
        return self._files.make_some(files)

    def files(self) -> list[int]:
        """Files that have resident pages, ascending. O(files log files)."""
        return sorted(self._files)

    def files_among(self, files: Iterable[int], verdicts: Verdicts) -> list[int]:
        """Those of `files` with pages in a class that is wanted, in their order. O(files x their classes), quick."""
        maps = ((file, self._files.get(file)) for file in files)
        return [
            file
            for file, pages in maps
            if pages is not None and verdicts.wants_any(pages.pages_by_class.keys(), self._table.held)
        ]

    def files_where(self, wanted: Predicate) -> list[int]:
        """Files with pages in a class that is `wanted`, ascending. O(ids + files x their classes)."""
        return sorted(self.files_among(self.all_files(), Verdicts(self._table, wanted)))

    def runs_where(
        self, file: int, wanted: Predicate, first_page: int = 0, last_page: int = LAST_PAGE
    ) -> list[PageRange]:
        """The pages of a range whose class is `wanted`, ascending and merged. O(classes + pages with a cell)."""
        pages = self._files.get(file)
        if pages is None:
            return []
        chosen = [raw for raw in pages.pages_by_class if wanted(self._table.held(raw))]
        return merged(pages.runs_of(chosen, first_page, last_page)) if chosen else []

    def resident_pages_of(self, file: int) -> int:
        """O(classes of the file)."""
        pages = self._files.get(file)
        return 0 if pages is None else pages.resident_pages

    def settled_pages(self, file: int, tenant: TenantId) -> int | None:
        """None unless no touch of `file` by `tenant` changes anything, as long as `sequence` stays as it is.

        Otherwise how many pages from the first one on are all resident: charging these changes nothing either. 0 when
        there are holes. Only what touches and charges have found out already is known. O(classes of the file + chunks).
        """
        pages = self._files.get(file)
        if pages is None:
            return None
        steps = self._steps.of(tenant)
        if not (pages.fixed_by(steps.touch) or pages.fixed_by(steps.charge)):
            return None
        return pages.leading_pages

    def is_large(self, file: int) -> bool:
        """Whether to map all of it is more than one piece (`mapping`). O(1)."""
        pages = self._files.get(file)
        return pages is not None and is_more_than_a_piece(pages)

    def absent(self, file: int, ranges: Iterable[PageRange]) -> list[PageRange]:
        """The parts of `ranges` that are not resident, ascending and merged. O(ranges + pages that have a cell)."""
        runs = merged(ranges)
        pages = self._files.get(file)
        if pages is None:
            return runs
        return [gap for first, last in runs for gap in gaps(pages.resident_runs(first, last), first, last)]

    def chunks_of(self, file: int, first_page: int = 0, last_page: int = LAST_PAGE) -> list[int]:
        """The chunks of PAGES_PER_CHUNK pages that have pages in a range, by number, in no order. O(chunks)."""
        pages = self._files.get(file)
        return [] if pages is None else pages.chunks(first_page, last_page)

    def resident_in(self, file: int, chunks: Iterable[int]) -> list[PageRange]:
        """The resident pages in some chunks of a file, as ranges which may adjoin. O(pages in them)."""
        pages = self._files.get(file)
        return [] if pages is None else pages.resident_in(chunks)
