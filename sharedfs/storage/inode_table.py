"""What must be known of an inode when the daemon comes back: a generation, its maker, and two words while the kernel
knows it.

The generation makes a file handle of tmpfs out of the number that the kernel (or an NFS client, by the kernel) has. It
and the maker, the tenant that the inode's memory is billed to, stay until the inode is gone, four bytes each; the words
(counts of look-ups and opens, see `Node`) are sixteen bytes more for as long as one of them is not zero. tmpfs numbers
inodes one by one, so these are arrays by inode number in files of the state, mapped a window at a time; a page of them
in which nothing is left is given back.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from errno import ENXIO, ESTALE
from struct import Struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sharedfs.common.errors import HostFault
from sharedfs.linux import syscalls
from sharedfs.pool.schema import StateFile
from sharedfs.storage.state_files import StateFiles

# struct file_handle of tmpfs: handle_bytes, handle_type; generation, inode number
_HANDLE = Struct("<IiIQ")
_HANDLE_BYTES, _HANDLE_TYPE = 12, 1
_WINDOW_INODES = 1 << 18
_PIECE_BYTES = 1 << 20
_NOTHING = bytes(mmap.PAGESIZE)
_UNUSED = 0  # of a generation; one inode in four billion has it and is not found again once the kernel forgot it


class _Array:
    """Fixed-size numbers by inode number, in a sparse file of the state."""

    def __init__(self, state: StateFiles, name: str, item_format: Literal["I", "Q"], items_per_inode: int) -> None:
        self._fd = state.open(name)
        self._format: Literal["I", "Q"] = item_format
        self._inode_bytes = items_per_inode * Struct(item_format).size
        self._windows: dict[int, tuple[mmap.mmap, memoryview]] = {}
        self.end = os.fstat(self._fd).st_size // self._inode_bytes
        """No inode from this number on has items."""
        self._newest_page = 0  # gets entries all the time: to give it back would be in vain

    def window(self, number: int) -> memoryview:
        """The items of one window of inodes, mapped where it was not."""
        found = self._windows.get(number)
        if found is None:
            window_bytes = _WINDOW_INODES * self._inode_bytes
            if number * _WINDOW_INODES >= self.end:
                os.ftruncate(self._fd, (number + 1) * window_bytes)
                self.end = (number + 1) * _WINDOW_INODES
            mapped = mmap.mmap(self._fd, window_bytes, offset=number * window_bytes)
            found = self._windows[number] = mapped, memoryview(mapped).cast(self._format)
        return found[1]

    def is_mapped(self, inode: int) -> bool:
        return inode // _WINDOW_INODES in self._windows

    def added(self, inode: int) -> None:
        number = inode // _WINDOW_INODES
        if inode % _WINDOW_INODES > _WINDOW_INODES // 2 and number + 1 not in self._windows:
            # A mapping takes a descriptor. When the next inode needs it, it is too late to say that there is none.
            with suppress(OSError):
                self.window(number + 1)
        self._newest_page = max(self._newest_page, inode * self._inode_bytes // mmap.PAGESIZE)

    def cleared(self, inode: int) -> None:
        """The inode's items are zero: give their page back if all of it is."""
        page = inode * self._inode_bytes // mmap.PAGESIZE
        mapped, _ = self._windows[inode // _WINDOW_INODES]
        start = inode % _WINDOW_INODES * self._inode_bytes & -mmap.PAGESIZE
        if page < self._newest_page and mapped[start : start + mmap.PAGESIZE] == _NOTHING:
            syscalls.punch_hole(self._fd, page * mmap.PAGESIZE, mmap.PAGESIZE)

    def pieces(self) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """The items where there are any, from which inode on. O(inodes): for the start."""
        end = 0
        while (start := self._next_data(end)) is not None:
            end = os.lseek(self._fd, start, os.SEEK_HOLE)
            for piece in range(start, end, _PIECE_BYTES):
                first = piece // self._inode_bytes
                yield first, self.items(first, min(_PIECE_BYTES, end - piece) // self._inode_bytes)

    def items(self, first: int, inodes: int) -> NDArray[np.uint32]:
        """Of so many inodes, as they are."""
        wanted_bytes = inodes * self._inode_bytes
        found = os.pread(self._fd, wanted_bytes, first * self._inode_bytes)
        return np.frombuffer(found.ljust(wanted_bytes, b"\0"), np.uint32)

    def _next_data(self, offset: int) -> int | None:
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != ENXIO:  # there is no more
                raise
            return None

    def close(self) -> None:
        for mapped, items in self._windows.values():
            items.release()
            mapped.close()
        os.close(self._fd)


class NodeTable:
    """Generations and words by inode number. Every store is one that a kill leaves done or undone."""

    def __init__(self, state: StateFiles) -> None:
        self._generations = _Array(state, StateFile.GENERATIONS, "I", 1)
        self._words = _Array(state, StateFile.NODES, "Q", 2)
        self._makers = _Array(state, StateFile.MAKERS, "I", 1)
        self.made_by: dict[int, int] = {}
        """How many inodes there are by the number of the tenant that made them; of others it is not known."""
        self.makings = 0
        """Rises with each change of `made_by`."""
        self._count_makers()

    def remember(self, handle: bytes) -> int:
        """Keep the generation in a file handle of tmpfs; the inode's number. HostFault for a handle of another kind."""
        if len(handle) != _HANDLE.size or _HANDLE.unpack_from(handle)[:2] != (_HANDLE_BYTES, _HANDLE_TYPE):
            raise HostFault(f"a file handle of tmpfs is not as we know it: {handle.hex()}")
        _, _, generation, inode = _HANDLE.unpack(handle)
        window = self._generations.window(inode // _WINDOW_INODES)
        if window[inode % _WINDOW_INODES] != generation:
            window[inode % _WINDOW_INODES] = generation
            self._generations.added(inode)
        return int(inode)

    def handle(self, inode: int) -> bytes:
        """The file handle of a remembered inode. ESTALE when it is none."""
        generation = _UNUSED
        if (
            inode < self._generations.end
        ):  # the number may be anything: it comes from whoever kept a handle of the mount
            generation = self._generations.window(inode // _WINDOW_INODES)[inode % _WINDOW_INODES]
        if generation == _UNUSED and not any(self.words(inode)):
            raise OSError(ESTALE, os.strerror(ESTALE))
        return _HANDLE.pack(_HANDLE_BYTES, _HANDLE_TYPE, generation, inode)

    def words(self, inode: int) -> tuple[int, int]:
        if inode >= self._words.end:
            return 0, 0
        window, place = self._words.window(inode // _WINDOW_INODES), 2 * (inode % _WINDOW_INODES)
        return window[place], window[place + 1]

    def save(self, inode: int, first: int, second: int) -> None:
        window, place = self._words.window(inode // _WINDOW_INODES), 2 * (inode % _WINDOW_INODES)
        had = window[place]
        window[place] = first
        window[place + 1] = second
        if not (first or second):
            self._words.cleared(inode)
        elif not had:
            self._words.added(inode)

    def _count_makers(self) -> None:
        """An earlier version forgets inodes and not their makers: without a generation there is no such inode."""
        for first, makers in self._makers.pieces():
            for number in range(first // _WINDOW_INODES, (first + len(makers) - 1) // _WINDOW_INODES + 1):
                self._makers.window(number)  # which takes a descriptor, of which there may be none later
            is_there = self._generations.items(first, len(makers)) != _UNUSED
            numbers, counts = np.unique(makers[is_there & (makers != 0)], return_counts=True)
            for maker, inodes in zip(numbers.tolist(), counts.tolist(), strict=True):
                self.made_by[maker] = self.made_by.get(maker, 0) + inodes
            for place in np.flatnonzero(~is_there & (makers != 0)).tolist():
                self._makers.window((first + place) // _WINDOW_INODES)[(first + place) % _WINDOW_INODES] = 0

    def made(self, inode: int, maker: int) -> None:
        """A tenant has made an inode."""
        window, place = self._makers.window(inode // _WINDOW_INODES), inode % _WINDOW_INODES
        if window[place]:
            self._unmade(inode)
        window[place] = maker
        self._makers.added(inode)
        self.made_by[maker] = self.made_by.get(maker, 0) + 1
        self.makings += 1

    def _unmade(self, inode: int) -> None:
        if not self._makers.is_mapped(inode):
            return  # it has none
        window, place = self._makers.window(inode // _WINDOW_INODES), inode % _WINDOW_INODES
        maker = window[place]
        if maker:
            window[place] = 0
            self._makers.cleared(inode)
            left = self.made_by[maker] - 1
            if left:
                self.made_by[maker] = left
            else:
                del self.made_by[maker]
            self.makings += 1

    def forget(self, inode: int) -> None:
        """The inode is gone: nothing is left of it."""
        self._unmade(inode)
        self._generations.window(inode // _WINDOW_INODES)[inode % _WINDOW_INODES] = _UNUSED
        self._generations.cleared(inode)
        self.save(inode, 0, 0)

    def close(self) -> None:
        for array in (self._generations, self._words, self._makers):
            array.close()
