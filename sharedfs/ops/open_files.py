"""Open files: handles, the descriptors behind them, and what an opening or a closing leaves to do when it is committed.

A file's handle is its inode number: all opens of a file are alike, and one that outlives us needs no table.
"""

import errno
import os
import stat
from collections.abc import Iterable

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.common.errors import SCARCE
from sharedfs.fuse.device import Device
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.ops.content import Content, ContentOnDisk
from sharedfs.ops.recent_uses import RecentUses
from sharedfs.pages.reconcile import Reconcile
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.inodes import is_the_only_one
from sharedfs.storage.journal import NOTHING, Aftermath
from sharedfs.storage.node import Node
from sharedfs.storage.node_words import Words
from sharedfs.storage.open_dirs import Listings
from sharedfs.storage.tree import Found, Store


class OpenFiles:
    """Call with the store's lock held.

    `files` are the descriptors that the data path reads and writes through: `put` is for the request pump's thread.
    """

    def __init__(
        self,
        store: Store,
        files: Descriptors,
        books: Books,
        reconcile: Reconcile,
        device: Device,
        callers: Callers,
        content: Content,
        uses: RecentUses,
        listings: Listings,
        *,
        fast_reads: bool,
    ) -> None:
        self._store = store
        self._files = files
        self._books = books
        self._reconcile = reconcile
        self._device = device
        self._callers = callers
        self._content = content
        self._uses = uses
        self._listings = listings
        self._fast_reads = fast_reads
        self._room = store.tmpfs.room
        self._aftermath = NOTHING
        self._opened_directly: set[int] = set()  # for direct I/O, and not closed by all since

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, umask: int, uid: int, gid: int, thread_id: int
    ) -> Found:
        directory, maker = self._store.node(parent), self._callers.tenant_of(thread_id)
        self._room.afford()
        try:
            node, found, fd = self._store.create(directory, name, mode, umask, uid, gid)
        except FileExistsError:  # made since the kernel looked it up
            if flags & os.O_EXCL:
                raise
            node, found = self._store.lookup(directory, name)
            try:
                self.open(node.inode, flags)
            except ContentOnDisk:  # the kernel then looks it up again and opens what it finds
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
            self._store.refer(node)
            return node, found
        return self._created(node, found, fd, flags, maker)

    def create_nameless(
        self, parent: int, flags: int, mode: int, umask: int, uid: int, gid: int, thread_id: int
    ) -> Found:
        maker = self._callers.tenant_of(thread_id)
        self._room.afford()
        created = self._store.create_nameless(self._store.node(parent), mode, umask, uid, gid)
        return self._created(*created, flags, maker)

    def _created(self, node: Node, found: os.stat_result, fd: int, flags: int, maker: TenantId) -> Found:
        try:
            self._register(node, fd)
        except OSError:
            os.close(fd)
            raise
        self._files.put(node.inode, fd)  # who makes a file writes to it, as a rule
        node.opens, node.may_be_mapped, node.mappable = 1, True, _reads(flags)
        self._store.made(node, maker)
        return node, found

    def open(self, inode: int, flags: int) -> None:
        """Raises ContentOnDisk when it is to be brought back first; nothing has changed then."""
        node = self._store.node(inode)
        self._content.refuse_given_way(node)
        self._content.want(inode)
        if node.opens == 0 and not stat.S_ISREG(self._store.stat(node).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # the kernel asks for no other; a FIFO would keep us
        needs_backing = node.backing_id == 0 and self._device.backing is not None
        for_writing = flags & os.O_ACCMODE != os.O_RDONLY
        if needs_backing:
            self._room.afford_open()
        mappable = node.mappable or _reads(flags)
        if for_writing or needs_backing:
            # Inode flags may refuse to write (EPERM); reading goes with what they allow.
            fd = (
                self._store.open(node, os.O_RDWR | flags & os.O_APPEND)
                if for_writing
                else self._store.access.open(node)
            )
            try:
                if node.opens == 0 and node.may_be_mapped and not mappable:
                    mappable = not is_the_only_one(fd)  # a mapping is left
                still = not for_writing and (node.still or (node.opens == 0 and is_the_only_one(fd)))
                self._register(node, fd)
            finally:
                os.close(fd)
            node.still = still
        if not node.may_be_mapped:
            node.may_be_mapped = True
            self._device.expire_attributes(inode)
        node.mappable = mappable
        node.opens += 1
        self._store.changed(node)
        self._uses.opened(inode)

    def _register(self, node: Node, fd: int) -> None:
        backing = self._device.backing
        if backing is not None and node.backing_id == 0:
            node.backing_id = backing.register(fd)
            self._aftermath = self._aftermath._replace(opened_backing=node.backing_id)
            self._store.changed(node)

    def expect(self, inode: int, flags: int, thread_id: int) -> None:
        """After `open`: of the thread that opened a file something may come when it has ended.

        Requests, when it is for direct I/O (AIO), and else the record of a mapping (`pages/short_mappings.py`).
        """
        if flags & os.O_DIRECT:
            self._opened_directly.add(inode)
            self._callers.opens_directly(inode, thread_id)
        else:
            self._callers.remember(thread_id)

    def open_for_reading(self, inode: int, flags: int, thread_id: int) -> TenantId:
        """After `open`: the tenant, when the kernel is to serve this handle's reads itself; it uses the file then.

        NOBODY when reads are to come to us: they are exact by default, and must be where we could name nobody.
        """
        if not self._fast_reads or flags & os.O_ACCMODE != os.O_RDONLY or self._store.node(inode).backing_id == 0:
            return NOBODY
        tenant = self._callers.tenant_of(thread_id)
        self._aftermath = self._aftermath._replace(read_inode=inode, reader=tenant, handles=1)
        return tenant

    def release(self, inode: int, reader: TenantId) -> None:
        """A handle is closed; `reader` is what `open_for_reading` said of it."""
        node = self._store.node(inode)
        if not node.opens:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if node.opens == 1:
            self._book_strays(node)
        if reader != NOBODY:
            self._aftermath = Aftermath(read_inode=inode, reader=reader, handles=-1)
        node.opens -= 1
        if node.opens == 0:
            self._files.discard(inode)
            self._store.access.drop(inode)
            if inode in self._opened_directly:
                self._opened_directly.discard(inode)
                self._callers.closed(inode)
            self._aftermath = self._aftermath._replace(closed_backing=node.backing_id)
            node.backing_id, node.mappable = 0, False
        self._store.changed(node)

    def _book_strays(self, node: Node) -> None:
        """The kernel asks once for a handle to be closed: this must not fail for want of a descriptor.

        A look for mappings finds strays as well, as long as the file is known.
        """
        for make_room in (self.make_room, lambda: None):
            try:
                self._reconcile.book_strays(node, self._files.by_inode.get(node.inode))
            except OSError as error:
                if error.errno not in SCARCE:
                    raise
                make_room()
            else:
                return

    def make_room(self) -> None:
        """Close descriptors that can be opened anew, of directories, too."""
        self._store.make_room()
        self._listings.make_room()

    # -- when it is committed ----------------------------------------------------------------------------------------

    def take_aftermath(self) -> Aftermath:
        """What the request under way wants to be done when it is committed."""
        aftermath, self._aftermath = self._aftermath, NOTHING
        return aftermath

    def committed(self, request: int, changes: Iterable[Words], aftermath: Aftermath) -> None:
        """A request with this number is committed: do the rest. To do this twice does no harm."""
        self._store.save(changes)
        if aftermath is NOTHING:
            return
        opened, closed, inode, reader, handles = aftermath
        if opened:  # of two slots that a successor reads again, the later one may be read first
            self._store.slot.last_backing = max(opened, self._store.slot.last_backing)
        backing = self._device.backing
        if closed and backing is not None:
            backing.close(closed)
        if reader != NOBODY:
            act = self._books.readers.open if handles > 0 else self._books.readers.close
            act(inode, TenantId(reader), request)


def _reads(flags: int) -> bool:
    """Whether a file that is opened so can be mapped."""
    return flags & os.O_ACCMODE != os.O_WRONLY
