"""A bounded cache of open descriptors: the store knows more inodes than a process can have descriptors."""

import os
import threading
from typing import TYPE_CHECKING

from sharedfs.kernel import syscalls

if TYPE_CHECKING:
    from sharedfs.inodes import Node


def open_for_data(mount_fd: int, handle: bytes) -> int:
    """A new descriptor of a regular file with all access that its inode flags allow (chattr's +a and +i take some)."""
    for flags in (os.O_RDWR, os.O_RDWR | os.O_APPEND):
        try:
            return syscalls.open_by_handle(mount_fd, handle, flags)
        except PermissionError:
            pass
    return syscalls.open_by_handle(mount_fd, handle, os.O_RDONLY)


class Descriptors:
    """Descriptors opened with `flags` on the store's `mount_fd`, by inode, at most `capacity` of them.

    One thread calls `get`; `discard` may come from another, and only for an inode that nobody can ask for any more.
    First in, first out: a hit must cost no more than one dict look-up, and opening anew costs 4 us.
    """

    def __init__(self, mount_fd: int, flags: int, capacity: int) -> None:
        self._mount_fd = mount_fd
        self._flags = flags
        self._capacity = capacity
        self.by_inode: dict[int, int] = {}  # for sharedfs/fastpath.c to look at
        self._changes = threading.Lock()  # a discard must not change the order that an eviction looks at

    def get(self, node: "Node") -> int:
        fd = self.by_inode.get(node.inode)
        if fd is None:
            if self._flags == os.O_RDWR:
                fd = open_for_data(self._mount_fd, node.handle)
            else:
                fd = syscalls.open_by_handle(self._mount_fd, node.handle, self._flags)
            with self._changes:
                while len(self.by_inode) >= self._capacity:
                    os.close(self.by_inode.pop(next(iter(self.by_inode))))
                self.by_inode[node.inode] = fd
        return fd

    def discard(self, inode: int) -> None:
        with self._changes:
            fd = self.by_inode.pop(inode, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        for inode in list(self.by_inode):
            self.discard(inode)
