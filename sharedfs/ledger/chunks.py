"""Where page maps are kept: a table of chunks, and their cells, in memory that may outlive us.

An entry of the table says of one chunk: the file, the chunk's index in it, and its *state*, one word: how many pages it
has cells for, and either the id that all of them have (most chunks: then there are no cells) or the slot with a cell
for each. Slots are short or long, for small mixed files are many.

We may be killed between any two stores. So a chunk changes in one of two ways only: one cell is stored, or its state
is. New cells are written to a slot that no state names, and the state then switches to it; what was not switched
to is free again for whoever opens the storage next. An id is four bytes, a state eight, each stored at once.

A zero state is a free entry. Cells after a chunk's last page are zero but for one that was being added.
"""

from collections import Counter
from collections.abc import Iterable
from sys import getsizeof
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.storage import Region

PAGES_PER_CHUNK = 1024
PAGES_PER_SHORT_SLOT = 64

Ids = NDArray[np.uint32]

_ID_BYTES = 4
_ENTRY_WORDS = 3  # file, index, state
ENTRY_BYTES = 8 * _ENTRY_WORDS
_FREE = 0
_UNIFORM, _SHORT, _LONG = 1, 2, 3
_PAGES_SHIFT, _VALUE_SHIFT = 8, 32
_PAGES_MASK = (1 << (_VALUE_SHIFT - _PAGES_SHIFT)) - 1
_KIND_MASK = (1 << _PAGES_SHIFT) - 1
_CELLS_AT_ONCE = 1 << 18  # while they are counted: a MiB, which stays in the processor's cache


class Chunk:
    """Up to PAGES_PER_CHUNK pages of a file, the last one resident. `cells` is None where all of them have id `raw`."""

    __slots__ = ("cells", "entry", "kind", "pages", "raw", "slot")

    def __init__(self, entry: int) -> None:
        self.entry = entry
        self.kind = _UNIFORM
        self.pages = 0
        self.raw = 0
        self.slot = 0
        self.cells: memoryview[int] | None = None


class _Slots:
    """Arrays of `size` cells in one region."""

    def __init__(self, region: Region, size: int) -> None:
        self.size = size
        self.region = region
        self.bytes_each = size * _ID_BYTES
        self.cells = region.view.cast("I")
        self.ids: Ids = np.frombuffer(region.view, np.uint32).reshape(-1, size)
        self.count = 0  # slots that were ever used
        self._free: list[int] = []

    def take(self) -> int:
        if self._free:
            return self._free.pop()
        self.region.back((self.count + 1) * self.bytes_each)
        self.count += 1
        return self.count - 1

    def give(self, slot: int) -> None:
        self._free.append(slot)

    def load(self, used: NDArray[np.int64], pages: NDArray[np.int64], totals: Counter[int]) -> None:
        """After a start: `used` slots have so many `pages`, to be added to `totals`; other slots are free."""
        self.count = int(used.max(initial=-1)) + 1
        free = np.ones(self.count, dtype=bool)
        free[used] = False
        self._free = np.flatnonzero(free)[::-1].tolist()
        rows = _CELLS_AT_ONCE // self.size
        for start in range(0, len(used), rows):
            chosen = used[start : start + rows]
            ids = self.ids[chosen]
            stale = (ids != 0) & (np.arange(self.size) >= pages[start : start + rows, np.newaxis])
            if stale.any():  # a cell that was being added, perhaps far behind the last page
                ids[stale] = 0
                self.ids[chosen] = ids
            _add(totals, np.bincount(ids.ravel()))

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    @property
    def memory_bytes(self) -> int:
        return self.count * self.bytes_each + getsizeof(self._free)


class Cells:
    """The chunks of all files. Every change is kept when the method returns."""

    def __init__(self, entries: Region, short: Region, long: Region) -> None:
        self._region = entries
        self._entries = entries.view[: len(entries.view) // ENTRY_BYTES * ENTRY_BYTES].cast("Q")
        self._entry_count = 0
        self._free_entries: list[int] = []
        self._slots = {_SHORT: _Slots(short, PAGES_PER_SHORT_SLOT), _LONG: _Slots(long, PAGES_PER_CHUNK)}

    def load(self) -> tuple[dict[int, list[int]], dict[int, int]]:
        """The files that have chunks, with the entries of these; and the pages of all by raw id. To be called first.

        O(entries and cells), in numpy; `chunk` makes an object of one of the entries.
        """
        self._entry_count = self._region.backed_bytes // ENTRY_BYTES
        states = self._table()[:, 2]
        self._free_entries = np.flatnonzero(states == _FREE)[::-1].tolist()
        used = np.flatnonzero(states)
        kinds, pages, values = _unpack(states[used])
        if len(used) and kinds.max() > _LONG:
            raise BrokenInvariant(f"I7: chunks of kinds {np.unique(kinds).tolist()} in the state of the books")
        totals: Counter[int] = Counter()
        uniform = kinds == _UNIFORM
        _add(totals, np.bincount(values[uniform].astype(np.int64), weights=pages[uniform]))
        for kind, slots in self._slots.items():
            chosen = kinds == kind
            slots.load(values[chosen].astype(np.int64), pages[chosen].astype(np.int64), totals)
        files: dict[int, list[int]] = {}
        for file, entry in zip(self._table()[used, 0].tolist(), used.tolist(), strict=True):
            files.setdefault(file, []).append(entry)
        return files, totals

    def chunk(self, entry: int) -> tuple[int, Chunk]:
        """Index and chunk of an entry that was loaded."""
        _, index, state = self._entries[entry * _ENTRY_WORDS : (entry + 1) * _ENTRY_WORDS]
        chunk = Chunk(entry)
        chunk.pages = state >> _PAGES_SHIFT & _PAGES_MASK
        kind, value = state & _KIND_MASK, state >> _VALUE_SHIFT
        if kind == _UNIFORM:
            chunk.raw = value
        else:
            self._attach(chunk, kind, value)
        return index, chunk

    def _table(self) -> NDArray[np.uint64]:
        table = np.frombuffer(self._entries, np.uint64, self._entry_count * _ENTRY_WORDS)
        return table.reshape(-1, _ENTRY_WORDS)

    def new(self, file: int, index: int) -> Chunk:
        """A chunk without a page, which is kept from its first page on."""
        if self._free_entries:
            entry = self._free_entries.pop()
        else:
            entry = self._entry_count
            self._region.back((entry + 1) * ENTRY_BYTES)
            self._entry_count += 1
        place = entry * _ENTRY_WORDS
        self._entries[place] = file
        self._entries[place + 1] = index
        return Chunk(entry)

    def put(self, chunk: Chunk, ids: Ids) -> None:
        """Give a chunk these cells, less the absent ones at the end. Without one left its entry is free."""
        pages = len(ids)
        if not ids[-1]:
            resident = ids.nonzero()[0]
            pages = int(resident[-1]) + 1 if len(resident) else 0
            ids = ids[:pages]
        if not pages:
            self.free(chunk)
        elif ids[0] == ids[-1] and (ids == ids[0]).all():
            self.put_uniform(chunk, int(ids[0]), pages)
        else:
            kind = _SHORT if pages <= PAGES_PER_SHORT_SLOT else _LONG
            slots = self._slots[kind]
            slot = slots.take()
            row = slots.ids[slot]
            row[:pages] = ids
            row[pages:] = 0
            self._publish(chunk, kind, pages, slot)
            self._release(chunk)
            self._attach(chunk, kind, slot)
            chunk.pages, chunk.raw = pages, 0

    def put_uniform(self, chunk: Chunk, raw: int, pages: int) -> None:
        """Give a chunk `pages` cells that all are `raw`."""
        self._publish(chunk, _UNIFORM, pages, raw)
        self._release(chunk)
        chunk.pages, chunk.raw = pages, raw

    def put_one(self, chunk: Chunk, offset: int, raw: int) -> None:
        """Give one page that has a cell the id `raw`, which is not that of an absent one."""
        if chunk.cells is not None:
            chunk.cells[offset] = raw
        elif chunk.pages == 1:
            self.put_uniform(chunk, raw, 1)
        else:
            ids = self.ids(chunk)
            ids[offset] = raw
            self.put(chunk, ids)

    def append(self, chunk: Chunk, offset: int, raw: int) -> None:
        """Give a page beyond the last one a cell."""
        cells = chunk.cells
        if cells is None:
            if (offset == chunk.pages and raw == chunk.raw) or not (offset or chunk.pages):
                self.put_uniform(chunk, raw, offset + 1)
                return
        elif offset < len(cells):
            cells[offset] = raw
            self._publish(chunk, chunk.kind, offset + 1, chunk.slot)
            chunk.pages = offset + 1
            return
        ids = self.ids(chunk, offset + 1)
        ids[offset] = raw
        self.put(chunk, ids)

    def free(self, chunk: Chunk) -> None:
        """The chunk has no page any more."""
        self._entries[chunk.entry * _ENTRY_WORDS + 2] = _FREE
        self._free_entries.append(chunk.entry)
        self._release(chunk)
        chunk.pages = 0

    def ids(self, chunk: Chunk, pages: int = 0) -> Ids:
        """A copy of the cells, with absent ones to make it `pages`."""
        ids = np.zeros(max(pages, chunk.pages), np.uint32)
        ids[: chunk.pages] = chunk.raw if chunk.cells is None else self.mixed_ids(chunk)
        return ids

    def mixed_ids(self, chunk: Chunk) -> Ids:
        """The cells themselves, of a chunk that has some. Not to be written to."""
        return self._slots[chunk.kind].ids[chunk.slot, : chunk.pages]

    def count(self, chunks: Iterable[Chunk]) -> dict[int, int]:
        """Pages by raw id. O(chunks and their cells)."""
        counts: Counter[int] = Counter()
        for chunk in chunks:
            if chunk.cells is None:
                counts[chunk.raw] += chunk.pages
            else:
                _add(counts, np.bincount(self.mixed_ids(chunk)))
        return dict(counts)

    @property
    def chunks(self) -> int:
        """Those that have pages, and those that are about to. O(1)."""
        return self._entry_count - len(self._free_entries)

    @property
    def used_bytes(self) -> int:
        """The entries of chunks, and the cells of those that have some. O(1)."""
        return self.chunks * ENTRY_BYTES + sum(slots.used * slots.bytes_each for slots in self._slots.values())

    @property
    def memory_bytes(self) -> int:
        """What the storage takes, used or not. Slots that are free are used again, and not given back. O(1)."""
        slots_bytes = sum(slots.memory_bytes for slots in self._slots.values())
        return self._entry_count * ENTRY_BYTES + getsizeof(self._free_entries) + slots_bytes

    def _publish(self, chunk: Chunk, kind: int, pages: int, value: int) -> None:
        self._entries[chunk.entry * _ENTRY_WORDS + 2] = value << _VALUE_SHIFT | pages << _PAGES_SHIFT | kind

    def _attach(self, chunk: Chunk, kind: int, slot: int) -> None:
        slots = self._slots[kind]
        chunk.kind, chunk.slot = kind, slot
        chunk.cells = slots.cells[slot * slots.size : (slot + 1) * slots.size]

    def _release(self, chunk: Chunk) -> None:
        """The state names no slot any more, or another one."""
        if chunk.cells is not None:
            self._slots[chunk.kind].give(chunk.slot)
            chunk.cells = None
            chunk.kind = _UNIFORM


def _unpack(states: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Kinds, pages and values of states."""
    kinds = states & np.uint64(_KIND_MASK)
    pages = states >> np.uint64(_PAGES_SHIFT) & np.uint64(_PAGES_MASK)
    return kinds, pages, states >> np.uint64(_VALUE_SHIFT)


def _add(totals: Counter[int], counts: NDArray[Any]) -> None:
    """Add what `bincount` counted, absent pages left out."""
    for raw in counts.nonzero()[0].tolist():
        if raw:
            totals[raw] += int(counts[raw])
