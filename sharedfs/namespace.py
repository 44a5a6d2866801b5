"""The namespace: everything that is not data, as pyfuse3 asks it. Each handler translates, calls the store, translates.

No handler waits for a tenant, and none waits at all but for a long reservation; so they run one after the other, in the
order of the requests, and a name cannot change between two lines of one handler.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import NoReturn

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from sharedfs.books import Books
from sharedfs.callers import Callers
from sharedfs.datapath import DataPath
from sharedfs.kernel import syscalls
from sharedfs.kernel.passthrough import BackingFiles
from sharedfs.model.tenant import TenantId
from sharedfs.store import SET_ID_BITS, Node, Store

# Nobody but us changes the store, and every change of a name goes through the kernel that caches it.
_ENTRY_SECONDS = 3600.0
# A file's times change under the kernel when somebody writes to it through a mapping.
_FILE_ATTRIBUTE_SECONDS = 1.0
# A longer reservation is made in a thread, so that other requests do not wait for it.
_SLOW_RESERVATION_BYTES = 16 << 20
_NAME_BYTES = 255
_STAT_BLOCK_BYTES = 512
_ACL_PREFIX = b"system.posix_acl_"


@dataclass(slots=True)
class _OpenDirectory:
    node: Node
    names: Sequence[bytes] = ()


@contextmanager
def _errno_of_store() -> Iterator[None]:
    """The store's OSError is the caller's errno. Anything else is our own bug and ends the service."""
    try:
        yield
    except OSError as error:
        raise FUSEError(error.errno or errno.EIO) from error


class Namespace(pyfuse3.Operations):
    """pyfuse3's handlers. `backing` is None where the kernel has no passthrough."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        store: Store,
        books: Books,
        data_path: DataPath,
        backing: Callable[[], BackingFiles | None],
        reserve_bytes: int,
        callers: Callers,
    ) -> None:
        super().__init__()
        self._store = store
        self._books = books
        self._data_path = data_path
        self._backing = backing
        self._reserve_bytes = reserve_bytes
        self._callers = callers
        self._directories: dict[int, _OpenDirectory] = {}
        self._next_handle = count(1)

    # -- look-up and attributes --------------------------------------------------------------------------------------

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        with _errno_of_store():
            parent = self._store.node(parent_inode)
            try:
                return self._entry(*self._store.lookup(parent, name))
            except FileNotFoundError:
                missing = EntryAttributes()
                missing.st_ino = 0  # the kernel may remember that there is no such name
                missing.entry_timeout = _ENTRY_SECONDS
                return missing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, lookups in inode_list:
            if self._store.forget(inode, lookups, keep=self._books.has_pages(inode)):
                self._gone(inode)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        with _errno_of_store():
            node = self._store.node(inode)
            return _attributes(node, self._store.stat(node))

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        with _errno_of_store():
            node = self._store.node(inode)
            if node.removed_stat is None:
                path = self._store.descriptor_path(node)
                if fields.update_uid or fields.update_gid:
                    uid, gid = (attr.st_uid if fields.update_uid else -1), (attr.st_gid if fields.update_gid else -1)
                    os.chown(path, uid, gid)
                if fields.update_mode:
                    os.chmod(path, stat.S_IMODE(attr.st_mode))
                if fields.update_size:
                    await self._resize(node, attr.st_size, self._callers.tenant_of(ctx.pid))
                if fields.update_atime or fields.update_mtime:
                    now = self._store.stat(node)
                    atime = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
                    mtime = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
                    os.utime(self._store.descriptor_path(node), ns=(atime, mtime))
            found = self._store.stat(node)
            node.set_id = bool(found.st_mode & SET_ID_BITS)
            return _attributes(node, found)

    async def _resize(self, node: Node, size: int, tenant: TenantId) -> None:
        path = self._store.descriptor_path(node)
        grows = size > os.stat(path).st_size
        os.truncate(path, size)
        if not grows:
            self._books.uncharge(node.inode, size)
        elif self._may_reserve(size):
            # The file may be mapped, and a page fault in a hole would charge the tenant and not the pool (I2).
            if size <= _SLOW_RESERVATION_BYTES:
                reserved = self._reserve(node, size)
            else:
                reserved = await trio.to_thread.run_sync(self._reserve, node, size)
            if reserved:
                self._books.charge(node.inode, 0, size, tenant)

    def _may_reserve(self, size: int) -> bool:
        pool = os.fstatvfs(self._store.mount_fd)
        return size <= min(self._reserve_bytes, pool.f_bavail * pool.f_bsize)

    def _reserve(self, node: Node, size: int) -> bool:
        """Allocate a file up to its size; False when the pool filled up meanwhile, and the file stays sparse."""
        fd = self._store.open(node, os.O_RDWR)
        try:
            syscalls.fallocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False
        finally:
            os.close(fd)
        return True

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        with _errno_of_store():
            node = self._store.node(inode)
            return self._store.read_symlink(node)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        pool = os.fstatvfs(self._store.mount_fd)
        answer = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, field, getattr(pool, field))
        answer.f_namemax = _NAME_BYTES
        return answer

    # -- making and removing names -----------------------------------------------------------------------------------

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        with _errno_of_store():
            parent = self._store.node(parent_inode)
            self._store.make(parent, name, mode, ctx.uid, ctx.gid, rdev)
            return self._entry(*self._store.lookup(parent, name))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        with _errno_of_store():
            parent = self._store.node(parent_inode)
            self._store.make_directory(parent, name, mode, ctx.uid, ctx.gid)
            return self._entry(*self._store.lookup(parent, name))

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        with _errno_of_store():
            parent = self._store.node(parent_inode)
            self._store.make_symlink(parent, name, target, ctx.uid, ctx.gid)
            node, found = self._store.lookup(parent, name)
            if found.st_blocks:  # tmpfs keeps a long target in a page
                tenant = self._callers.tenant_of(ctx.pid)
                self._books.charge(node.inode, 0, found.st_blocks * _STAT_BLOCK_BYTES, tenant)
            return self._entry(node, found)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        with _errno_of_store():
            node, parent = self._store.node(inode), self._store.node(new_parent_inode)
            self._store.link(node, parent, new_name)
            return self._entry(node, self._store.stat(node))

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        with _errno_of_store():
            gone = self._store.unlink(self._store.node(parent_inode), name)
        if gone is not None:
            self._gone(gone)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        with _errno_of_store():
            self._store.remove_directory(self._store.node(parent_inode), name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        with _errno_of_store():
            old, new = self._store.node(parent_inode_old), self._store.node(parent_inode_new)
            gone = self._store.rename(old, name_old, new, name_new, flags)
        if gone is not None:
            self._gone(gone)

    # -- open files --------------------------------------------------------------------------------------------------
    # A file's handle is its inode number: all opens of a file are alike, and one that outlives us needs no table.

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        with _errno_of_store():
            parent = self._store.node(parent_inode)
            try:
                self._store.make(parent, name, mode & 0o7777 | stat.S_IFREG, ctx.uid, ctx.gid)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
            node, found = self._store.lookup(parent, name)
            self._opened(node)
            return FileInfo(fh=node.inode, keep_cache=False, direct_io=True), self._entry(node, found)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        with _errno_of_store():
            self._opened(self._store.node(inode))
            return FileInfo(fh=inode, keep_cache=False, direct_io=True)

    def _opened(self, node: Node) -> None:
        backing = self._backing()
        if backing is not None and node.inode not in backing:
            fd = self._store.open(node, os.O_RDWR)
            try:
                backing.register(node.inode, fd)
            finally:
                os.close(fd)
        node.opens += 1

    async def release(self, fh: int) -> None:
        node = self._store.node(fh)
        node.opens -= 1
        if node.opens == 0:
            backing = self._backing()
            if backing is not None:
                backing.release(fh)

    async def flush(self, fh: int) -> None:
        _not_needed()

    async def fsync(self, fh: int, datasync: bool) -> None:
        _not_needed()

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        _not_needed()

    # -- directories -------------------------------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        with _errno_of_store():
            handle = next(self._next_handle)
            self._directories[handle] = _OpenDirectory(self._store.node(inode))
            return handle

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """List from entry `start_id` on. The names are those at the first call, so entries keep their place."""
        opened = self._directories[fh]
        with _errno_of_store():
            if start_id == 0:
                opened.names = [b".", b"..", *self._store.names(opened.node)]
            for position in range(start_id, len(opened.names)):
                name = opened.names[position]
                try:
                    node, found = self._store.lookup(opened.node, name)
                except FileNotFoundError:
                    continue  # removed since
                if not pyfuse3.readdir_reply(token, name, _attributes(node, found), position + 1):
                    break
                if name not in (b".", b".."):  # the kernel takes no reference to these
                    node.lookups += 1

    async def releasedir(self, fh: int) -> None:
        del self._directories[fh]

    # -- extended attributes -----------------------------------------------------------------------------------------

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name.startswith(_ACL_PREFIX):  # the store would keep it, and the kernel not act on it
            raise FUSEError(errno.EOPNOTSUPP)
        with _errno_of_store():
            os.setxattr(self._store.descriptor_path(self._store.node(inode)), name, value)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        with _errno_of_store():
            return os.getxattr(self._store.descriptor_path(self._store.node(inode)), name)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        with _errno_of_store():
            names = map(os.fsencode, os.listxattr(self._store.descriptor_path(self._store.node(inode))))
            return [name for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        with _errno_of_store():
            os.removexattr(self._store.descriptor_path(self._store.node(inode)), name)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _entry(self, node: Node, found: os.stat_result) -> EntryAttributes:
        """The answer that gives the kernel one more reference to an inode."""
        node.lookups += 1
        return _attributes(node, found)

    def _gone(self, inode: int) -> None:
        """An inode left the store: nothing of ours may hold its pages, and the books close its account."""
        self._data_path.discard(inode)
        self._books.drop(inode)


def _attributes(node: Node, found: os.stat_result) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = node.inode
    entry.entry_timeout = _ENTRY_SECONDS
    entry.attr_timeout = _FILE_ATTRIBUTE_SECONDS if stat.S_ISREG(found.st_mode) else _ENTRY_SECONDS
    entry.st_mode = found.st_mode
    entry.st_nlink = found.st_nlink if node.removed_name is None else 0
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
