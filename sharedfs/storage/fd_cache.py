"""A bounded cache of open descriptors: the store knows more inodes than a process can have descriptors."""

import os
import threading

from sharedfs.linux import syscalls
from sharedfs.storage.node import Node

_DATA_FILES = 4096
# Descriptors that lost their place stay open until so many others have: more than one request ever takes, so that none
# is closed while the request that was given it goes on.
_PUT_ASIDE = 32


def open_for_data(mount_fd: int, handle: bytes) -> int:
    """A new descriptor of a regular file with all access that its inode flags allow (chattr's +a and +i take some)."""
    for flags in (os.O_RDWR, os.O_RDWR | os.O_APPEND):
        try:
            return syscalls.open_by_handle(mount_fd, handle, flags)
        except PermissionError:
            pass
    return syscalls.open_by_handle(mount_fd, handle, os.O_RDONLY)


def data_files(mount_fd: int) -> "Descriptors":
    """Those through which the daemon reads and writes regular files for tenants."""
    return Descriptors(mount_fd, os.O_RDWR, _DATA_FILES)


class Descriptors:
    """Descriptors opened with `flags` on the store's `mount_fd`, by inode, at most `capacity` of them.

    One thread calls `get`; `discard` may come from another, and only for an inode that nobody can ask for any more.
    First in, first out: a hit must cost no more than one dict look-up, and opening anew costs 4 us. What was got is
    good for the request that got it, whatever that request gets besides.
    """

    def __init__(self, mount_fd: int, flags: int, capacity: int) -> None:
        self._mount_fd = mount_fd
        self._flags = flags
        self._capacity = capacity
        self.by_inode: dict[int, int] = {}  # for sharedfs/ops/fastpath.c to look at
        self._put_aside: dict[int, int] = {}  # as `by_inode`; an inode is in one of them at most
        self._changes = threading.Lock()  # a discard must not change the order that an eviction looks at

    def get(self, node: Node) -> int:
        fd = self.by_inode.get(node.inode)
        if fd is None:
            with self._changes:
                fd = self._put_aside.pop(node.inode, None)
            if fd is None:
                fd = self._opened(node)
            self.put(node.inode, fd)
        return fd

    def put(self, inode: int, fd: int) -> None:
        """A descriptor of an inode that has none here becomes ours. By the thread that calls `get`."""
        with self._changes:
            while len(self.by_inode) >= self._capacity:
                self._put_oldest_aside()
            while len(self._put_aside) > _PUT_ASIDE:
                self._close_oldest()
            self.by_inode[inode] = fd

    def discard(self, inode: int) -> None:
        with self._changes:
            fd = self.by_inode.pop(inode, None)
            if fd is None:
                fd = self._put_aside.pop(inode, None)
        if fd is not None:
            os.close(fd)

    def make_room(self) -> None:
        """Close them all, for a process that has no descriptor left. None that was got may be in use."""
        with self._changes:
            while self.by_inode:
                self._put_oldest_aside()
            while self._put_aside:
                self._close_oldest()

    def _opened(self, node: Node) -> int:
        if self._flags == os.O_RDWR:
            return open_for_data(self._mount_fd, node.handle)
        return syscalls.open_by_handle(self._mount_fd, node.handle, self._flags)

    def _put_oldest_aside(self) -> None:
        inode = next(iter(self.by_inode))
        self._put_aside[inode] = self.by_inode.pop(inode)

    def _close_oldest(self) -> None:
        os.close(self._put_aside.pop(next(iter(self._put_aside))))
