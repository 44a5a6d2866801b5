"""Which pages of a tmpfs file are in swap: cachestat(2), Linux >= 6.5. It reads nothing in and moves nothing.

Of a file of tmpfs it counts a page in swap as evicted, also one that is just on its way back.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from struct import Struct

from sharedfs.kernel.pagemap import PAGE_BYTES

_SYS_CACHESTAT = 451  # on every architecture (asm-generic/unistd.h)
_RANGE = Struct("<QQ")  # struct cachestat_range: offset, length
_COUNTS = Struct("<5Q")  # struct cachestat: cached, dirty, under writeback, evicted, recently evicted
_EVICTED = 3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PageRange = tuple[int, int]


def swapped_pages(fd: int, first_page: int, last_page: int) -> int:
    """How many pages of an inclusive range are in swap. O(pages there)."""
    window = _RANGE.pack(first_page * PAGE_BYTES, (last_page - first_page + 1) * PAGE_BYTES)
    counts = ctypes.create_string_buffer(_COUNTS.size)
    if _libc.syscall(_SYS_CACHESTAT, fd, window, counts, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cachestat: {os.strerror(number)}")
    return int(_COUNTS.unpack(counts.raw)[_EVICTED])


def swapped_runs(fd: int, pages: Iterable[PageRange]) -> list[PageRange]:
    """The parts of ascending page ranges that are in swap, merged. O(pages, and O(log pages) calls for each part)."""
    runs: list[PageRange] = []
    for first, last in pages:
        for part_first, part_last in _full(fd, first, last, swapped_pages(fd, first, last)):
            if runs and runs[-1][1] + 1 == part_first:
                runs[-1] = (runs[-1][0], part_last)
            else:
                runs.append((part_first, part_last))
    return runs


def _full(fd: int, first: int, last: int, found: int) -> Iterator[PageRange]:
    """The parts of first..last, of which `found` pages are in swap, that are so entirely."""
    if found == last - first + 1:
        yield first, last
    elif found > 0 and first < last:  # they may come back while we look
        middle = (first + last + 1) // 2
        below = swapped_pages(fd, first, middle - 1)
        yield from _full(fd, first, middle - 1, below)
        yield from _full(fd, middle, last, min(found - below, last - middle + 1))
