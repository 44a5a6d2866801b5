"""Page groups: the pages of a trace, as far as it tells them apart.

No event of the trace splits a group, so all its pages always have the same fate, and one number stands for them: a
model of 50 GB that everybody maps as a whole is one group. A first pass over the trace collects where ranges begin
and end; there are as many groups as such places, however many events there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.lab.events import PAGE_EVENTS, Event, Events
from controller.policies.page_state import Kind
from sharedfs.api.types import LAST_TRACE_PAGE
from sharedfs.common.errors import CallerMistake

_FILE_SHIFT = 41  # one bit more than a page number has: the page after the last one


@dataclass(frozen=True, slots=True)
class Groups:
    """`pages` and `file` of each group; `kinds` by file. Groups of a file are in the order of their pages."""

    _edges: NDArray[np.int64]
    pages: NDArray[np.int64]
    file: NDArray[np.int32]
    kinds: tuple[Kind, ...]

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def first_pages(self) -> NDArray[np.int64]:
        return self._edges & ((1 << _FILE_SHIFT) - 1)

    def ranges(self, events: Events) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each event the first of its groups, and the one after the last. Meaningless for events of no pages."""
        base = events.file.astype(np.int64) << _FILE_SHIFT
        first = np.searchsorted(self._edges, base + events.first_page)
        inside = np.minimum(first, len(self) - 1)
        single = events.last_page - events.first_page + 1 == self.pages[inside]
        stop = first + 1
        several = np.flatnonzero(~single)
        stop[several] = np.searchsorted(self._edges, (base + events.last_page + 1)[several])
        return first, stop


def find_groups(batches: Iterable[Events]) -> Groups:
    """The groups of all `batches`. O(events log groups) time, O(groups) memory. Raises CallerMistake."""
    edges = np.zeros(1, dtype=np.int64)  # page 0 of file 0, so that there is one
    kinds: dict[int, Kind] = {}
    for events in batches:
        of_pages = events.event < PAGE_EVENTS
        if (events.first_page[of_pages] < 0).any() or (events.last_page[of_pages] > LAST_TRACE_PAGE).any():
            raise CallerMistake("the trace has a page number that no file has")
        base = events.file[of_pages].astype(np.int64) << _FILE_SHIFT
        seen = np.concatenate((base + events.first_page[of_pages], base + events.last_page[of_pages] + 1))
        edges = np.union1d(edges, np.unique(seen))
        for row in np.flatnonzero(events.event == Event.FILE).tolist():
            kinds[int(events.file[row])] = Kind(int(events.value[row]))
    file = (edges >> _FILE_SHIFT).astype(np.int32)
    pages = np.diff(edges, append=edges[-1:])
    pages[np.flatnonzero(np.diff(file))] = 0  # from a file's last edge on there is no group
    files = int(file[-1]) + 1
    return Groups(edges, pages, file, tuple(kinds.get(number, Kind.SHMEM) for number in range(files)))
