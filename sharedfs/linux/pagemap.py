"""Which pages of a mapping are present in a process's page tables and belong to the file.

PAGEMAP_SCAN (Linux >= 6.7) answers with ranges; older kernels are read entry by entry (fs/proc/task_mmu.c).
Pages of a private mapping that were written are the process's own copies and are left out in both ways. A shared one
has none: not to ask for the difference spares the kernel a look at each page itself, 0.7 ms for 256 MiB against 2.5.
"""

import ctypes
import fcntl
import os
import struct
from errno import EINVAL, ENOTTY

import numpy as np
from numpy.typing import NDArray

from sharedfs.common.units import PAGE_BYTES

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
# pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
# category_anyof_mask, return_mask
_SCAN_ARG = struct.Struct("<12Q")
_WALK_END_FIELD = 4
_PAGE_IS_FILE, _PAGE_IS_PRESENT = 1 << 2, 1 << 3
_REGIONS_PER_CALL = 4096

ENTRY_PRESENT, _ENTRY_FILE = np.uint64(1 << 63), np.uint64(1 << 61)
_ENTRIES_PER_READ = 1 << 18  # 2 MiB of pagemap are 1 GiB of memory

AddressRanges = NDArray[np.int64]
"""Ascending ranges, a row each: first address, and the one behind the last. There may be hundreds of thousands."""


_NONE: AddressRanges = np.empty((0, 2), np.int64)


class PagemapReader:
    """Reads page tables through /proc/PID/pagemap. Not for two threads at once: it has one result buffer."""

    def __init__(self, *, use_scan: bool = True) -> None:
        self._use_scan = use_scan
        self._regions: NDArray[np.uint64] = np.zeros((_REGIONS_PER_CALL, 3), dtype=np.uint64)
        self._vector = self._regions.ctypes.data_as(ctypes.c_void_p).value or 0

    def present(self, pagemap_fd: int, start: int, end: int, *, shared: bool) -> AddressRanges:
        """The file-backed present parts of `start`..`end` (addresses, end exclusive), in order.

        What is there may be several mappings; with `shared` each one of a file is shared.
        """
        if self._use_scan:
            try:
                return self._scan(pagemap_fd, start, end, _PAGE_IS_PRESENT | (0 if shared else _PAGE_IS_FILE))
            except OSError as error:
                if error.errno not in (ENOTTY, EINVAL):
                    raise
                self._use_scan = False  # a kernel before 6.7
        return self._read(pagemap_fd, start, end)

    def _scan(self, pagemap_fd: int, start: int, end: int, wanted: int) -> AddressRanges:
        found: list[AddressRanges] = []
        while start < end:
            argument = bytearray(
                _SCAN_ARG.pack(
                    _SCAN_ARG.size, 0, start, end, 0, self._vector, _REGIONS_PER_CALL, 0, 0, wanted, 0, _PAGE_IS_PRESENT
                )
            )
            count = fcntl.ioctl(pagemap_fd, _PAGEMAP_SCAN, argument)
            found.append(self._regions[:count, :2].astype(np.int64))
            start = _SCAN_ARG.unpack(argument)[_WALK_END_FIELD]
        return found[0] if len(found) == 1 else np.concatenate((_NONE, *found))

    @staticmethod
    def _read(pagemap_fd: int, start: int, end: int) -> AddressRanges:
        found = [_NONE]
        step = _ENTRIES_PER_READ * PAGE_BYTES
        for chunk_start in range(start, end, step):
            pages = (min(chunk_start + step, end) - chunk_start) // PAGE_BYTES
            raw = os.pread(pagemap_fd, pages * 8, chunk_start // PAGE_BYTES * 8)
            entries = np.frombuffer(raw, dtype="<u8")
            wanted = ENTRY_PRESENT | _ENTRY_FILE
            present = (entries & wanted) == wanted
            edges = np.flatnonzero(np.diff(present.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
            found.append(chunk_start + edges * PAGE_BYTES)
        return np.concatenate(found)
