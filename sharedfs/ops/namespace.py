"""The namespace: everything that is not data, as plain functions over the store, the books and the open files.

Two front ends call them: `ops/name_dispatch.py` answers on the FUSE wire what programs ask all the time,
`ops/pyfuse3_ops.py` gives the rest to pyfuse3. They come from different threads and hold the store's lock over each
call, so a name cannot change between two lines of one operation. None waits for a tenant; a long reservation is made by
the caller without the lock.
"""

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.common.lane import LONG_BYTES
from sharedfs.fuse.device import Device
from sharedfs.fuse.protocol import ROOT_NODE
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import syscalls
from sharedfs.linux.shortage import SCARCE
from sharedfs.pages.allocation import Allocation
from sharedfs.pages.growth import Growth, Reservation
from sharedfs.pages.reaper import Reaper
from sharedfs.pages.reconcile import Reconcile
from sharedfs.pages.spill import Spill
from sharedfs.storage.fault_injection import Point
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.inodes import ENTRY_SECONDS, is_the_only_one
from sharedfs.storage.journal import NOTHING, Aftermath, Kind, Slot
from sharedfs.storage.node import SET_ID_BITS, Node, Words
from sharedfs.storage.open_dirs import Listings
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

# A file's times and blocks change under the kernel when somebody writes to it through a mapping.
_MAPPED_FILE_SECONDS = 1
# A cut of more is made beside the request pump, as a reservation of LONG_BYTES is.
_SLOW_CUT_BYTES = 1 << 20
_FEW_FORGOTTEN = 32  # files that are removed at once: 1 ms
_ACCESS_ACL = b"system.posix_acl_access"

Found = tuple[Node, os.stat_result]
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
    atime: Time = OMIT
    mtime: Time = OMIT


GIVEN_WAY_MARK = b"trusted.sharedfs.given_way"
"""On a file that was removed to make room (`maintenance/giving_way.py`): its pages are gone or go."""


class ContentOnDisk(Exception):
    """The file `inode` was spilled: `Namespace.bring_back` first, then ask again."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


class Namespace:
    """Call with `lock` held, except `reserve`.

    `files` are the descriptors that the data path reads and writes through: `put` is for the request pump's thread.
    """

    def __init__(
        self,
        store: Store,
        files: Descriptors,
        books: Books,
        allocation: Allocation,
        reconcile: Reconcile,
        device: Device,
        growth: Growth,
        callers: Callers,
        spill: Spill,
        reaper: Reaper,
        *,
        fast_reads: bool,
        incarnation: int = 0,
    ) -> None:
        self.store = store
        self.lock = store.lock
        self.listings = Listings(store, incarnation)
        self._files = files
        self._books = books
        self._allocation = allocation
        self._reconcile = reconcile
        self._device = device
        self._growth = growth
        self._room = store.tmpfs.room
        self._callers = callers
        self._fast_reads = fast_reads
        self._aftermath = NOTHING
        self._spill = spill
        self._reaper = reaper
        self._watched: dict[int, int] = {}
        self._opened: set[int] = set()

    # -- look-up and attributes --------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Found:
        node, found = self.store.lookup(self.store.node(parent), name)
        self.store.refer(node)
        return node, found

    def forget(self, inode: int, lookups: int, *, one_of_many: bool = False) -> None:
        """The kernel has only so many references left. To do this twice does no harm.

        A file that is large, or `one_of_many`, is freed in the background. Of others the books close the account first:
        what is killed after that is found in removed/ and done again.
        """
        if lookups == 0 and inode in self.store.removed:
            if one_of_many or self._reaper.takes(inode):
                self._let_go(inode)
                self.store.slot.reached(Point.HALFWAY)
                self.store.drop(inode)
                self._reaper.add(inode, self.store.removed.pop(inode))
                return
            self.gone(inode)
            self.store.slot.reached(Point.HALFWAY)
        self.store.forget(inode, lookups)

    def forget_all(self, unique: int, dropped: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references: (inode, how many). Goes on where a daemon before us was killed in it."""
        slot = self.store.slot
        done = slot.begin_forgets(unique)
        if done < 0:
            return
        for index in range(done, len(dropped)):
            inode, references = dropped[index]
            lookups = self.store.lookups_of(inode)
            if references > lookups and inode != ROOT_NODE:
                log.error(
                    "the kernel forgets inode %d %d times and was told of it %d times", inode, references, lookups
                )
            if lookups and inode != ROOT_NODE:
                slot.begin_forget(index, inode, max(0, lookups - references))
                self.forget(inode, max(0, lookups - references), one_of_many=len(dropped) > _FEW_FORGOTTEN)
            slot.end_forget(index)
        slot.end_forgets()

    def take_aftermath(self) -> Aftermath:
        """What the request under way wants to be done when it is committed."""
        aftermath, self._aftermath = self._aftermath, NOTHING
        return aftermath

    def committed(self, request: int, changes: Iterable[Words], aftermath: Aftermath) -> None:
        """A request with this number is committed: do the rest. To do this twice does no harm."""
        self.store.save(changes)
        if aftermath is NOTHING:
            return
        opened, closed, inode, reader, handles = aftermath
        if opened:  # of two slots that a successor reads again, the later one may be read first
            self.store.slot.last_backing = max(opened, self.store.slot.last_backing)
        backing = self._device.backing
        if closed and backing is not None:
            backing.close(closed)
        if reader != NOBODY:
            act = self._books.open_for_reading if handles > 0 else self._books.close_for_reading
            act(inode, TenantId(reader), request)

    def attributes(self, inode: int) -> Found:
        node = self.store.node(inode)
        if node.may_be_mapped and node.opens == 0:
            found = self.store.stat_unless_open(node)
            if found is not None:
                node.may_be_mapped = False
                self.store.changed(node)
                return node, found
        return node, self.store.stat(node)

    def attribute_seconds(self, node: Node) -> int:
        """How long the kernel may rely on what it is told of an inode."""
        return _MAPPED_FILE_SECONDS if node.may_be_mapped else ENTRY_SECONDS

    def is_slow(self, inode: int, changes: Changes) -> bool:
        """Whether the change makes or frees many pages, so that it is not for the thread that answers everybody."""
        if changes.size is None:
            return False
        found = self.store.stat(self.store.node(inode))
        if self._is_slow_cut(found, changes.size):
            return True
        return self._growth.bytes_of(found.st_size, changes.size, changes.size) > LONG_BYTES

    @staticmethod
    def _is_slow_cut(found: os.stat_result, size: int) -> bool:
        return min(found.st_blocks * syscalls.STAT_BLOCK_BYTES, found.st_size - size) > _SLOW_CUT_BYTES

    def change(self, inode: int, changes: Changes, thread_id: int, slot: Slot) -> Callable[[], None] | None:
        """Change attributes; what is to be done without the lock before the change is answered, if anything.

        Raises ContentOnDisk when it is to be brought back first; nothing has changed then.
        """
        node = self.store.node(inode)
        if changes.size is not None:
            self._want_content(inode)
        rest = None
        if changes.uid != -1 or changes.gid != -1:
            os.chown(self.store.descriptor_path(node), changes.uid, changes.gid)
        if changes.mode is not None:
            os.chmod(self.store.descriptor_path(node), stat.S_IMODE(changes.mode))
            node.set_id = bool(changes.mode & SET_ID_BITS)
        if changes.size is not None:
            if self._is_slow_cut(self.store.stat(node), changes.size):
                return self._begin_cut(node, changes, changes.size, slot)
            rest = self._resize(node, changes.size, thread_id, slot)
        self._set_times(node, changes)
        return rest

    def _set_times(self, node: Node, changes: Changes) -> None:
        if (changes.atime, changes.mtime) != (OMIT, OMIT):
            syscalls.set_times(self.store.path_descriptor(node), changes.atime, changes.mtime)

    def _resize(self, node: Node, size: int, thread_id: int, slot: Slot) -> Callable[[], None] | None:
        self._used(node.inode)
        path = self.store.descriptor_path(node)
        old_size = self.store.stat(node).st_size
        if size <= old_size:
            os.truncate(path, size)
            self._allocation.truncated(node, size)
            return None
        reservation = self._growth.begin(node, old_size, size, size, self._callers.tenant_of(thread_id))
        if reservation is None:
            os.truncate(path, size)
            return None
        try:
            # Once the file is longer, nobody can see how much of that is new.
            slot.intend(Kind.EXTEND, node.inode, directory=old_size, other=size, new_directory=thread_id)
            os.truncate(path, size)
        except OSError:
            self._growth.give_up(reservation)
            raise
        return lambda: self.reserve(reservation)

    def _begin_cut(self, node: Node, changes: Changes, size: int, slot: Slot) -> Callable[[], None]:
        """Its caller may be killed together with this daemon: the books are to follow the file all the same."""
        self._used(node.inode)
        fd = self.store.open(node, os.O_RDWR)
        slot.intend(Kind.CUT, node.inode, other=size)
        self._books.begin_shrinking(node.inode)
        return lambda: self._cut(node, fd, changes, size, slot)

    def _cut(self, node: Node, fd: int, changes: Changes, size: int, slot: Slot) -> None:
        """Without the lock: the kernel lets nobody else change the file until this is answered."""
        try:
            os.ftruncate(fd, size)  # the size changes at once, and then the pages go
            slot.reached(Point.HALFWAY)
            self._allocation.truncated_by(node.inode, fd, size)
            with self.lock:
                self._set_times(node, changes)
        finally:
            self._books.end_shrinking(node.inode)
            os.close(fd)

    def cut_before(self, node: Node, size: int) -> None:
        """A daemon before this one has cut the file to `size`, and perhaps not told its books."""
        self._allocation.truncated(node, size)

    def reserve(self, reservation: Reservation) -> None:
        """Without the lock."""
        self._growth.reserve(reservation)

    def reserve_again(self, node: Node, old_size: int, size: int, thread_id: int) -> None:
        """A daemon was killed while it reserved what a file had grown by."""
        tenant = self._callers.tenant_of(thread_id)
        self._growth.reserve(self._growth.reservation(node, old_size, size, tenant))

    # -- making and removing names -----------------------------------------------------------------------------------

    def make(self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, device: int) -> Found:
        self._room.afford()
        node, found = self.store.make(self.store.node(parent), name, mode, umask, uid, gid, device)
        self.store.refer(node)
        return node, found

    def make_directory(self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int) -> Found:
        self._room.afford()
        node, found = self.store.make_directory(self.store.node(parent), name, mode, umask, uid, gid)
        self.store.refer(node)
        return node, found

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int, thread_id: int) -> Found:
        tenant = self._callers.tenant_of(thread_id)
        self._room.afford(len(target))
        node, found = self.store.make_symlink(self.store.node(parent), name, target, uid, gid)
        if found.st_blocks:  # tmpfs keeps a long target in a page
            self._books.charge(node.inode, 0, found.st_blocks * syscalls.STAT_BLOCK_BYTES, tenant)
        self.store.refer(node)
        return node, found

    def link(self, inode: int, parent: int, name: bytes) -> Found:
        node = self.store.node(inode)
        if inode in self.store.removed and self.has_given_way(node):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self.store.stat(node)  # what wants a descriptor of it fails before there is a name
        self._room.afford()
        self.store.link(node, self.store.node(parent), name)
        self.store.refer(node)
        return node, self.store.stat(node)

    def unlink(self, parent: int, name: bytes) -> None:
        self._ended(self.store.unlink(self.store.node(parent), name))

    def unlink_unasked(self, parent: int, name: bytes) -> None:
        """As `unlink` of a last name, on our own account: nobody is answered, so no journal is kept."""
        node = self.store.set_aside(self.store.node(parent), name)
        if node.lookups == 0:
            self.forget(node.inode, 0)

    def remove_directory(self, parent: int, name: bytes) -> None:
        self.store.remove_directory(self.store.node(parent), name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self._ended(self.store.rename(self.store.node(parent), name, self.store.node(new_parent), new_name, flags))

    # -- open files --------------------------------------------------------------------------------------------------
    # A file's handle is its inode number: all opens of a file are alike, and one that outlives us needs no table.

    def create(self, parent: int, name: bytes, flags: int, mode: int, umask: int, uid: int, gid: int) -> Found:
        directory = self.store.node(parent)
        self._room.afford()
        try:
            node, found, fd = self.store.create(directory, name, mode, umask, uid, gid)
        except FileExistsError:  # made since the kernel looked it up
            if flags & os.O_EXCL:
                raise
            node, found = self.store.lookup(directory, name)
            try:
                self.open(node.inode, flags)
            except ContentOnDisk:  # the kernel then looks it up again and opens what it finds
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
            self.store.refer(node)
            return node, found
        return self._created(node, found, fd, flags)

    def create_nameless(self, parent: int, flags: int, mode: int, umask: int, uid: int, gid: int) -> Found:
        self._room.afford()
        return self._created(*self.store.create_nameless(self.store.node(parent), mode, umask, uid, gid), flags)

    def _created(self, node: Node, found: os.stat_result, fd: int, flags: int) -> Found:
        try:
            self._register(node, fd)
        except OSError:
            os.close(fd)
            raise
        self._files.put(node.inode, fd)  # who makes a file writes to it, as a rule
        node.opens, node.may_be_mapped, node.mappable = 1, True, _reads(flags)
        self.store.refer(node)
        return node, found

    def open(self, inode: int, flags: int) -> None:
        """Raises ContentOnDisk when it is to be brought back first; nothing has changed then."""
        node = self.store.node(inode)
        if inode in self.store.removed and self.has_given_way(node):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self._want_content(inode)
        if node.opens == 0 and not stat.S_ISREG(self.store.stat(node).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # the kernel asks for no other; a FIFO would keep us
        needs_backing = node.backing_id == 0 and self._device.backing is not None
        for_writing = flags & os.O_ACCMODE != os.O_RDONLY
        if needs_backing:
            self._room.afford_open()
        mappable = node.mappable or _reads(flags)
        if for_writing or needs_backing:
            # Inode flags may refuse to write (EPERM); reading goes with what they allow.
            fd = (
                self.store.open(node, os.O_RDWR | flags & os.O_APPEND)
                if for_writing
                else self.store.open_for_data(node)
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
        self.store.changed(node)
        self._opened.add(inode)
        self._used(inode)

    def take_opened(self) -> set[int]:
        """The files that were opened since the last call."""
        with self.lock:
            opened, self._opened = self._opened, set()
        return opened

    @contextmanager
    def watched(self, inode: int) -> Iterator[Callable[[], int]]:
        """How often a file was opened or truncated since, asked with the lock held. One at a time watches a file."""
        self._watched[inode] = 0
        try:
            yield lambda: self._watched[inode]
        finally:
            del self._watched[inode]

    def _used(self, inode: int) -> None:
        if inode in self._watched:
            self._watched[inode] += 1

    def has_given_way(self, node: Node) -> bool:
        """Of a file that has no name: whether it was removed to make room, and its content with it."""
        return _has_xattr(self.store.descriptor_path(node), GIVEN_WAY_MARK)

    def _want_content(self, inode: int) -> None:
        """Raises ContentOnDisk when the file was spilled."""
        if inode in self._spill:
            raise ContentOnDisk(inode)

    def bring_back(self, inode: int) -> None:
        """Without the lock: takes as long as the disk does."""
        needed_bytes = self._spill.files().get(inode, 0)
        self._growth.with_space(lambda: self._spill.bring_back(inode), needed_bytes, inode)

    def _register(self, node: Node, fd: int) -> None:
        backing = self._device.backing
        if backing is not None and node.backing_id == 0:
            node.backing_id = backing.register(fd)
            self._aftermath = self._aftermath._replace(opened_backing=node.backing_id)
            self.store.changed(node)

    def open_for_reading(self, inode: int, flags: int, thread_id: int) -> TenantId:
        """After `open`: the tenant, when the kernel is to serve this handle's reads itself; it uses the file then.

        NOBODY when reads are to come to us: they are exact by default, and must be where we could name nobody.
        """
        if not self._fast_reads or flags & os.O_ACCMODE != os.O_RDONLY or self.store.node(inode).backing_id == 0:
            return NOBODY
        tenant = self._callers.tenant_of(thread_id)
        self._aftermath = self._aftermath._replace(read_inode=inode, reader=tenant, handles=1)
        return tenant

    def release(self, inode: int, reader: TenantId) -> None:
        """A handle is closed; `reader` is what `open_for_reading` said of it."""
        node = self.store.node(inode)
        if not node.opens:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if node.opens == 1:
            self._book_strays(node)
        if reader != NOBODY:
            self._aftermath = Aftermath(read_inode=inode, reader=reader, handles=-1)
        node.opens -= 1
        if node.opens == 0:
            self._files.discard(inode)
            self._aftermath = self._aftermath._replace(closed_backing=node.backing_id)
            node.backing_id, node.mappable = 0, False
        self.store.changed(node)

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

    # -- extended attributes -----------------------------------------------------------------------------------------

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int, *, drop_set_gid: bool) -> None:
        """`drop_set_gid`: who set this ACL may not keep the set-gid bit, as with chmod(2)."""
        node = self.store.node(inode)
        path = self.store.descriptor_path(node)
        self._room.afford(len(value))
        if flags & os.XATTR_CREATE and not _has_xattr(path, name):
            self.store.slot.intend(Kind.MAKE_XATTR, inode, name=name)
        os.setxattr(path, name, value, flags)
        if name == _ACCESS_ACL:
            mode = self.store.stat(node).st_mode
            if drop_set_gid and mode & stat.S_ISGID:
                os.chmod(path, stat.S_IMODE(mode) & ~stat.S_ISGID)

    def xattr(self, inode: int, name: bytes) -> bytes:
        return os.getxattr(self.store.descriptor_path(self.store.node(inode)), name)

    def xattr_names(self, inode: int, *, privileged: bool) -> list[bytes]:
        names = map(os.fsencode, os.listxattr(self.store.descriptor_path(self.store.node(inode))))
        return [name for name in names if privileged or not name.startswith(b"trusted.")]

    def remove_xattr(self, inode: int, name: bytes) -> None:
        path = self.store.descriptor_path(self.store.node(inode))
        os.getxattr(path, name)  # ENODATA when there is none to remove
        self.store.slot.intend(Kind.REMOVE_XATTR, inode, name=name)
        os.removexattr(path, name)

    def inode_flags(self, inode: int, command: int, argument: bytearray) -> None:
        """Read or set inode flags (chattr(1)) with the ioctl `command`."""
        node = self.store.node(inode)
        with self.store.opened(node, os.O_RDONLY | os.O_NONBLOCK) as fd:
            fcntl.ioctl(fd, command, argument)
        if node.opens <= 1:  # by this call: the next descriptor has the access that is allowed then
            self._files.discard(inode)

    def make_room(self) -> None:
        """Close descriptors that can be opened anew, for a process that has none left; between two operations."""
        self.store.make_room()
        self.listings.make_room()

    def close(self) -> None:
        self.listings.close_all()
        self._callers.make_room()

    # -- helpers -----------------------------------------------------------------------------------------------------

    def gone(self, inode: int) -> None:
        """An inode leaves the store: nothing of ours may hold its pages, and the books close its account."""
        self._let_go(inode)
        self._books.drop(inode)

    def _let_go(self, inode: int) -> None:
        self._files.discard(inode)
        self._spill.forget(inode)

    def _ended(self, inode: int | None) -> None:
        """An inode without a name that the kernel does not know, if it is one: gone, or in removed/ if it is large."""
        if inode is not None:
            self.forget(inode, 0) if inode in self.store.removed else self.gone(inode)


def _reads(flags: int) -> bool:
    """Whether a file that is opened so can be mapped."""
    return flags & os.O_ACCMODE != os.O_WRONLY


def _has_xattr(path: str, name: bytes) -> bool:
    try:
        os.getxattr(path, name)
    except OSError:
        return False
    return True
