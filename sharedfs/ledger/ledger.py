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

Classes are bounded, for a tenant could make a million of them: see `class_limit`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.chunks import PAGES_PER_CHUNK, Cells
from sharedfs.ledger.class_limit import MOST_CLASSES, ClassBound, whole_units
from sharedfs.ledger.class_table import UNIT, SharingTable
from sharedfs.ledger.class_view import ABSENT
from sharedfs.ledger.ledger_view import LedgerStatistics, LedgerView
from sharedfs.ledger.page_map import Move
from sharedfs.ledger.page_maps import PageMaps
from sharedfs.ledger.page_ranges import (
    LAST_PAGE,
    PageRange,
    Runs,
    as_runs,
    check_range,
    chosen_in,
)
from sharedfs.ledger.pieces import pieces_of
from sharedfs.ledger.proof import check_books
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import LedgerStorage, Record, rewrite
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.ledger.tidying import Tidying
from sharedfs.ledger.told_mappings import Told, ToldMappings

_OPENED = "opened"
_SEQUENCES_PER_OPENING = 1 << 40
_TIMES_TOO_MANY = 4
"""So many times the bound on classes there are ids of these at most, whoever tidies the books up."""
_FILE_BYTES, _CHUNK_BYTES = 500, 250
"""About what the objects for a file and for a chunk take."""


class Ledger(LedgerView):
    """The books of one pool: the operations. What they are asked is in `LedgerView`.

    `page_bytes`: the kernel's page size. `storage`: where the books live, in memory of their own by default.
    `spare_ids`: dead class ids that are never worth a compaction; `most_classes`: see `class_limit`; small in tests.
    `tidies_itself`: within the operation that makes it necessary, as long as that takes. Otherwise whoever has the
    ledger calls `tidy_some` after operations, in pieces, and until then only what is kept is more than it has to be.
    Methods raise ValueError, and change nothing, for a range that is not one (see `check_range`). HostFault of the
    storage, also when it is made, leaves books that are not to be used further. `on_freed` is told of pages that go, by
    the class that they were in.
    """

    def __init__(
        self,
        page_bytes: int = 4096,
        *,
        storage: LedgerStorage | None = None,
        spare_ids: int = 1024,
        most_classes: int = MOST_CLASSES,
        tidies_itself: bool = True,
        on_freed: Callable[[SharingClass, int], None] | None = None,
    ) -> None:
        if page_bytes <= 0:
            raise ValueError(f"a page of {page_bytes} bytes")
        storage = LedgerStorage() if storage is None else storage
        self._log = storage.log
        self._cells = Cells(storage.entries, storage.short, storage.long)
        super().__init__(page_bytes, SharingTable(spare_ids, storage.log), PageMaps(self._cells))
        self._made = self._files.made
        self._bound = ClassBound(self._table, self._files, most_classes)
        self._tidying = Tidying(
            self._table, self._files, self._steps, self._bound, self._log, self._dump, self._book, self._has_changed
        )
        self._tidies_itself = tidies_itself
        self._on_freed = on_freed
        self._most_ids = _TIMES_TOO_MANY * most_classes
        self._told = ToldMappings()
        self._openings = 0
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
        return self._freed(moves)

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
        return self._freed(moves)

    def drop(self, file: int) -> int:
        """`file` is gone. Returns the pages freed. O(its classes + tenants with mappings)."""
        pages = self._files.get(file)
        if pages is None:
            return 0
        pages.drop()
        self._forget(file)
        return self._freed([(raw, ABSENT, count) for raw, count in pages.pages_by_class.items()])

    def recharge(self, file: int, first_page: int, last_page: int, to: TenantId | None = None) -> None:
        """The kernel charges the resident pages of a range to the pool now, whoever it charged before. O(pages).

        With `to` it charges this tenant, NOBODY for a cgroup that is gone, for those of them that are foreign.
        """
        check_range(first_page, last_page)
        pages = self._files.get(file)
        if pages is not None:
            step = self._steps.recharge if to is None else self._steps.of(to).take_foreign
            self._post(pages.apply(first_page, last_page, step))

    def hand_over(self, file: int, tenant: TenantId) -> None:
        """`tenant` owns the pages that `file` has now, but for foreign ones (`SharingClass.handed_to`). O(pages)."""
        pages = self._files.get(file)
        if pages is not None:
            self._post(pages.apply(0, LAST_PAGE, self._steps.of(tenant).hand_over))

    # -- Mappings ------------------------------------------------------------------------------------------------------

    def add_mapped(self, file: int, tenant: TenantId, ranges: Sequence[PageRange]) -> None:
        """`tenant` maps these pages of `file`, too. O(pages with a cell in `ranges`), or O(classes) when it did."""
        pages = self._files.get(file)
        if pages is None or tenant == NOBODY or pages.fixed_by(self._steps.of(tenant).map):
            return
        self._told.forget(file, tenant)
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

    def mapping(self, file: int, tenant: TenantId, runs: Runs) -> Iterator[int]:
        """As `set_mapped`, in pieces of `PIECE_CHUNKS` chunks: between two of them other operations may be called.

        Each page then is as the piece that came to it found it. To be dropped when `tenant` exits. Gives the pages of
        each piece that `tenant` did not use before.
        """
        pages = self._files.get(file)
        if pages is None or tenant == NOBODY or self.is_mapped(file, tenant, runs):
            return
        told = Told(runs, pages.births, pages.resident_pages)
        steps = self._steps.of(tenant)
        everything = len(runs) == 1 and runs[0, 0] == 0 and runs[0, 1] == LAST_PAGE
        if not pages.fixed_by(steps.map if everything else steps.unmap) or (len(runs) and not everything):
            for part, offsets in pieces_of(pages):
                yield self._map_chunks(file, tenant, runs, part, offsets)
        if not len(runs):
            self._told.forget(file, tenant)
        elif self._files.get(file) is not None:
            self._told.tell(file, tenant, told)

    def _map_chunks(self, file: int, tenant: TenantId, runs: Runs, indices: Iterable[int], offsets: range) -> int:
        pages, steps = self._files.get(file), self._steps.of(tenant)
        if pages is None:
            return 0
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
        gained = _gained(self._table, tenant, moves)
        self._post(moves)
        return gained

    def is_mapped(self, file: int, tenant: TenantId, runs: Runs) -> bool:
        """Whether `set_mapped` was told the same before, and `file` has the same pages since. O(ranges + classes)."""
        pages = self._files.get(file)
        return pages is not None and self._told.is_told(file, tenant, runs, pages)

    # -- Operations on classes: no page is visited ---------------------------------------------------------------------

    def exit(self, tenant: TenantId, heir: TenantId = NOBODY) -> None:
        """`tenant` owns and uses nothing any more; the other payers of its pages share them, or `heir` has them.

        O(its classes) (I4).
        """
        self._told.forget_tenant(tenant)
        self._steps.forget(tenant)
        if self._table.exit(tenant, heir):
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

        No answer is another one afterwards, but where there are too many classes (`class_limit`).
        """
        return self._tidying.step()

    def coarsen(self, file: int, unit_pages: int) -> None:
        """From here on who uses a page of `file` uses the aligned run of `unit_pages` pages that it is in. O(pages).

        A power of two; at most a chunk.
        """
        for _ in self._tidying.coarsening(file, unit_pages):
            pass

    # -- Size and proof ------------------------------------------------------------------------------------------------

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
            + self._told.used_bytes,
            coarse_files=len(self._files.units),
            reductions=self._bound.reductions,
        )

    def check(self) -> None:
        """Prove the books from the pages up; raise BrokenInvariant with the state that contradicts them. O(pages)."""
        check_books(self._table, self._steps, self._files, self._cells)
        if self._told.used_bytes != self._told.counted_bytes():
            raise BrokenInvariant(f"I1: what was told of mappings is not {self._told.used_bytes} bytes")

    # -- Inside --------------------------------------------------------------------------------------------------------

    def _post(self, moves: Sequence[Move]) -> None:
        """Book what a page map has moved; afterwards, when ids have become many, reuse those that died."""
        if not moves:
            return
        self._book(moves)
        self._tidy_if_due()

    def _freed(self, moves: Sequence[Move]) -> int:
        """Book pages that are gone, and tell whose they were; how many."""
        if self._on_freed is not None:
            for raw, _, count in moves:
                self._on_freed(self._table.held(raw), count)
        self._post(moves)
        return sum(count for _, _, count in moves)

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
            self._log.append((UNIT, file, 1))
        self._files.remove(file)
        self._told.forget_file(file)

    # -- What is kept --------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """The books that are in the storage. O(records + files + chunks + cells)."""
        units: dict[int, int] = {}
        records = self._log.records()
        for record in records:
            match record:
                case [str(tag), int(number)] if tag == _OPENED:
                    self._openings = number + 1
                case [str(tag), file, unit_pages] if tag == UNIT:
                    units[file] = unit_pages
                case _ if not self._table.replay(record):
                    raise BrokenInvariant(f"I7: the log of the books has a record that nothing explains: {record}")
        entries, totals = self._cells.load()
        self._table.count(totals)
        self._files.load(entries, units)
        self._log.append((_OPENED, self._openings))

    def write_whole(self) -> None:
        """Write the log as the versions before this one read it: nothing is to be done with the ledger afterwards.

        They know no heirs. O(ids), in one piece.
        """
        self._table.disinherit()
        for _ in self._tidying.settling():
            pass
        rewrite(self._log, self._dump([self._table.whole()]))

    def _dump(self, table: Iterable[Record] | None = None) -> Iterator[Record]:
        """What the log is to say instead of all that it says; `table`: of the classes."""
        units = [(UNIT, *unit) for unit in self._files.units.items()]
        return chain([(_OPENED, self._openings)], self._table.dump() if table is None else table, units)


def _gained(table: SharingTable, tenant: TenantId, moves: Sequence[Move]) -> int:
    """The pages that `moves`, which are not booked yet, make `tenant` a user of."""

    def uses(raw: int) -> bool:
        return raw != ABSENT and tenant in table.held(raw).payers

    return sum(pages for raw, target, pages in moves if uses(target) and not uses(raw))
