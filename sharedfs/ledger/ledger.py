"""The books of one pool: which tenants use which pages, and how many bytes each sharing class holds.

Verbs are the kernel's: `charge` makes pages resident, `uncharge` takes them away, `touch` records a use of pages that
are there. All of them are one algorithm: a `Step` of a tenant is applied to a range of a file's `PageMap`, and the
moves that come back are posted to the `SharingTable`. `exit` and `age` change classes instead, and visit no page (I4).

A file is in the books while it has resident pages, under a number that the caller chooses (the inode's). Pages are
numbered from 0 in each file; ranges are inclusive.

There is no clock, no I/O and no lock here: one caller at a time, who says when a generation has passed.

The books live in the storage they are given (`storage`): page maps in its memory, what happens to classes in its log. A
ledger that is made over the storage of one that was killed, at whatever instant, has that one's books: an operation
that returned is in them; of one that did not, each page has it or has it not, and doing it again completes it. All byte
counts are counted again from the page maps.

Classes are bounded, for a tenant could make a million of them: see `class_bound`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.chunks import PAGES_PER_CHUNK, Cells
from sharedfs.ledger.class_limit import MOST_CLASSES, ClassBound, whole_units
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.class_view import ABSENT, ClassView, Predicate, Verdicts
from sharedfs.ledger.page_map import Move, PageMap
from sharedfs.ledger.page_maps import PageMaps
from sharedfs.ledger.page_ranges import (
    LAST_PAGE,
    PageRange,
    Runs,
    as_runs,
    batched,
    check_range,
    chosen_in,
    gaps,
    merged,
)
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import LedgerStorage, Record, rewrite
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.ledger.tidying import Tidying
from sharedfs.ledger.transitions import StepMemo

PIECE_CHUNKS = 16
"""A piece of long work: of so many chunks, which takes half a millisecond when each page of them differs."""

_OPENED, _UNIT = "opened", "unit"
_SEQUENCES_PER_OPENING = 1 << 40
_TIMES_TOO_MANY = 4
"""So many times the bound on classes there are ids of these at most, whoever tidies the books up."""
_MANY_CLASSES = 64  # of a file: then fewer pages are a piece, for each may make a class
_PIECE_PAGES = 64
_FILE_BYTES, _CHUNK_BYTES = 500, 250
"""About what the objects for a file and for a chunk take."""


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


class Ledger:
    """The books of one pool.

    `page_bytes`: the kernel's page size. `storage`: where the books live, in memory of their own by default.
    `spare_ids`: dead class ids that are never worth a compaction; `most_classes`: see `class_bound`; small in tests.
    `tidies_itself`: within the operation that makes it necessary, as long as that takes. Otherwise whoever has the
    ledger calls `tidy_some` after operations, in pieces, and until then only what is kept is more than it has to be.
    Methods raise ValueError, and change nothing, for a range that is not one (see `check_range`). HostFault of the
    storage, also when it is made, leaves books that are not to be used further.
    """

    def __init__(
        self,
        page_bytes: int = 4096,
        *,
        storage: LedgerStorage | None = None,
        spare_ids: int = 1024,
        most_classes: int = MOST_CLASSES,
        tidies_itself: bool = True,
    ) -> None:
        if page_bytes <= 0:
            raise ValueError(f"a page of {page_bytes} bytes")
        self._page_bytes = page_bytes
        storage = LedgerStorage() if storage is None else storage
        self._log = storage.log
        self._cells = Cells(storage.entries, storage.short, storage.long)
        self._table = SharingTable(spare_ids, storage.log)
        self._steps = StepMemo(self._table)
        self._files = PageMaps(self._cells)
        self._made = self._files.made
        self._bound = ClassBound(self._table, self._files, most_classes)
        self._tidying = Tidying(
            self._table, self._files, self._steps, self._bound, self._log, self._dump, self._book, self._has_changed
        )
        self._tidies_itself = tidies_itself
        self._most_ids = _TIMES_TOO_MANY * most_classes
        self._mappings: dict[TenantId, dict[int, tuple[Runs, int, int]]] = {}
        """What `set_mapped` was told last: the ranges, and the file's births and resident pages afterwards."""
        self._told_bytes = 0  # of the ranges in these
        self._openings = 0
        self._sequence = 0
        self._restore()
        self._sequence = self._openings * _SEQUENCES_PER_OPENING

    # -- Operations on pages -------------------------------------------------------------------------------------------

    def charge(self, file: int, first_page: int, last_page: int, tenant: TenantId, *, foreign: bool = False) -> int:
        """Make a range resident: absent pages become `tenant`'s, those that are there are touched by it.

        `foreign`: the kernel charged the absent ones to `tenant`'s own cgroup (I2). For NOBODY they are unclaimed.
        Returns the pages newly resident. O(1) for one page, O(pages) by comparing memory for more.
        """
        check_range(first_page, last_page)
        steps = self._steps.of(tenant)
        pages = self._files.get(file)
        if pages is None:
            pages = self._files.add(file)
        births = pages.births
        moves = pages.charge(first_page, last_page, steps.charge_foreign if foreign else steps.charge)
        if pages.unit_pages > 1:
            moves = [*moves, *self._bound.unite(pages, first_page, last_page)]
        self._post(moves)
        return pages.births - births

    def touch(self, file: int, first_page: int, last_page: int, tenant: TenantId) -> None:
        """`tenant` read or wrote a range. Absent pages stay absent; a file without pages and NOBODY have no effect.

        O(1) for one page, and for a file all of whose classes `tenant` touched lately; else O(pages) as `charge`.
        """
        if not 0 <= first_page <= last_page <= LAST_PAGE:  # the hot path saves a call
            check_range(first_page, last_page)
        pages = self._made.get(file) or self._files.get(file)
        if pages is not None:
            if pages.unit_pages > 1:
                first_page, last_page = whole_units(pages, first_page, last_page)
            moves = pages.apply(first_page, last_page, self._steps.of(tenant).touch)
            if moves:
                self._post(moves)

    def uncharge(
        self, file: int, first_page: int, last_page: int | None = None, chunks: Iterable[int] | None = None
    ) -> int:
        """A range is resident no more (truncated, punched); None: to the end. Returns the pages freed. O(pages).

        `chunks`: only what is in these chunks, for callers who work in pieces.
        """
        last_page = LAST_PAGE if last_page is None else last_page
        check_range(first_page, last_page)
        pages = self._files.get(file)
        if pages is None:
            return 0
        if chunks is None:
            moves = pages.apply(first_page, last_page, self._steps.uncharge)
        else:
            moves = pages.apply_to_chunks(chunks, first_page, last_page, self._steps.uncharge)
        if not pages.pages_by_class:
            self._forget(file)
        self._post(moves)
        return sum(freed for _, _, freed in moves)

    def uncharge_runs(self, file: int, gone: Runs, chunks: Iterable[int]) -> int:
        """As `uncharge`, of many ranges, in some chunks. O(cells of the chunks), however many ranges there are."""
        pages = self._files.get(file)
        if pages is None:
            return 0
        moves: list[Move] = []
        for index in chunks:
            first_page = index * PAGES_PER_CHUNK
            chosen = chosen_in(gone, first_page, PAGES_PER_CHUNK)
            if chosen is True:
                last_page = first_page + PAGES_PER_CHUNK - 1
                moves += pages.apply_to_chunks((index,), first_page, last_page, self._steps.uncharge)
            elif chosen is not False:
                moves += pages.apply_where(index, chosen, self._steps.uncharge, None)
        if not pages.pages_by_class:
            self._forget(file)
        self._post(moves)
        return sum(freed for _, _, freed in moves)

    def drop(self, file: int) -> int:
        """`file` is gone. Returns the pages freed. O(its classes + tenants with mappings)."""
        pages = self._files.get(file)
        if pages is None:
            return 0
        pages.drop()
        self._forget(file)
        self._post([(raw, ABSENT, count) for raw, count in pages.pages_by_class.items()])
        return pages.resident_pages

    def recharge(self, file: int, first_page: int, last_page: int) -> None:
        """The kernel charges the resident pages of a range to the pool now, whoever it charged before. O(pages)."""
        check_range(first_page, last_page)
        pages = self._files.get(file)
        if pages is not None:
            self._post(pages.apply(first_page, last_page, self._steps.recharge))

    def hand_over(self, file: int, tenant: TenantId) -> None:
        """`tenant` owns the pages that `file` has now, but for foreign ones (`SharingClass.handed_to`). O(pages)."""
        pages = self._files.get(file)
        if pages is not None:
            self._post(pages.apply(0, LAST_PAGE, self._steps.of(tenant).hand_over))

    def add_mapped(self, file: int, tenant: TenantId, ranges: Sequence[PageRange]) -> None:
        """`tenant` maps these pages of `file`, too. O(pages with a cell in `ranges`), or O(classes) when it did."""
        pages = self._files.get(file)
        if pages is None or tenant == NOBODY or pages.fixed_by(self._steps.of(tenant).map):
            return
        self._untell(file, tenant)
        moves: list[Move] = []
        for run in ranges:
            first_page, last_page = whole_units(pages, *run) if pages.unit_pages > 1 else run
            moves += pages.apply(first_page, last_page, self._steps.of(tenant).map)
        self._post(moves)

    def set_mapped(self, file: int, tenant: TenantId, ranges: Sequence[PageRange] | Runs) -> None:
        """The pages of `file` that `tenant` has mapped are exactly `ranges`, in any order; absent ones are ignored.

        O(ranges) when they are those of the last call and no page of the file is new since; otherwise
        O(ranges + pages with a cell), or O(ranges + classes) when a file is mapped entirely, or not at all, as before.
        """
        for _ in self.mapping(file, tenant, as_runs(ranges)):
            pass

    def mapping(self, file: int, tenant: TenantId, runs: Runs) -> Iterator[None]:
        """As `set_mapped`, in pieces of `PIECE_CHUNKS` chunks: between two of them other operations may be called.

        Each page then is as the piece that came to it found it. To be dropped when `tenant` exits.
        """
        pages = self._files.get(file)
        if pages is None or tenant == NOBODY or self.is_mapped(file, tenant, runs):
            return
        told = (runs, pages.births, pages.resident_pages)
        steps = self._steps.of(tenant)
        everything = len(runs) == 1 and runs[0, 0] == 0 and runs[0, 1] == LAST_PAGE
        if not pages.fixed_by(steps.map if everything else steps.unmap) or (len(runs) and not everything):
            for part, offsets in _pieces_of(pages):
                self._map_chunks(file, tenant, runs, part, offsets)
                yield
        if not len(runs):
            self._untell(file, tenant)
        elif self._files.get(file) is not None:
            self._tell(file, tenant, told)

    def is_large(self, file: int) -> bool:
        """Whether to map all of it is more than one piece (`mapping`). O(1)."""
        pages = self._files.get(file)
        return pages is not None and (pages.chunk_count > PIECE_CHUNKS or len(pages.pages_by_class) > _MANY_CLASSES)

    def _map_chunks(self, file: int, tenant: TenantId, runs: Runs, indices: Iterable[int], offsets: range) -> None:
        pages, steps = self._files.get(file), self._steps.of(tenant)
        if pages is None:
            return
        moves: list[Move] = []
        for index in indices:
            first_page = index * PAGES_PER_CHUNK
            chosen = chosen_in(runs, first_page, PAGES_PER_CHUNK)
            if isinstance(chosen, bool):
                step = steps.map if chosen else steps.unmap
                moves += pages.apply_to_chunks((index,), first_page + offsets[0], first_page + offsets[-1], step)
            else:
                if pages.unit_pages > 1:
                    chosen = chosen.reshape(-1, pages.unit_pages).any(axis=1).repeat(pages.unit_pages)
                moves += pages.apply_where(index, chosen, steps.map, steps.unmap, offsets)
        self._post(moves)

    def is_mapped(self, file: int, tenant: TenantId, runs: Runs) -> bool:
        """Whether `set_mapped` was told the same before, and `file` has the same pages since. O(ranges + classes)."""
        pages = self._files.get(file)
        told = self._mappings.get(tenant, {}).get(file)
        return (
            pages is not None
            and told is not None
            and told[1:] == (pages.births, pages.resident_pages)
            and np.array_equal(told[0], runs)
        )

    # -- Operations on classes: no page is visited ---------------------------------------------------------------------

    def exit(self, tenant: TenantId) -> None:
        """`tenant` owns and uses nothing any more; the other payers of its pages share them. O(its classes) (I4)."""
        gone = self._mappings.pop(tenant, {})
        self._told_bytes -= sum(runs.nbytes for runs, _, _ in gone.values())
        self._steps.forget(tenant)
        if self._table.exit(tenant):
            self._sequence += 1
        self._settle_if_due()

    def age(self) -> None:
        """A generation has passed: touches before the last one count no more (`SharingClass.aged`). O(classes)."""
        self._steps.clear()
        if self._table.age():
            self._sequence += 1
        self._settle_if_due()

    @property
    def untidy(self) -> bool:
        """Whether `tidy_some` has something to do. O(1)."""
        return self._tidying.due

    def tidy_some(self) -> bool:
        """Do a piece of what the books do for themselves (`tidying`), a millisecond or two; False when all is done.

        No answer is another one afterwards, but where there are too many classes (`class_bound`).
        """
        return self._tidying.step()

    def coarsen(self, file: int, unit_pages: int) -> None:
        """From here on who uses a page of `file` uses the aligned run of `unit_pages` pages that it is in. O(pages).

        A power of two; at most a chunk.
        """
        for _ in self._tidying.coarsening(file, unit_pages):
            pass

    # -- Questions -----------------------------------------------------------------------------------------------------

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

    def bytes_where(self, wanted: Predicate) -> int:
        """Resident bytes in the classes that are `wanted`. O(classes)."""
        return sum(pages for held, pages in self._table.holdings() if wanted(held)) * self._page_bytes

    def all_files(self) -> list[int]:
        """Files that have resident pages, in no order. O(files), at the speed of memory: no page map is looked at."""
        return list(self._files)

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

    def runs_where(self, file: int, wanted: Predicate) -> list[PageRange]:
        """The pages of a file whose class is `wanted`, ascending and merged. O(pages with a cell)."""
        pages = self._files.get(file)
        if pages is None:
            return []
        return merged(pages.runs_of([raw for raw in pages.pages_by_class if wanted(self._table.held(raw))]))

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

    def class_runs(self, file: int) -> list[tuple[int, int, SharingClass]]:
        """The resident pages of `file` as ascending runs of one class: first page, last page, class. O(pages)."""
        pages = self._files.get(file)
        return [] if pages is None else [(*run[:2], self._table.held(run[2])) for run in pages.class_runs()]

    def files(self) -> list[int]:
        """Files that have resident pages, ascending. O(files log files)."""
        return sorted(self._files)

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

    def make_some(self, files: int) -> bool:
        """After a start, read up to so many page maps that nobody asked for yet; whether others wait."""
        return self._files.make_some(files)

    def statistics(self) -> LedgerStatistics:
        """How big the books are. O(tenants + foreign classes), and O(ids) at the speed of memory."""
        objects = len(self._made) * _FILE_BYTES + self._cells.chunks * _CHUNK_BYTES
        return LedgerStatistics(
            sequence=self._sequence,
            resident_bytes=self.resident_bytes,
            foreign_bytes=self.foreign_bytes,
            files=len(self._files),
            classes=self._table.classes_with_pages,
            class_ids=self._table.ids_in_use,
            compactions=self._tidying.compactions,
            page_map_bytes=self._cells.used_bytes,
            memory_bytes=objects
            + self._cells.memory_bytes
            + self._table.memory_bytes
            + self._steps.memory_bytes
            + self._told_bytes,
            coarse_files=len(self._files.units),
            reductions=self._bound.reductions,
        )

    def check(self) -> None:
        """Prove the books from the pages up; raise BrokenInvariant with the state that contradicts them. O(pages)."""
        self._table.check()
        self._steps.check()
        by_id: dict[int, int] = {}
        for file, pages in self._files.all():
            if not pages.pages_by_class:
                raise BrokenInvariant(f"I1: file {file} is in the books without a page")
            pages.check()
            for raw, count in pages.pages_by_class.items():
                canonical = self._table.alias[raw]
                by_id[canonical] = by_id.get(canonical, 0) + count
        posted = {raw: count for raw in sorted(by_id) if (count := self._table.pages_of(raw))}
        if by_id != posted or sum(by_id.values()) != self._table.resident_pages:
            raise BrokenInvariant(
                f"I1: the page maps have {by_id}, the table {posted}, resident {self._table.resident_pages} pages"
            )
        told = sum(runs.nbytes for by_file in self._mappings.values() for runs, _, _ in by_file.values())
        units = {file: pages.unit_pages for file, pages in self._files.all() if pages.unit_pages > 1}
        map_bytes = sum(pages.map_bytes for pages in self._made.values())
        if (self._told_bytes, self._files.units, self._cells.used_bytes) != (told, units, map_bytes):
            raise BrokenInvariant(f"I1: the books' own size is not {told}, {units}, {map_bytes}: {self.statistics()}")

    # -- Inside --------------------------------------------------------------------------------------------------------

    def _post(self, moves: Sequence[Move]) -> None:
        """Book what a page map has moved; afterwards, when ids have become many, reuse those that died."""
        if not moves:
            return
        self._book(moves)
        self._tidy_if_due()

    def _settle_if_due(self) -> None:
        if self._tidies_itself:
            for _ in self._tidying.settling():
                pass

    def _tidy_if_due(self) -> None:
        if self._tidies_itself or self._table.ids_in_use > self._most_ids:
            while self._tidying.due and self._tidying.step():
                pass

    def _has_changed(self) -> None:
        self._sequence += 1

    def _book(self, moves: Sequence[Move]) -> None:
        for raw, target, pages in moves:
            self._table.move(raw, target, pages)
        if moves:
            self._sequence += 1

    def _forget(self, file: int) -> None:
        if self._files[file].unit_pages > 1:
            self._log.append((_UNIT, file, 1))
        self._files.remove(file)
        for tenant in self._mappings:
            self._untell(file, tenant)

    def _tell(self, file: int, tenant: TenantId, told: tuple[Runs, int, int]) -> None:
        self._untell(file, tenant)
        self._mappings.setdefault(tenant, {})[file] = told
        self._told_bytes += told[0].nbytes

    def _untell(self, file: int, tenant: TenantId) -> None:
        told = self._mappings.get(tenant, {}).pop(file, None)
        if told is not None:
            self._told_bytes -= told[0].nbytes

    # -- What is kept --------------------------------------------------------------------------------------------------

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

    def _restore(self) -> None:
        """The books that are in the storage. O(records + files + chunks + cells)."""
        units: dict[int, int] = {}
        records = self._log.records()
        for record in records:
            match record:
                case [str(tag), int(number)] if tag == _OPENED:
                    self._openings = number + 1
                case [str(tag), file, unit_pages] if tag == _UNIT:
                    units[file] = unit_pages
                case _ if not self._table.replay(record):
                    raise BrokenInvariant(f"I7: the log of the books has a record that nothing explains: {record}")
        entries, totals = self._cells.load()
        self._table.count(totals)
        self._files.load(entries, units)
        self._log.append((_OPENED, self._openings))

    def write_whole(self) -> None:
        """Write the log as the version before this one reads it: nothing is to be done with the ledger afterwards.

        O(ids), in one piece.
        """
        for _ in self._tidying.settling():
            pass
        rewrite(self._log, self._with_table([self._table.whole()]))

    def _dump(self) -> Iterator[Record]:
        return self._with_table(self._table.dump())

    def _with_table(self, table: Iterable[Record]) -> Iterator[Record]:
        units = [(_UNIT, *unit) for unit in self._files.units.items()]
        return chain([(_OPENED, self._openings)], table, units)


def _pieces_of(pages: PageMap) -> Iterator[tuple[Sequence[int], range]]:
    """Some chunks, and which pages of each: little enough to be done at once."""
    chunks = pages.chunks()
    if len(pages.pages_by_class) <= _MANY_CLASSES:
        for part in batched(chunks, PIECE_CHUNKS):
            yield part, range(PAGES_PER_CHUNK)
    else:
        for index in chunks:
            for start in range(0, PAGES_PER_CHUNK, _PIECE_PAGES):
                yield (index,), range(start, start + _PIECE_PAGES)
