"""Attributes: what GETATTR and SETATTR are about, extended attributes, and inode flags (chattr(1))."""

import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sharedfs.linux import syscalls
from sharedfs.ops.content import Content
from sharedfs.ops.sizes import Sizes
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.inodes import ENTRY_SECONDS
from sharedfs.storage.journal import Kind, Slot
from sharedfs.storage.node import SET_ID_BITS, Node
from sharedfs.storage.tree import Found, Store

# A file's times and blocks change under the kernel when somebody writes to it through a mapping.
_MAPPED_FILE_SECONDS = 1
_ACCESS_ACL = b"system.posix_acl_access"
_SETTING_FLAGS = (syscalls.FS_IOC_SETFLAGS, syscalls.FS_IOC_FSSETXATTR)

Time = tuple[int, int]
"""Seconds, and nanoseconds or UTIME_NOW or UTIME_OMIT."""
OMIT: Time = (0, syscalls.UTIME_OMIT)


@dataclass(frozen=True, slots=True)
class Changes:
    """What SETATTR sets; None (OMIT for times) is left alone."""

    mode: int | None = None
    uid: int = -1
    gid: int = -1
    size: int | None = None
    by_handle: bool = False
    """Whether who sets the size has the file open (ftruncate)."""
    atime: Time = OMIT
    mtime: Time = OMIT


NOTHING = Changes()


class Attributes:
    """Call with the store's lock held."""

    def __init__(self, store: Store, files: Descriptors, content: Content, sizes: Sizes) -> None:
        self._store = store
        self._files = files
        self._content = content
        self._sizes = sizes
        self._room = store.tmpfs.room

    def of(self, inode: int) -> Found:
        """Those of an inode. Notes also when nobody can have the file open or mapped any more."""
        node = self._store.node(inode)
        if node.may_be_mapped and node.opens == 0:
            found = self._store.stat_unless_open(node)
            if found is not None:
                node.may_be_mapped = False
                self._store.changed(node)
                return node, found
        return node, self._store.stat(node)

    def seconds(self, node: Node) -> int:
        """How long the kernel may rely on what it is told of an inode."""
        return _MAPPED_FILE_SECONDS if node.may_be_mapped else ENTRY_SECONDS

    def is_slow(self, inode: int, changes: Changes) -> bool:
        """Whether the change is not for the thread that answers everybody."""
        return changes.size is not None and self._sizes.is_slow(inode, changes.size)

    def change(self, inode: int, changes: Changes, thread_id: int, slot: Slot) -> Callable[[], None] | None:
        """Change attributes; what is to be done without the lock before the change is answered, if anything.

        Raises ContentOnDisk when it is to be brought back first; nothing has changed then.
        """
        node = self._store.node(inode)
        if changes.size is not None:
            self._content.want(inode)
        if changes.uid != -1 or changes.gid != -1 or changes == NOTHING:  # chown(path, -1, -1) moves the change time
            os.chown(self._store.descriptor_path(node), changes.uid, changes.gid)
        if changes.mode is not None:
            os.chmod(self._store.descriptor_path(node), stat.S_IMODE(changes.mode))
            node.set_id = bool(changes.mode & SET_ID_BITS)
        if changes.size is not None:
            return self._sizes.change(
                node,
                changes.size,
                thread_id,
                slot,
                partial(self._set_times, node, changes),
                by_handle=changes.by_handle,
            )
        self._set_times(node, changes)
        return None

    def _set_times(self, node: Node, changes: Changes) -> None:
        if (changes.atime, changes.mtime) != (OMIT, OMIT):
            syscalls.set_times(self._store.path_descriptor(node), changes.atime, changes.mtime)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int, *, drop_set_gid: bool) -> None:
        """`drop_set_gid`: who set this ACL may not keep the set-gid bit, as with chmod(2)."""
        node = self._store.node(inode)
        path = self._store.descriptor_path(node)
        self._room.afford(len(value))
        if flags & os.XATTR_CREATE and not syscalls.has_xattr(path, name):
            self._store.slot.intend(Kind.MAKE_XATTR, inode, name=name)
        os.setxattr(path, name, value, flags)
        if name == _ACCESS_ACL:
            mode = self._store.stat(node).st_mode
            if drop_set_gid and mode & stat.S_ISGID:
                os.chmod(path, stat.S_IMODE(mode) & ~stat.S_ISGID)

    def xattr(self, inode: int, name: bytes) -> bytes:
        return os.getxattr(self._store.descriptor_path(self._store.node(inode)), name)

    def xattr_names(self, inode: int, *, privileged: bool) -> list[bytes]:
        names = map(os.fsencode, os.listxattr(self._store.descriptor_path(self._store.node(inode))))
        return [name for name in names if privileged or not name.startswith(b"trusted.")]

    def remove_xattr(self, inode: int, name: bytes) -> None:
        path = self._store.descriptor_path(self._store.node(inode))
        os.getxattr(path, name)  # ENODATA when there is none to remove
        self._store.slot.intend(Kind.REMOVE_XATTR, inode, name=name)
        os.removexattr(path, name)

    def inode_flags(self, inode: int, command: int, argument: bytearray) -> None:
        """Read or set inode flags (chattr(1)) with the ioctl `command`."""
        node, access = self._store.node(inode), self._store.access
        sets = command in _SETTING_FLAGS and node.opens > 0
        if sets:
            access.keep(node)
        with self._store.opened(node, os.O_RDONLY | os.O_NONBLOCK) as fd:
            fcntl.ioctl(fd, command, argument)
        if sets:
            if access.allows_all(node):
                access.drop(inode)
            self._files.renew(node)
