"""Which pages a file of tmpfs has, and which of them are in swap: cachestat(2), Linux >= 6.5.

Allocated pages that nobody has written yet count as well, which neither SEEK_DATA nor mincore(2) see. A page in swap
counts as evicted, also one that is just on its way back. Asking reads nothing in and moves nothing.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from struct import Struct

from sharedfs.common.units import PAGE_BYTES

_SYS_CACHESTAT = 451  # on every architecture (asm-generic/unistd.h)
_RANGE = Struct("<QQ")  # struct cachestat_range: offset, length
_COUNTS = Struct("<5Q")  # struct cachestat: cached, dirty, under writeback, evicted, recently evicted
_LAST_PAGE = (1 << 63) // PAGE_BYTES - 1  # of any file
_WINDOW_PAGES = 512
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


_Run = tuple[int, int]  # of pages: first, last


def can_be_asked() -> bool:
    """Whether this kernel has the call and lets us make it."""
    fd = os.memfd_create("sharedfs")
    try:
        return resident_pages(fd, 0, 0) == 0
    except OSError:
        return False
    finally:
        os.close(fd)


def resident_pages(fd: int, first_page: int, last_page: int) -> int:
    """How many pages of an inclusive range a file has, those in swap among them. O(pages there)."""
    return sum(_cached_and_swapped(fd, first_page, last_page))


def swapped_pages(fd: int, first_page: int, last_page: int) -> int:
    """How many pages of an inclusive range are in swap. O(pages there)."""
    return _cached_and_swapped(fd, first_page, last_page)[1]


def _cached_and_swapped(fd: int, first_page: int, last_page: int) -> tuple[int, int]:
    window = _RANGE.pack(first_page * PAGE_BYTES, (min(last_page, _LAST_PAGE) - first_page + 1) * PAGE_BYTES)
    counts = ctypes.create_string_buffer(_COUNTS.size)
    if _libc.syscall(_SYS_CACHESTAT, fd, window, counts, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cachestat: {os.strerror(number)}")
    cached, _, _, evicted, _ = _COUNTS.unpack(counts.raw)
    return int(cached), int(evicted)


def resident_runs(fd: int, first_page: int, last_page: int) -> list[_Run]:
    """The pages of an inclusive range that a file has, as inclusive runs in order.

    Looks at windows that double in size where they are full or empty, and halves them where they are neither.
    O(pages there), and for each run O(log pages) calls.
    """
    last_page = min(last_page, _LAST_PAGE)
    runs: list[_Run] = []
    left = resident_pages(fd, first_page, last_page)
    window_pages = _WINDOW_PAGES
    while left > 0 and first_page <= last_page:
        window_last = min(first_page + window_pages - 1, last_page)
        found = resident_pages(fd, first_page, window_last)
        _add(runs, _full(partial(resident_pages, fd), first_page, window_last, found))
        window_pages = 2 * window_pages if found in (0, window_last - first_page + 1) else _WINDOW_PAGES
        left -= found
        first_page = window_last + 1
    return runs


def swapped_runs(fd: int, pages: Iterable[_Run]) -> list[_Run]:
    """The parts of ascending page ranges that are in swap, merged. O(pages, and O(log pages) calls for each part)."""
    runs: list[_Run] = []
    for first, last in pages:
        _add(runs, _full(partial(swapped_pages, fd), first, last, swapped_pages(fd, first, last)))
    return runs


def _full(count: Callable[[int, int], int], first: int, last: int, found: int) -> Iterator[_Run]:
    """The parts of first..last, of which `count` found so many pages, that it finds all of."""
    if found == last - first + 1:
        yield first, last
    elif found > 0 and first < last:  # a file may change while we look
        middle = (first + last + 1) // 2
        below = count(first, middle - 1)
        yield from _full(count, first, middle - 1, below)
        yield from _full(count, middle, last, min(found - below, last - middle + 1))


def _add(runs: list[_Run], more: Iterable[_Run]) -> None:
    for first, last in more:
        if runs and runs[-1][1] + 1 == first:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
