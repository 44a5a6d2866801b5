"""Files whose pages are being moved: what the next daemon puts back when this one is killed halfway.

Pages that are punched out and not yet written again (`Punched`) have their content in a file of the state meanwhile:

    word 0   bytes held; 0: nothing is. Stored last, and cleared first
    word 1   the inode
    word 2   where in the file they belong
    word 3   the file's times of access and of change before, in ns
    word 4
    4096     the content

Holes that are filled while a window is collapsed into a huge page (`Filled`) are in another file of the state:

    word 0   how many holes; 0: none. Stored last, and cleared first
    word 1 to 4 as above: the window begins at word 2
    4096     the holes: first and last page of each, two words

Nobody has such a file open or maps it meanwhile, and nobody can open it before the next daemon has put it right.
"""

import os
from collections.abc import Sequence

from sharedfs.ledger.page_ranges import PageRange
from sharedfs.pool.schema import StateFile
from sharedfs.storage.state_files import StateFiles

PUNCHED_BYTES = 64 << 10
"""The most that is punched out at once: 30 us."""
_CONTENT_AT = 4096
_LENGTH, _INODE, _START, _ATIME, _MTIME = range(5)


class Punched:
    """One range of one file at a time, for one thread."""

    def __init__(self, state: StateFiles) -> None:
        memory = memoryview(state.map(StateFile.PUNCHED, _CONTENT_AT + PUNCHED_BYTES))
        self._words = memory[:_CONTENT_AT].cast("Q")
        self._memory = memory[_CONTENT_AT:]

    @property
    def held(self) -> tuple[int, int] | None:
        """(inode, start) of what a daemon before us was killed over, or None."""
        return (self._words[_INODE], self._words[_START]) if self._words[_LENGTH] else None

    @property
    def content(self) -> memoryview:
        return self._memory[: self._words[_LENGTH]]

    @property
    def times_ns(self) -> tuple[int, int]:
        """Of access and of change, of the file before anything was moved."""
        return self._words[_ATIME], self._words[_MTIME]

    def hold(self, fd: int, found: os.stat_result, start: int, length: int) -> None:
        """Before the range (at most PUNCHED_BYTES) is punched out. Raises OSError when it cannot be read in full."""
        read = os.preadv(fd, [self._memory[:length]], start)
        if read != length:
            raise OSError(f"{read} of {length} bytes could be read at {start} of inode {found.st_ino}")
        self._words[_INODE], self._words[_START] = found.st_ino, start
        self._words[_ATIME], self._words[_MTIME] = found.st_atime_ns, found.st_mtime_ns
        self._words[_LENGTH] = length

    def release(self) -> None:
        self._words[_LENGTH] = 0


class Filled:
    """The holes of one window of one file at a time, for one thread. A window has at most `window_pages` pages."""

    def __init__(self, state: StateFiles, window_pages: int) -> None:
        # Between two holes is a page: so many words are enough.
        memory = memoryview(state.map(StateFile.FILLED, _CONTENT_AT + (window_pages + 1) * 8)).cast("Q")
        self._words, self._holes = memory[: _CONTENT_AT // 8], memory[_CONTENT_AT // 8 :]

    @property
    def held(self) -> int | None:
        """The inode of what a daemon before this one was killed over, or None."""
        return self._words[_INODE] if self._words[_LENGTH] else None

    @property
    def holes(self) -> list[PageRange]:
        words = self._holes[: 2 * self._words[_LENGTH]].tolist()
        return list(zip(words[::2], words[1::2], strict=True))

    @property
    def times_ns(self) -> tuple[int, int]:
        """Of access and of change, of the file before anything was moved."""
        return self._words[_ATIME], self._words[_MTIME]

    def hold(self, found: os.stat_result, start: int, holes: Sequence[PageRange]) -> None:
        """Before the window that begins at byte `start` is collapsed."""
        for place, (first, last) in enumerate(holes):
            self._holes[2 * place], self._holes[2 * place + 1] = first, last
        self._words[_INODE], self._words[_START] = found.st_ino, start
        self._words[_ATIME], self._words[_MTIME] = found.st_atime_ns, found.st_mtime_ns
        self._words[_LENGTH] = len(holes)

    def release(self) -> None:
        self._words[_LENGTH] = 0
