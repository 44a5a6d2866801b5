"""Files that outlive the daemon: a private tmpfs of its own, so that a full pool does not break what is kept in it.

What is written to a mapped file is kept when the process is killed after the very store; nothing has to be flushed.
Without a directory (tests, tools) the same files are anonymous, and gone with the process.
"""

import mmap
import os
from contextlib import suppress

from sharedfs.linux import syscalls


class StateFiles:
    """The files in `directory_fd`, which is the caller's."""

    def __init__(self, directory_fd: int | None = None) -> None:
        self.directory_fd = directory_fd

    def open(self, name: str) -> int:
        """A descriptor of the file for reading and writing, the caller's to close. It is made empty."""
        if self.directory_fd is None:
            return os.memfd_create(name)
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.directory_fd)

    def map(self, name: str, size_bytes: int) -> mmap.mmap:
        """The file's first bytes, all of them resident: who writes there is never kept waiting, nor is the kernel."""
        fd = self.open(name)
        try:
            if os.fstat(fd).st_size < size_bytes:
                os.ftruncate(fd, size_bytes)
            return mmap.mmap(fd, size_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes:
        """The content of a small file, b"" when there is none."""
        fd = self.open(name)
        try:
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    def write(self, name: str, content: bytes) -> None:
        """Replace the content of a small file: whoever reads it gets the old one or the new one."""
        if self.directory_fd is None:
            return
        fd = self.open(name + ".new")
        try:
            os.ftruncate(fd, 0)
            os.write(fd, content)
        finally:
            os.close(fd)
        os.rename(name + ".new", name, src_dir_fd=self.directory_fd, dst_dir_fd=self.directory_fd)

    def names(self) -> list[str]:
        """The files that there are."""
        return [] if self.directory_fd is None else os.listdir(self.directory_fd)

    def held_bytes(self) -> int:
        """What all files together take, those in directories of theirs, too."""
        held_bytes = 0
        if self.directory_fd is not None:
            for _, _, names, place in os.fwalk(".", dir_fd=self.directory_fd):
                for name in names:
                    with suppress(FileNotFoundError):  # replaced, or gone, since the directory was read
                        found = os.stat(name, dir_fd=place, follow_symlinks=False)
                        held_bytes += syscalls.STAT_BLOCK_BYTES * found.st_blocks
        return held_bytes

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        if self.directory_fd is not None:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.directory_fd)
