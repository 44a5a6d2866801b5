"""Pages that are in no file for a moment: punched out, and not yet written again. A kill in between loses nothing.

Their content is in a file of the state meanwhile, so that the next daemon can put it back:

    word 0   bytes held; 0: nothing is. Stored last, and cleared first
    word 1   the inode
    word 2   where in the file they belong
    word 3   the file's times of access and of change before, in ns
    word 4
    4096     the content

Nobody has the file open or maps it meanwhile, and nobody can open it before the next daemon has put them back.
"""

import os

from sharedfs.storage.state_files import StateFiles

PUNCHED_BYTES = 64 << 10
"""The most that is punched out at once: 30 us."""
_FILE, _CONTENT_AT = "punched", 4096
_LENGTH, _INODE, _START, _ATIME, _MTIME = range(5)


class Punched:
    """One range of one file at a time, for one thread."""

    def __init__(self, state: StateFiles) -> None:
        memory = memoryview(state.map(_FILE, _CONTENT_AT + PUNCHED_BYTES))
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
