"""Sizes: a file is cut or grows, and the books follow. What takes long is done without the lock, before the answer."""

import os
from collections.abc import Callable

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.common.lane import LONG_BYTES
from sharedfs.linux import syscalls
from sharedfs.ops.recent_uses import RecentUses
from sharedfs.pages.allocation import Allocation
from sharedfs.pages.growth import Growth
from sharedfs.pages.spill import Spill
from sharedfs.storage.fault_injection import Point
from sharedfs.storage.journal import Kind, Slot
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

# A cut of more is made beside the request pump, as a reservation of LONG_BYTES is.
_SLOW_CUT_BYTES = 1 << 20
_LEFT, _NOW = (0, syscalls.UTIME_OMIT), (0, syscalls.UTIME_NOW)


class Sizes:
    """Call with the store's lock held, except for what says otherwise."""

    def __init__(
        self,
        store: Store,
        books: Books,
        allocation: Allocation,
        growth: Growth,
        callers: Callers,
        spill: Spill,
        uses: RecentUses,
    ) -> None:
        self._store = store
        self._books = books
        self._allocation = allocation
        self._growth = growth
        self._callers = callers
        self._spill = spill
        self._uses = uses

    def is_slow(self, inode: int, size: int) -> bool:
        """Whether the change makes or frees many pages, so that it is not for the thread that answers everybody."""
        node = self._store.node(inode)
        found = self._store.stat(node)
        if _is_slow_cut(found, size):
            return True
        return self._growth.bytes_of(node, found.st_size, size, size) > LONG_BYTES

    def change(
        self, node: Node, size: int, thread_id: int, slot: Slot, and_then: Callable[[], None], *, by_handle: bool
    ) -> Callable[[], None] | None:
        """Give a file a size; what is to be done without the lock before it is answered, if anything.

        `and_then` is called when the file has it, with the lock held. `by_handle`: who asks has it open for writing.
        """
        if _is_slow_cut(self._store.stat(node), size):
            return self._begin_cut(node, size, slot, and_then, by_handle=by_handle)
        rest = self._resize(node, size, thread_id, slot, by_handle=by_handle)
        and_then()
        return rest

    def _truncate(self, node: Node, size: int, *, by_handle: bool) -> None:
        """ftruncate(2) and O_TRUNC move the times also of a file that has the size, which Linux leaves to us.

        truncate(2) does not. It has no handle, but neither has O_TRUNC, so a cut to 0 is taken for one.
        """
        kept = self._store.access.kept(node) if by_handle else None
        if kept is None:
            os.truncate(self._store.descriptor_path(node), size)
            if by_handle or size == 0:
                syscalls.set_times(self._store.path_descriptor(node), _LEFT, _NOW)
            return
        try:
            os.ftruncate(kept, size)
        finally:
            os.close(kept)

    def _resize(
        self, node: Node, size: int, thread_id: int, slot: Slot, *, by_handle: bool
    ) -> Callable[[], None] | None:
        self._uses.truncated(node.inode)
        old_size = self._store.stat(node).st_size
        if size <= old_size:
            self._truncate(node, size, by_handle=by_handle)
            self._allocation.truncated(node, size)
            return None
        reservation = self._growth.begin(node, old_size, size, size, self._callers.tenant_of(thread_id))
        if reservation is None:
            self._truncate(node, size, by_handle=by_handle)
            return None
        try:
            # Once the file is longer, nobody can see how much of that is new.
            slot.intend(Kind.EXTEND, node.inode, directory=old_size, other=size, new_directory=thread_id)
            self._truncate(node, size, by_handle=by_handle)
        except OSError:
            self._growth.give_up(reservation)
            raise
        return lambda: self._growth.reserve(reservation)

    def _begin_cut(
        self, node: Node, size: int, slot: Slot, and_then: Callable[[], None], *, by_handle: bool
    ) -> Callable[[], None]:
        """Its caller may be killed together with this daemon: the books are to follow the file all the same."""
        self._uses.truncated(node.inode)
        kept = self._store.access.kept(node) if by_handle else None
        fd = self._store.open(node, os.O_RDWR) if kept is None else kept
        slot.intend(Kind.CUT, node.inode, other=size)
        self._books.changes.begin_shrinking(node.inode)
        return lambda: self._cut(node, fd, size, slot, and_then)

    def _cut(self, node: Node, fd: int, size: int, slot: Slot, and_then: Callable[[], None]) -> None:
        """Without the lock: the kernel lets nobody else change the file until this is answered."""
        try:
            os.ftruncate(fd, size)  # the size changes at once, and then the pages go
            slot.reached(Point.HALFWAY)
            self._allocation.truncated_by(node.inode, fd, size)
            with self._store.lock:
                and_then()
        finally:
            self._books.changes.end_shrinking(node.inode)
            os.close(fd)

    def cut_before(self, node: Node, size: int) -> None:
        """A daemon before this one has cut the file to `size`, and perhaps not told its books."""
        self._allocation.truncated(node, size)

    def reserve_again(self, node: Node, old_size: int, size: int, thread_id: int) -> None:
        """A daemon was killed while it reserved what a file had grown by."""
        tenant = self._callers.tenant_of(thread_id)
        self._growth.reserve(self._growth.reservation(node, old_size, size, tenant))

    def bring_back(self, inode: int) -> None:
        """Without the lock: takes as long as the disk does."""
        needed_bytes = self._spill.files().get(inode, 0)
        self._growth.with_space(lambda: self._spill.bring_back(inode), needed_bytes, inode)


def _is_slow_cut(found: os.stat_result, size: int) -> bool:
    return min(found.st_blocks * syscalls.STAT_BLOCK_BYTES, found.st_size - size) > _SLOW_CUT_BYTES
