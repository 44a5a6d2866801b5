"""What is rare and changes nothing, as pyfuse3 asks it. Each handler translates, calls the namespace, translates.

What is frequent, what changes something and what pyfuse3 does not know is answered in `ops/name_dispatch.py`.
"""

import errno
import os
from collections.abc import Sequence
from typing import NoReturn

import pyfuse3
from pyfuse3 import FUSEError, RequestContext, StatvfsData

from sharedfs.fuse.shortage import Shortage, as_told
from sharedfs.linux import procfs
from sharedfs.linux.syscalls import LONGEST_NAME_BYTES
from sharedfs.ops.namespace import Namespace
from sharedfs.storage.inode_cost import HIDDEN_INODES


class RareRequests(pyfuse3.Operations):
    """pyfuse3's handlers. All run in trio's thread and wait for nothing but the namespace's lock."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, namespace: Namespace) -> None:
        super().__init__()
        self._namespace = namespace
        self._shortage = Shortage(namespace.make_room)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        pool = os.fstatvfs(self._namespace.store.mount_fd)
        answer = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, field, getattr(pool, field))
        if answer.f_files:  # bounded, and by the size as well
            left = self._namespace.store.tmpfs.room.inodes_left(pool)
            answer.f_files += left - pool.f_ffree - HIDDEN_INODES
            answer.f_ffree = answer.f_favail = left
        answer.f_namemax = LONGEST_NAME_BYTES
        return answer

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """The namespace's OSError is the caller's errno. Anything else is our own bug and ends the service."""
        namespace = self._namespace

        def names() -> list[bytes]:
            return namespace.attributes.xattr_names(inode, privileged=procfs.effective_user(ctx.pid) == 0)

        with namespace.lock:
            try:
                return self._shortage.again(names)
            except OSError as error:
                raise FUSEError(as_told(error.errno or errno.EIO)) from error

    async def flush(self, fh: int) -> None:
        _not_needed()

    async def fsync(self, fh: int, datasync: bool) -> None:
        _not_needed()

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        _not_needed()


def _not_needed() -> NoReturn:
    """The kernel stops asking after one ENOSYS, and takes it as success: memory has nothing to flush."""
    raise FUSEError(errno.ENOSYS)
