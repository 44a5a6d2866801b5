"""Mapped pages that page tables do not show any more because the kernel moved them: their mappers stay their users.

Moving a page takes it out of all page tables, and a mapping scan would say that everybody has unmapped it. So what a
process had in its page tables before is kept here until it unmaps it, or page tables show it again. Pure.
"""

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange, common, gaps, merged

Process = TypeVar("Process")


class KeptMappings(Generic[Process]):
    """By file and process; a process is whatever names it for good. Ranges are inclusive, ascending and apart."""

    def __init__(self) -> None:
        self._pages: dict[tuple[int, Process], list[PageRange]] = {}
        self._kept_at: dict[int, int] = {}
        self.sequence = 0
        """Rises with each `keep`."""

    def __contains__(self, key: tuple[int, Process]) -> bool:
        """Whether anything is kept of a file and a process."""
        return key in self._pages

    def keep(self, file: int, process: Process, pages: Sequence[PageRange]) -> None:
        """`process` maps these pages, which are about to be moved. O(pages kept of it)."""
        self.sequence += 1
        if pages:
            key = file, process
            self._pages[key] = merged([*self._pages.get(key, ()), *pages])
            self._kept_at[file] = self.sequence

    def mapped_still(
        self, file: int, process: Process, mapped: Sequence[PageRange], present: Sequence[PageRange], since: int
    ) -> list[PageRange]:
        """What is kept of the pages that a process maps, as a look at it found when `sequence` was `since`.

        What it does not map is forgotten, and so is what its page tables show (`present`) again: they tell from now on.
        """
        kept = self._pages.get((file, process))
        if kept is None:
            return []
        held = common(kept, mapped)
        if self._kept_at[file] <= since:
            self._set(file, process, common(held, gaps(present)))
        return held

    def uncharge(self, file: int, first_page: int, last_page: int = LAST_PAGE) -> None:
        """The pages are gone. O(1) where nothing of the file is kept."""
        if file in self._kept_at:
            rest = list(gaps([(first_page, last_page)]))
            for known, process in [key for key in self._pages if key[0] == file]:
                self._set(known, process, common(self._pages[known, process], rest))

    def kept(self) -> set[tuple[int, Process]]:
        """The files and processes of which anything is kept."""
        return set(self._pages)

    def forget(self, gone: Collection[tuple[int, Process]]) -> None:
        """These processes do not map these files any more."""
        for file, process in gone:
            self._set(file, process, [])

    def _set(self, file: int, process: Process, pages: list[PageRange]) -> None:
        if pages:
            self._pages[file, process] = pages
        elif self._pages.pop((file, process), None) is not None and all(known != file for known, _ in self._pages):
            self._kept_at.pop(file, None)
