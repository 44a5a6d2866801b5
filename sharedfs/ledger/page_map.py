"""The pages of one file: four bytes a page that say which sharing class it is in, or none where neighbours are alike.

A file is a table of chunks, as the kernel's page tables are, because files are sparse: one byte written at offset 2^62
must not cost more than its page. A chunk holds raw ids (see `class_table`), grown page by page and cut after its last
resident page; a chunk without one is not there. While all pages of a chunk are alike, as most are, it is one entry of
24 bytes; otherwise it has a slot with four bytes a page (see `cells`). So a map takes of any file at most
PAGES_PER_CHUNK * 4 bytes, one page, for each resident page.

One cell is read through a memoryview, twice as fast as through an ndarray, and a run is compared at the speed of
memory. Runs that differ go through numpy.

Every operation is a `Step` applied to a range (`apply`); `pages_by_class` moves with it, so questions about a file cost
its classes, never its pages.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.chunks import ENTRY_BYTES, PAGES_PER_CHUNK, Cells, Chunk
from sharedfs.ledger.class_view import ABSENT
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange
from sharedfs.ledger.transitions import Step

_SHIFT = PAGES_PER_CHUNK.bit_length() - 1
_MASK = PAGES_PER_CHUNK - 1
_WHOLE_CHUNK = range(PAGES_PER_CHUNK)
_FEW_PAGES = 64
"""So many cells are stored one by one: it is faster than to make a new slot."""

Move = tuple[int, int, int]
"""(raw, target, pages): so many pages that had id `raw` now have canonical id `target`."""


class PageMap:
    """The raw id of each page of a file, kept in `cells` under the number `file`."""

    __slots__ = ("_cells", "_chunks", "_file", "births", "pages_by_class", "unit_pages")

    def __init__(self, cells: Cells, file: int, entries: Iterable[int] = ()) -> None:
        """Of a file without pages, or of one that has these entries in `cells`. O(entries and their cells)."""
        self._cells = cells
        self._file = file
        self._chunks: dict[int, Chunk] = dict(map(cells.chunk, entries))
        self.pages_by_class = cells.count(self._chunks.values())
        """Raw id -> resident pages that have it, without zeros."""
        self.births = self.resident_pages
        """Pages that ever became resident: unchanged means that no page is new."""
        self.unit_pages = 1
        """The unit of accounting: so many pages, aligned, have the same users (`Ledger.coarsen`). A power of two."""

    @property
    def resident_pages(self) -> int:
        """O(classes of this file)."""
        return sum(self.pages_by_class.values())

    @property
    def chunk_count(self) -> int:
        """O(1)."""
        return len(self._chunks)

    @property
    def leading_pages(self) -> int:
        """How many pages are resident, when these are the first ones of the file without a hole; else 0. O(chunks)."""
        pages = self.resident_pages
        cells = sum(chunk.pages for chunk in self._chunks.values())
        # Without an absent cell, and each chunk but the last one full: then it depends on which chunks there are.
        dense = cells == pages and len(self._chunks) == -(-pages // PAGES_PER_CHUNK)
        return pages if dense and max(self._chunks, default=0) == len(self._chunks) - 1 else 0

    def fixed_by(self, step: Step) -> bool:
        """Whether `step` is known to leave every page of the file alone. O(classes of this file)."""
        return self.pages_by_class.keys() <= step.fixed

    def chunks(self, first_page: int = 0, last_page: int = LAST_PAGE) -> list[int]:
        """The numbers of the chunks that have cells in a range, in no order. O(chunks), at the speed of memory."""
        first, last = first_page >> _SHIFT, last_page >> _SHIFT
        if last - first < len(self._chunks):
            return [index for index in range(first, last + 1) if index in self._chunks]
        if not first and last >= LAST_PAGE >> _SHIFT:
            return list(self._chunks)
        return [index for index in self._chunks if first <= index <= last]

    def resident_in(self, indices: Iterable[int]) -> list[PageRange]:
        """The resident pages of chunks, as ranges which may adjoin. O(indices and their cells)."""
        found: list[PageRange] = []
        for index in indices:
            first_page = index << _SHIFT
            found += self.resident_runs(first_page, first_page + _MASK)
        return found

    def apply_to_chunks(self, indices: Iterable[int], first_page: int, last_page: int, step: Step) -> Sequence[Move]:
        """As `apply`, to what chunks with these numbers have of the range. O(indices and their cells)."""
        moved: dict[int, int] = {}
        for index in indices:
            chunk, base = self._chunks.get(index), index << _SHIFT
            if chunk is not None:
                start, stop = max(first_page - base, 0), min(last_page - base + 1, chunk.pages)
                if start < stop:
                    self._apply_to_chunk(index, chunk, start, stop, step, moved)
        return self._count([(raw, step.target(raw), pages) for raw, pages in moved.items()]) if moved else ()

    def apply_where(
        self, index: int, chosen: NDArray[np.bool_], step: Step, other: Step | None, offsets: range = _WHOLE_CHUNK
    ) -> Sequence[Move]:
        """Put the pages of one chunk that are `chosen` where `step` says, and those that are not where `other` does.

        Without `other` these stay.
        `chosen` has an item for each page that a chunk can have; those at other `offsets` stay. O(cells of the chunk).
        """
        chunk = self._chunks.get(index)
        if chunk is None:
            return ()
        ids = self._cells.ids(chunk)
        inside = np.zeros(len(ids), bool)
        inside[offsets[0] : offsets[-1] + 1] = True
        part = chosen[: len(ids)]
        moved: dict[tuple[int, int], int] = {}
        result = ids.copy()
        for pages, one in ((part & inside, step), (~part & inside, other)):
            if one is None:
                continue
            counts = np.bincount(ids[pages])
            for raw in counts.nonzero()[0].tolist():
                if raw not in one.fixed and (target := one.target(raw)) != raw:
                    result[pages & (ids == raw)] = target
                    moved[raw, target] = moved.get((raw, target), 0) + int(counts[raw])
        if not moved:
            return ()
        self._cells.put(chunk, result)
        if not chunk.pages:
            del self._chunks[index]
        return self._count([(raw, target, pages) for (raw, target), pages in moved.items()])

    def apply(self, first_page: int, last_page: int, step: Step) -> Sequence[Move]:
        """Put each page of an inclusive range where `step` says, and return what moved, by raw id.

        Pages that have no cell are absent and stay so. O(1) for one page, and when `step` is known to leave all classes
        of the file alone; else O(pages in the range that have a cell), by comparing memory where they are alike.
        """
        fixed = step.fixed
        if first_page == last_page:
            chunk = self._chunks.get(first_page >> _SHIFT)
            offset = first_page & _MASK
            if chunk is None or offset >= chunk.pages:
                return ()
            cells = chunk.cells
            raw = chunk.raw if cells is None else cells[offset]
            if raw in fixed or (target := step.target(raw)) == raw:
                return ()
            if target != ABSENT:
                self._cells.put_one(chunk, offset, target)
                return self._count([(raw, target, 1)])
        if ABSENT in fixed and len(self.pages_by_class) <= last_page - first_page and self.fixed_by(step):
            return ()
        moved: dict[int, int] = {}
        for index, chunk, start, stop in self._parts(first_page, last_page):
            self._apply_to_chunk(index, chunk, start, stop, step, moved)
        return self._count([(raw, step.target(raw), pages) for raw, pages in moved.items()]) if moved else ()

    def charge(self, first_page: int, last_page: int, step: Step) -> Sequence[Move]:
        """As `apply`, with a cell for every page of the range."""
        if first_page == last_page:
            index, offset = first_page >> _SHIFT, first_page & _MASK
            chunk = self._chunks.get(index)
            if chunk is not None and offset < chunk.pages:
                return self.apply(first_page, last_page, step)
            target = step.target(ABSENT)
            if chunk is None:
                chunk = self._chunks[index] = self._cells.new(self._file, index)
            self._cells.append(chunk, offset, target)
            return self._count([(ABSENT, target, 1)])
        moved: dict[int, int] = {}
        for index in range(first_page >> _SHIFT, (last_page >> _SHIFT) + 1):
            base = index << _SHIFT
            chunk = self._chunks.get(index)
            if chunk is None:
                chunk = self._chunks[index] = self._cells.new(self._file, index)
            start, stop = max(first_page - base, 0), min(last_page - base + 1, PAGES_PER_CHUNK)
            self._apply_to_chunk(index, chunk, start, stop, step, moved)
        return self._count([(raw, step.target(raw), pages) for raw, pages in moved.items()]) if moved else ()

    def drop(self) -> None:
        """The file is gone."""
        for chunk in self._chunks.values():
            self._cells.free(chunk)
        self._chunks.clear()

    def resident_runs(self, first_page: int, last_page: int) -> Iterator[PageRange]:
        """The resident pages of an inclusive range as ascending ranges, which may adjoin. O(pages with a cell)."""
        for index, chunk, start, stop in self._parts(first_page, last_page):
            base = index << _SHIFT
            if chunk.cells is None:
                yield base + start, base + stop - 1
            else:
                yield from _matching(self._cells.mixed_ids(chunk)[start:stop] != ABSENT, base + start)

    def runs_of(self, raw_ids: Collection[int], first_page: int = 0, last_page: int = LAST_PAGE) -> Iterator[PageRange]:
        """The pages of a range that have one of `raw_ids`, ascending; ranges may adjoin. O(pages with a cell)."""
        wanted = np.fromiter(raw_ids, np.uint32)
        for index, chunk, start, stop in self._parts(first_page, last_page):
            base = index << _SHIFT
            if chunk.cells is not None:
                yield from _matching(np.isin(self._cells.mixed_ids(chunk)[start:stop], wanted), base + start)
            elif chunk.raw in raw_ids:
                yield base + start, base + stop - 1

    def count(self, first_page: int, last_page: int) -> dict[int, int]:
        """The resident pages of an inclusive range by raw id. O(pages in the range that have a cell)."""
        found: dict[int, int] = {}
        for _, chunk, start, stop in self._parts(first_page, last_page):
            if chunk.cells is None:
                found[chunk.raw] = found.get(chunk.raw, 0) + stop - start
                continue
            counts = np.bincount(self._cells.mixed_ids(chunk)[start:stop])
            for raw in counts.nonzero()[0].tolist():
                found[raw] = found.get(raw, 0) + int(counts[raw])
        found.pop(ABSENT, None)
        return found

    def class_runs(self) -> Iterator[tuple[int, int, int]]:
        """The resident pages as ascending runs of one raw id: first page, last page, id. O(pages)."""
        for index, chunk in sorted(self._chunks.items()):
            ids = self._cells.ids(chunk)
            edges = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
            for begin, end in pairwise(edges):
                if ids[begin] != ABSENT:
                    yield (index << _SHIFT) + begin, (index << _SHIFT) + end - 1, int(ids[begin])

    def unite(self, first_page: int, last_page: int, one_for: Callable[[list[int]], dict[int, int]]) -> Sequence[Move]:
        """Give each unit of accounting that reaches into a range the classes that `one_for` makes of those in it.

        `one_for` gets the raw ids of the resident pages of a unit, and says which of them become what. O(units).
        """
        moved: dict[tuple[int, int], int] = {}
        for _, chunk, start, stop in self._parts(first_page, last_page):
            if chunk.cells is None:
                continue
            ids = self._cells.ids(chunk)
            changed = False
            for begin in range(start - start % self.unit_pages, stop, self.unit_pages):
                unit = ids[begin : begin + self.unit_pages]
                counts = np.bincount(unit)
                counts[ABSENT] = 0
                targets = one_for(counts.nonzero()[0].tolist())
                before = unit.copy()
                for raw, target in targets.items():
                    unit[before == raw] = target
                    moved[raw, target] = moved.get((raw, target), 0) + int(counts[raw])
                    changed = True
            if changed:
                self._cells.put(chunk, ids)
        return self._count([(raw, target, pages) for (raw, target), pages in moved.items()]) if moved else ()

    def relabel(self, indices: Iterable[int], canonical: NDArray[np.uint32]) -> None:
        """In chunks with these numbers, replace each raw id by `canonical[raw]`; ids beyond its end stay. O(cells).

        Pages mean the same before and after, and in between.
        """
        for index in indices:
            chunk = self._chunks.get(index)
            if chunk is None:
                continue
            ids = self._cells.ids(chunk)
            known = ids < len(canonical)
            targets = ids.copy()
            targets[known] = canonical[ids[known]]
            if not np.array_equal(targets, ids):
                counts = np.bincount(ids[targets != ids])
                self._cells.put(chunk, targets)
                moved: list[int] = counts.nonzero()[0].tolist()
                self._count([(raw, int(canonical[raw]), int(counts[raw])) for raw in moved])

    @property
    def map_bytes(self) -> int:
        """Bytes of the entries, and of the cells where there are some. O(chunks)."""
        return sum(ENTRY_BYTES + (0 if chunk.cells is None else chunk.cells.nbytes) for chunk in self._chunks.values())

    def snapshot(self) -> bytes:
        """Every cell as bytes, to compare. O(pages)."""
        return b"".join(
            index.to_bytes(8, "big") + self._cells.ids(self._chunks[index]).tobytes() for index in sorted(self._chunks)
        )

    def check(self) -> None:
        """Count again from the pages up; raise BrokenInvariant when that differs from the books. O(pages)."""
        for index, chunk in self._chunks.items():
            ids = self._cells.ids(chunk)
            if not 0 < len(ids) <= PAGES_PER_CHUNK or ids[-1] == ABSENT:
                raise BrokenInvariant(f"I1: chunk {index} is not cut after its last resident page: {ids}")
        recount = self.count(0, LAST_PAGE)
        if recount != self.pages_by_class:
            raise BrokenInvariant(f"I1: pages by class are {recount}, the books say {self.pages_by_class}")

    def units(self) -> Iterator[set[int]]:
        """The raw ids in each unit of accounting, absent pages left out. O(pages)."""
        for chunk in self._chunks.values():
            ids = self._cells.ids(chunk)
            for start in range(0, len(ids), self.unit_pages):
                yield set(ids[start : start + self.unit_pages].tolist()) - {ABSENT}

    def _parts(self, first_page: int, last_page: int) -> Iterator[tuple[int, Chunk, int, int]]:
        """The cells of a range, ascending: the chunk's index, the chunk, and which of its cells, start..stop-1."""
        wanted = range(first_page >> _SHIFT, (last_page >> _SHIFT) + 1)
        if len(wanted) <= len(self._chunks):
            indices = [index for index in wanted if index in self._chunks]
        else:
            indices = sorted(index for index in self._chunks if index in wanted)
        for index in indices:
            chunk, base = self._chunks[index], index << _SHIFT
            start, stop = max(first_page - base, 0), min(last_page - base + 1, chunk.pages)
            if start < stop:
                yield index, chunk, start, stop

    def _apply_to_chunk(
        self, index: int, chunk: Chunk, start: int, stop: int, step: Step, moved: dict[int, int]
    ) -> None:
        """Apply `step` to the pages start..stop-1 of a chunk, adding to `moved` (raw id -> pages) what it moves."""
        alike = _alike(chunk, start, stop)
        if alike is not None:
            if alike in step.fixed or (target := step.target(alike)) == alike:
                return
            self._put_alike(index, chunk, start, stop, target)
            moved[alike] = moved.get(alike, 0) + stop - start
            return
        ids = self._cells.ids(chunk, stop)
        part = ids[start:stop]
        counts = np.bincount(part)
        present: list[int] = counts.nonzero()[0].tolist()
        if step.fixed.issuperset(present):
            return
        targets = np.arange(len(counts), dtype=np.uint32)
        changed = [raw for raw in present if raw not in step.fixed and step.target(raw) != raw]
        if not changed:
            return
        for raw in changed:
            targets[raw] = step.target(raw)
            moved[raw] = moved.get(raw, 0) + int(counts[raw])
        part[:] = targets[part]
        self._cells.put(chunk, ids)
        if not chunk.pages:
            del self._chunks[index]

    def _put_alike(self, index: int, chunk: Chunk, start: int, stop: int, target: int) -> None:
        cells = chunk.cells
        whole = start == 0 and stop >= chunk.pages and target != ABSENT
        longer = cells is None and start == chunk.pages and target == chunk.raw
        if whole or longer:
            self._cells.put_uniform(chunk, target, stop)
        elif target != ABSENT and cells is not None and stop - start <= _FEW_PAGES and stop <= chunk.pages:
            for offset in range(start, stop):
                cells[offset] = target
        else:
            ids = self._cells.ids(chunk, stop)
            ids[start:stop] = target
            self._cells.put(chunk, ids)
            if not chunk.pages:
                del self._chunks[index]

    def _count(self, moves: Sequence[Move]) -> Sequence[Move]:
        by_class = self.pages_by_class
        for raw, target, pages in moves:
            if raw == ABSENT:
                self.births += pages
            elif by_class[raw] == pages:
                del by_class[raw]
            else:
                by_class[raw] -= pages
            if target != ABSENT:
                by_class[target] = by_class.get(target, 0) + pages
        return moves


def _alike(chunk: Chunk, start: int, stop: int) -> int | None:
    """The id that pages start..stop-1 all have, ABSENT where they are new; None when they differ or nobody looked."""
    if start >= chunk.pages:
        return ABSENT
    if stop > chunk.pages:
        return None
    cells = chunk.cells
    if cells is None:
        return chunk.raw
    raw = cells[start]
    if cells[stop - 1] == raw and cells[start:stop].tobytes() == cells[start : start + 1].tobytes() * (stop - start):
        return raw
    return None


def _matching(matches: NDArray[np.bool_], base: int) -> Iterator[PageRange]:
    """Where `matches` is true, as ranges of pages from `base` on."""
    edges = np.flatnonzero(np.diff(matches, prepend=False, append=False)) + base
    for begin, end in edges.reshape(-1, 2).tolist():
        yield begin, end - 1
