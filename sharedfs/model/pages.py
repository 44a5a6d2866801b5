"""The pages of one file: four bytes a page that say which sharing class it is in.

A file is a table of chunks, as the kernel's page tables are, because files are sparse: one byte written at offset 2^62
must not cost more than its page. A chunk is an `array` of raw ids (see `sharing_table`), grown page by page and cut
after its last resident page; a chunk without one is not there. So a map takes 4 bytes a page of a dense file (and a
sixteenth of the last chunk and seven cells, to grow); of any file at most PAGES_PER_CHUNK * 4 bytes, one page, for each
resident page.

Why `array` and not ndarray: most operations are on one page or find all pages alike. One cell of an `array` is read
twice as fast as one of an ndarray, and a run is compared at the speed of memory. Runs that differ go through numpy,
which looks at the same bytes without a copy.

Every operation is a `Step` applied to a range (`apply`); `pages_by_class` moves with it, so questions about a file cost
its classes, never its pages.
"""

from array import array
from collections.abc import Iterator, Sequence
from sys import getsizeof

import numpy as np
from numpy.typing import NDArray

from sharedfs.errors import BrokenInvariant
from sharedfs.model.ranges import PageRange
from sharedfs.model.sharing_table import ABSENT
from sharedfs.model.steps import Step

_SHIFT = 10
PAGES_PER_CHUNK = 1 << _SHIFT
_MASK = PAGES_PER_CHUNK - 1

_ID_BYTES = 4
_CELL = next(code for code in "IL" if array(code).itemsize == _ID_BYTES)


Move = tuple[int, int, int]
"""(raw, target, pages): so many pages that had id `raw` now have canonical id `target`."""


class PageMap:
    """The raw id of each page of a file."""

    __slots__ = ("_chunks", "births", "pages_by_class")

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}
        self.pages_by_class: dict[int, int] = {}
        """Raw id -> resident pages that have it, without zeros."""
        self.births = 0
        """Pages that ever became resident: unchanged means that no page is new."""

    @property
    def resident_pages(self) -> int:
        """O(classes of this file)."""
        return sum(self.pages_by_class.values())

    @property
    def leading_pages(self) -> int:
        """How many pages are resident, when these are the first ones of the file without a hole; else 0. O(chunks)."""
        pages = self.resident_pages
        cells = sum(map(len, self._chunks.values()))
        # Without an absent cell, and each chunk but the last one full: then it depends on which chunks there are.
        dense = cells == pages and len(self._chunks) == -(-pages // PAGES_PER_CHUNK)
        return pages if dense and max(self._chunks, default=0) == len(self._chunks) - 1 else 0

    def fixed_by(self, step: Step) -> bool:
        """Whether `step` is known to leave every page of the file alone. O(classes of this file)."""
        return self.pages_by_class.keys() <= step.fixed

    def apply(self, first_page: int, last_page: int, step: Step) -> Sequence[Move]:
        """Put each page of an inclusive range where `step` says, and return what moved, by raw id.

        Pages that have no cell are absent and stay so. O(1) for one page, and when `step` is known to leave all classes
        of the file alone; else O(pages in the range that have a cell), by comparing memory where they are alike.
        """
        fixed = step.fixed
        if first_page == last_page:
            chunk = self._chunks.get(first_page >> _SHIFT)
            offset = first_page & _MASK
            if chunk is None or offset >= len(chunk):
                return ()
            raw = chunk[offset]
            if raw in fixed or (target := step.target(raw)) == raw:
                return ()
            chunk[offset] = target
            return self._count([(raw, target, 1)])
        if ABSENT in fixed and len(self.pages_by_class) <= last_page - first_page and self.fixed_by(step):
            return ()
        moved: dict[int, int] = {}
        for _, chunk, start, stop in self._cells(first_page, last_page):
            _apply_to_cells(chunk, start, stop, step, moved)
        return self._count([(raw, step.target(raw), pages) for raw, pages in moved.items()]) if moved else ()

    def charge(self, first_page: int, last_page: int, step: Step) -> Sequence[Move]:
        """As `apply`, with a cell for every page of the range first."""
        for index in range(first_page >> _SHIFT, (last_page >> _SHIFT) + 1):
            chunk = self._chunks.get(index)
            if chunk is None:
                chunk = self._chunks[index] = array(_CELL)
            missing = min(last_page - (index << _SHIFT) + 1, PAGES_PER_CHUNK) - len(chunk)
            if missing > 0:
                chunk.frombytes(bytes(missing * _ID_BYTES))
                if len(chunk) == PAGES_PER_CHUNK:  # it will not grow: a copy has no room to
                    self._chunks[index] = chunk[:]
        return self.apply(first_page, last_page, step)

    def uncharge(self, first_page: int, last_page: int, step: Step) -> Sequence[Move]:
        """As `apply` with a step to ABSENT, and give back the memory of cells that say no more than their absence."""
        moves = self.apply(first_page, last_page, step)
        if moves:
            for index in self._indices(first_page, last_page):
                chunk = self._chunks[index]
                resident_bytes = len(chunk.tobytes().rstrip(b"\0"))
                if resident_bytes:
                    del chunk[-(-resident_bytes // _ID_BYTES) :]
                else:
                    del self._chunks[index]
        return moves

    def resident_runs(self, first_page: int, last_page: int) -> Iterator[PageRange]:
        """The resident pages of an inclusive range as ascending ranges, which may adjoin. O(pages with a cell)."""
        for base, chunk, start, stop in self._cells(first_page, last_page):
            resident = _ids(chunk)[start:stop] != ABSENT
            if resident.all():
                yield base + start, base + stop - 1
            else:
                edges = np.flatnonzero(np.diff(resident, prepend=False, append=False)) + (base + start)
                for begin, end in edges.reshape(-1, 2).tolist():
                    yield begin, end - 1

    def relabel(self, canonical: NDArray[np.uint32]) -> None:
        """Replace each raw id by `canonical[raw]`. O(classes), and O(pages) when that changes any."""
        by_class: dict[int, int] = {}
        for raw, pages in self.pages_by_class.items():
            target = int(canonical[raw])
            by_class[target] = by_class.get(target, 0) + pages
        if by_class != self.pages_by_class:
            for chunk in self._chunks.values():
                ids = _ids(chunk)
                ids[:] = canonical[ids]
            self.pages_by_class = by_class

    @property
    def map_bytes(self) -> int:
        """Bytes of the cells, with what the arrays spare to grow. O(chunks)."""
        return sum(getsizeof(chunk) for chunk in self._chunks.values()) - len(self._chunks) * getsizeof(array(_CELL))

    @property
    def memory_bytes(self) -> int:
        """An estimate of everything this map takes. O(chunks)."""
        objects = getsizeof(self) + getsizeof(self._chunks) + getsizeof(self.pages_by_class)
        return self.map_bytes + len(self._chunks) * getsizeof(array(_CELL)) + objects

    def snapshot(self) -> bytes:
        """Every cell as bytes, to compare. O(pages)."""
        return b"".join(index.to_bytes(8, "big") + self._chunks[index].tobytes() for index in sorted(self._chunks))

    def check(self) -> None:
        """Count again from the pages up; raise BrokenInvariant when that differs from the books. O(pages)."""
        recount: dict[int, int] = {}
        for index, chunk in self._chunks.items():
            if not 0 < len(chunk) <= PAGES_PER_CHUNK or chunk[-1] == ABSENT:
                raise BrokenInvariant(f"I1: chunk {index} is not cut after its last resident page: {chunk}")
            counts = np.bincount(_ids(chunk))
            for raw in counts.nonzero()[0].tolist():
                recount[raw] = recount.get(raw, 0) + int(counts[raw])
        recount.pop(ABSENT, None)
        if recount != self.pages_by_class:
            raise BrokenInvariant(f"I1: pages by class are {recount}, the books say {self.pages_by_class}")

    def _indices(self, first_page: int, last_page: int) -> list[int]:
        """Chunks that are there and reach into a range, ascending. O(the fewer of those there and those in range)."""
        wanted = range(first_page >> _SHIFT, (last_page >> _SHIFT) + 1)
        if len(wanted) <= len(self._chunks):
            return [index for index in wanted if index in self._chunks]
        return sorted(index for index in self._chunks if index in wanted)

    def _cells(self, first_page: int, last_page: int) -> Iterator[tuple[int, "array[int]", int, int]]:
        """The cells of a range, ascending: the chunk's first page, the chunk, and which of its cells, start..stop-1."""
        for index in self._indices(first_page, last_page):
            chunk, base = self._chunks[index], index << _SHIFT
            start, stop = max(first_page - base, 0), min(last_page - base + 1, len(chunk))
            if start < stop:
                yield base, chunk, start, stop

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


def _ids(chunk: "array[int]") -> NDArray[np.uint32]:
    """The same memory as an ndarray. The chunk cannot change its length while this is alive."""
    return np.frombuffer(chunk, np.uint32)


def _apply_to_cells(chunk: "array[int]", start: int, stop: int, step: Step, moved: dict[int, int]) -> None:
    """Apply `step` to the cells start..stop-1, adding to `moved` (raw id -> pages) what it moves."""
    cells = chunk[start:stop]
    pages = stop - start
    raw = cells[0]
    if cells[-1] == raw and cells.tobytes() == cells[:1].tobytes() * pages:
        if raw not in step.fixed and (target := step.target(raw)) != raw:
            chunk[start:stop] = array(_CELL, (target,)) * pages
            moved[raw] = moved.get(raw, 0) + pages
        return
    ids = _ids(chunk)[start:stop]
    counts = np.bincount(ids)
    present: list[int] = counts.nonzero()[0].tolist()
    if step.fixed.issuperset(present):
        return
    targets = np.arange(len(counts), dtype=np.uint32)
    for raw in present:
        target = step.target(raw)
        if target != raw:
            targets[raw] = target
            moved[raw] = moved.get(raw, 0) + int(counts[raw])
    ids[:] = targets[ids]
