"""What access the daemon has to the data of a file whose inode flags (chattr +i, +a) take some.

As with any filesystem, flags count when a file is opened: who has it open keeps the access that it had then. The
daemon reads and writes for all of them through descriptors of its own, so it keeps one with all access from before the
flags changed, until the last of them has closed the file. What a daemon kept ends with it.
"""

import os
import threading

from sharedfs.linux import syscalls
from sharedfs.storage.node import Node


class DataAccess:
    """Of one store, whose mount is `mount_fd`. Safe from any thread."""

    def __init__(self, mount_fd: int) -> None:
        self._mount_fd = mount_fd
        self._kept: dict[int, int] = {}
        self._changes = threading.Lock()

    def open(self, node: Node) -> int:
        """A new descriptor of a regular file, the caller's to close, with all access that flags allow or is kept."""
        for flags in (os.O_RDWR, os.O_RDWR | os.O_APPEND):
            try:
                return syscalls.open_by_handle(self._mount_fd, node.handle, flags)
            except PermissionError:
                kept = self.kept(node)
                if kept is not None:
                    return kept
        return syscalls.open_by_handle(self._mount_fd, node.handle, os.O_RDONLY)

    def kept(self, node: Node) -> int | None:
        """A new descriptor with all access, from before the flags took some; None where nothing is kept."""
        with self._changes:
            fd = self._kept.get(node.inode)
            return None if fd is None else os.dup(fd)

    def keep(self, node: Node) -> None:
        """Before the flags of a file that is open may change."""
        with self._changes:
            if node.inode not in self._kept:
                try:
                    self._kept[node.inode] = syscalls.open_by_handle(self._mount_fd, node.handle, os.O_RDWR)
                except PermissionError:
                    return  # they took it before the file was opened

    def drop(self, inode: int) -> None:
        """Nobody has the file open any more, or its flags allow all."""
        with self._changes:
            fd = self._kept.pop(inode, None)
        if fd is not None:
            os.close(fd)

    def allows_all(self, node: Node) -> bool:
        """Whether flags take no access."""
        try:
            os.close(syscalls.open_by_handle(self._mount_fd, node.handle, os.O_RDWR))
        except PermissionError:
            return False
        return True

    def close(self) -> None:
        for inode in list(self._kept):
            self.drop(inode)
