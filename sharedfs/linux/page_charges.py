"""Which cgroup each resident page of a file is charged to, without changing that or anything else.

The file's resident pages (mincore) are mapped here, read only; their frame numbers come from /proc/self/pagemap, and
/proc/kpagecgroup has for each frame the inode number of the cgroup that is charged: for a page of a dying cgroup
that of the nearest ancestor which lives (page_cgroup_ino() in mm/memcontrol.c). Holes are not touched, swapped pages
stay where they are.
The mapping is marked MADV_RANDOM, for which the kernel does not count our looking as a use (vma_has_recency()).

Needs root: others see no frame numbers. Linux 5.14 for MADV_POPULATE_READ, which unlike a read of the mapping cannot
end in SIGBUS when the file shrinks.
"""

import ctypes
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from errno import EFAULT, EINVAL
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from sharedfs.common.errors import HostFault
from sharedfs.common.units import PAGE_BYTES
from sharedfs.linux.pagemap import ENTRY_PRESENT

_WINDOW_BYTES = 256 << 20  # mapped at a time: bounds the page tables that we take
_SEARCHED_BYTES = 2 << 30  # up to this a file is looked at from end to end, holes and all
_MADV_POPULATE_READ = 22
_FRAME_MASK = np.uint64((1 << 55) - 1)
_ENTRY_BYTES = 8
_SAME_READ_FRAMES = 64  # frames that lie closer than this are read at once: least time for files in pieces and whole

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class PageCharges:
    """Reads charges of files; holds the two files of /proc open. For one thread."""

    def __init__(self) -> None:
        try:
            self._kpagecgroup = os.open("/proc/kpagecgroup", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise HostFault(
                "there is no /proc/kpagecgroup: this kernel does not tell what is charged to whom"
            ) from None
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> "PageCharges":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._kpagecgroup)
        os.close(self._pagemap)

    def of(self, fd: int) -> Counter[int]:
        """Bytes of the file by the inode number of the live cgroup they count for (0: none). O(size)."""
        return self.of_ranges(fd, _worth_a_look(fd))

    def of_ranges(self, fd: int, ranges: Iterable[tuple[int, int]]) -> Counter[int]:
        """As `of`, of the pages in byte ranges (page-aligned start, end exclusive)."""
        charged: Counter[int] = Counter()
        for first, end in ranges:
            for start in range(first, end, _WINDOW_BYTES):
                found = self.of_part(fd, start, min(_WINDOW_BYTES, end - start))
                if found is None:
                    return charged
                inodes, pages = np.unique(found[1], return_counts=True)
                charged.update(
                    {int(inode): int(count) * PAGE_BYTES for inode, count in zip(inodes, pages, strict=True)}
                )
        return charged

    def of_part(self, fd: int, start: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Pages of a part of a file (bytes; page-aligned `start`), and the inode number of the cgroup of each.

        The pages that are there and not in swap, ascending. None where the file is shorter by now.
        """
        try:
            window = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
        except ValueError:
            return None
        with window:
            pages, frames = self._frames_of(window)
        groups = np.empty(len(frames), dtype=np.int64)
        order = np.argsort(frames)
        ascending = frames[order]
        for part in np.split(order, np.flatnonzero(np.diff(ascending) > _SAME_READ_FRAMES) + 1):
            if len(part):
                groups[part] = self._groups_of(frames[part])
        return pages + start // PAGE_BYTES, groups

    def _frames_of(self, window: mmap.mmap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which pages of a mapping are there, and in which frames they are."""
        view = np.frombuffer(window, dtype=np.uint8)
        address = view.ctypes.data
        del view  # or the window could not be closed
        window.madvise(mmap.MADV_RANDOM)
        resident = np.zeros(-(-len(window) // PAGE_BYTES), dtype=np.uint8)
        if _libc.mincore(address, len(window), resident.ctypes.data):
            number = ctypes.get_errno()
            raise OSError(number, f"mincore: {os.strerror(number)}")
        for first, end in _runs(resident & 1 != 0):
            _populate(window, first * PAGE_BYTES, (end - first) * PAGE_BYTES)
        raw = os.pread(self._pagemap, len(resident) * _ENTRY_BYTES, address // PAGE_BYTES * _ENTRY_BYTES)
        entries = np.frombuffer(raw, dtype="<u8")
        pages = np.flatnonzero(entries & ENTRY_PRESENT)
        frames = (entries[pages] & _FRAME_MASK).astype(np.int64)
        if len(frames) and not frames.any():
            raise HostFault("/proc/self/pagemap shows no frame numbers: CAP_SYS_ADMIN is missing")
        return pages, frames

    def _groups_of(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cgroups' inode numbers of frames that lie close together, in ascending order."""
        first, last = int(frames[0]), int(frames[-1])
        raw = os.pread(self._kpagecgroup, (last - first + 1) * _ENTRY_BYTES, first * _ENTRY_BYTES)
        read: NDArray[np.int64] = np.frombuffer(raw, dtype="<i8")[frames - first]
        return read


def frame_of(fd: int, page: int) -> int:
    """The number of the frame that a page of a file is in: another one when the kernel has moved it.

    0 for a page beyond the end. The file may shrink meanwhile.
    """
    try:
        window = mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ, offset=page * PAGE_BYTES)
    except ValueError:
        return 0
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with window:
            _populate(window, 0, PAGE_BYTES)
            place = np.frombuffer(window, dtype=np.uint8).ctypes.data // PAGE_BYTES * _ENTRY_BYTES
            return int(np.frombuffer(os.pread(pagemap, _ENTRY_BYTES, place), dtype="<u8")[0] & _FRAME_MASK)
    finally:
        os.close(pagemap)


def _worth_a_look(fd: int) -> Iterator[tuple[int, int]]:
    """The byte ranges (page-aligned start, end exclusive) in which a file may have pages.

    Of a file with room for exabytes only what was written: pages that were allocated and never written look like holes.
    """
    size_bytes = os.fstat(fd).st_size
    if size_bytes <= _SEARCHED_BYTES:
        yield 0, size_bytes
        return
    end = 0
    with suppress(OSError):  # ENXIO: no data from here on
        while True:
            first = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, first, os.SEEK_HOLE)
            yield first // PAGE_BYTES * PAGE_BYTES, end


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where `flags` are set: [first, end) of each run."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return ((int(first), int(end)) for first, end in edges.tolist())


def _populate(window: mmap.mmap, start: int, length: int) -> None:
    try:
        window.madvise(_MADV_POPULATE_READ, start, length)
    except OSError as error:
        if error.errno == EINVAL:
            raise HostFault("looking at pages without using them needs Linux 5.14 (MADV_POPULATE_READ)") from error
        if error.errno != EFAULT:  # the file shrank meanwhile: what is left of it is enough
            raise
