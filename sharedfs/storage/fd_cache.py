"""A bounded cache of open descriptors: the store knows more inodes than a process can have descriptors."""

import os
import threading
from collections.abc import Callable

from sharedfs.storage.data_access import DataAccess
from sharedfs.storage.node import Node

_DATA_FILES = 4096
# Descriptors that lost their place stay open until so many others have: more than one request ever takes, so that none
# is closed while the request that was given it goes on.
_PUT_ASIDE = 32


def data_files(access: DataAccess) -> "Descriptors":
    """Those through which the daemon reads and writes regular files for tenants."""
    return Descriptors(access.open, _DATA_FILES)


class Descriptors:
    """Descriptors by inode, made by `opener`, at most `capacity` of them.

    One thread calls `get`; `discard` may come from another, and only for an inode that nobody can ask for any more.
    First in, first out: a hit must cost no more than one dict look-up, and opening anew costs 4 us. What was got is
    good for the request that got it, whatever that request gets besides.
    """

    def __init__(self, opener: Callable[[Node], int], capacity: int) -> None:
        self._opener = opener
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
                fd = self._opener(node)
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

    def renew(self, node: Node) -> None:
        """The access that an inode allows has changed. From any thread: the descriptor in use keeps its number."""
        with self._changes:
            fd = self.by_inode.get(node.inode, self._put_aside.get(node.inode))
            if fd is not None:
                new = self._opener(node)
                os.dup2(new, fd, inheritable=False)
                os.close(new)

    def make_room(self) -> None:
        """Close them all, for a process that has no descriptor left. None that was got may be in use."""
        with self._changes:
            while self.by_inode:
                self._put_oldest_aside()
            while self._put_aside:
                self._close_oldest()

    def _put_oldest_aside(self) -> None:
        inode = next(iter(self.by_inode))
        self._put_aside[inode] = self.by_inode.pop(inode)

    def _close_oldest(self) -> None:
        os.close(self._put_aside.pop(next(iter(self._put_aside))))
