"""The page maps of all files that have resident pages.

After a start, the map of a file that was in the storage is made when somebody asks for it: a pool with a hundred
thousand files has to answer before that many objects could be made.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from sharedfs.ledger.chunks import Cells
from sharedfs.ledger.page_map import PageMap


class PageMaps:
    """By file. `made` are those that somebody asked for: look there first."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self.made: dict[int, PageMap] = {}
        self._entries: Mapping[int, Sequence[int]] = {}
        self._waiting: dict[int, None] = {}
        self._units: dict[int, int] = {}

    def load(self, entries: Mapping[int, Sequence[int]], units: Mapping[int, int]) -> None:
        """What is in the storage: the entries of each file, and units of accounting of files. O(files)."""
        self._entries = entries
        self._waiting = dict.fromkeys(entries)
        self._units = {file: pages for file, pages in units.items() if pages > 1 and file in entries}

    def get(self, file: int) -> PageMap | None:
        """None for a file without pages. O(1), when it waits O(its entries and their cells)."""
        pages = self.made.get(file)
        if pages is None and file in self._waiting:
            pages = PageMap(self._cells, file, self._entries[file])
            pages.unit_pages = self._units.get(file, 1)
            self.made[file] = pages
            del self._waiting[file]
        return pages

    def __getitem__(self, file: int) -> PageMap:
        pages = self.get(file)
        if pages is None:
            raise KeyError(file)
        return pages

    def add(self, file: int) -> PageMap:
        """A file that has no page yet, and gets one now."""
        pages = self.made[file] = PageMap(self._cells, file)
        return pages

    def remove(self, file: int) -> None:
        """A file that has no page any more."""
        del self.made[file]
        self._units.pop(file, None)

    def set_unit(self, file: int, unit_pages: int) -> None:
        """A file that has pages gets this unit of accounting."""
        self[file].unit_pages = unit_pages
        if unit_pages > 1:
            self._units[file] = unit_pages
        else:
            self._units.pop(file, None)

    def make_some(self, files: int) -> bool:
        """Make up to so many maps that wait; whether others still do."""
        for file in list(islice(self._waiting, files)):
            self.get(file)
        return bool(self._waiting)

    def all(self) -> Iterable[tuple[int, PageMap]]:
        """Every file and its map. O(files), and as `get` for those that wait."""
        self.make_some(len(self._waiting))
        return self.made.items()

    @property
    def units(self) -> Mapping[int, int]:
        """The files whose unit of accounting is more than a page, with these. O(1)."""
        return self._units

    def __iter__(self) -> Iterator[int]:
        return iter([*self.made, *self._waiting])

    def __len__(self) -> int:
        return len(self.made) + len(self._waiting)
