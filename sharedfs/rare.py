"""What is rare of the namespace, as pyfuse3 asks it. Each handler translates, calls the namespace, translates.

What is frequent, and what pyfuse3 does not know, is answered in `frequent.py` and does not get here.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, StatvfsData

from sharedfs.namespace import ENTRY_SECONDS, Found, Namespace

_NAME_BYTES = 255


class RareRequests(pyfuse3.Operations):
    """pyfuse3's handlers. All run in trio's thread and wait for nothing but the namespace's lock."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, namespace: Namespace) -> None:
        super().__init__()
        self._namespace = namespace

    @contextmanager
    def _locked(self) -> Iterator[Namespace]:
        """The namespace's OSError is the caller's errno. Anything else is our own bug and ends the service."""
        with self._namespace.lock:
            try:
                yield self._namespace
            except OSError as error:
                raise FUSEError(error.errno or errno.EIO) from error

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        pool = os.fstatvfs(self._namespace.store.mount_fd)
        answer = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, field, getattr(pool, field))
        answer.f_namemax = _NAME_BYTES
        return answer

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        with self._locked() as namespace:
            made = namespace.make(parent_inode, name, mode, ctx.umask, ctx.uid, ctx.gid, rdev)
            return self._entry(made)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        with self._locked() as namespace:
            return self._entry(namespace.make_symlink(parent_inode, name, target, ctx.uid, ctx.gid, ctx.pid))

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        with self._locked() as namespace:
            return self._entry(namespace.link(inode, new_parent_inode, new_name))

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        with self._locked() as namespace:
            return namespace.xattr_names(inode, privileged=ctx.uid == 0)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        with self._locked() as namespace:
            namespace.remove_xattr(inode, name)

    async def flush(self, fh: int) -> None:
        _not_needed()

    async def fsync(self, fh: int, datasync: bool) -> None:
        _not_needed()

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        _not_needed()

    def _entry(self, answer: Found) -> EntryAttributes:
        node, found = answer
        entry = EntryAttributes()
        entry.st_ino = node.inode
        entry.entry_timeout = ENTRY_SECONDS
        entry.attr_timeout = self._namespace.attribute_seconds(node)
        entry.st_mode = found.st_mode
        entry.st_nlink = found.st_nlink
        entry.st_uid = found.st_uid
        entry.st_gid = found.st_gid
        entry.st_rdev = found.st_rdev
        entry.st_size = found.st_size
        entry.st_blocks = found.st_blocks
        entry.st_blksize = found.st_blksize
        entry.st_atime_ns = found.st_atime_ns
        entry.st_mtime_ns = found.st_mtime_ns
        entry.st_ctime_ns = found.st_ctime_ns
        return entry


def _not_needed() -> NoReturn:
    """The kernel stops asking after one ENOSYS, and takes it as success: memory has nothing to flush."""
    raise FUSEError(errno.ENOSYS)
