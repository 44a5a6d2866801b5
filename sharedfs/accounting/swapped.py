"""Which pages are in swap, as the last look found it, and whose they are."""

from sharedfs.accounting.core import Core
from sharedfs.ledger.page_ranges import PageRange
from sharedfs.ledger.sharing_class import SharingClass


class SwappedPages:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._swapped: dict[int, list[PageRange]] = {}
        self.looks = 0
        """Rises when other pages are in swap than at the look before."""

    def put(self, swapped: dict[int, list[PageRange]]) -> None:
        """Which pages (inclusive ranges, apart) of which files are in swap, as the last look found it."""
        with self._core.lock:
            if self._swapped != swapped:
                self._swapped = swapped
                self.looks += 1

    @property
    def bytes(self) -> int:
        """All that is in swap."""
        with self._core.lock:
            runs = [run for runs in self._swapped.values() for run in runs]
        return sum(last - first + 1 for first, last in runs) * self._core.page_bytes

    def drop(self, inode: int) -> None:
        """The file is gone. Call with the lock held."""
        self._swapped.pop(inode, None)

    def by_class(self, inode: int | None = None) -> dict[SharingClass, int]:
        """The bytes in swap of each class, of one file or all. In pieces: a page counts as it is when its piece is."""
        with self._core.lock:
            swapped = list(self._swapped.items()) if inode is None else [(inode, self._swapped.get(inode, []))]
        found: dict[SharingClass, int] = {}
        for known, runs in swapped:
            for part in self._core.in_pieces(runs):
                for held, held_bytes in self._core.ledger.holdings_in(known, part).items():
                    found[held] = found.get(held, 0) + held_bytes
        return found
