"""Growth: memory for what a file gets by growing and nobody wrote, so that no page fault in it charges a tenant (I2).

ftruncate(2) makes such a part, and so does a write, a copy or an allocation beyond the end: the gap before it (numpy
makes a memmap by writing its last byte). Nobody asked for memory there, so what `--reserve`, the tenant's allowance
or the pool does not allow is no error: the part stays a hole. What is below the old end is as its writers left it.

A gap is filled where somebody can map it. Who writes a sparse file that nobody has opened for reading pays for no
holes.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sharedfs.accounting.books import Books
from sharedfs.common.errors import SCARCE
from sharedfs.ledger.tenant import TenantId
from sharedfs.linux import syscalls
from sharedfs.pages.allocation import Allocation
from sharedfs.pages.reaper import Reaper
from sharedfs.storage.inodes import Inodes
from sharedfs.storage.node import Node

# EPERM: of a file that chattr +i lets nobody allocate. Who has it open for writing may still make it larger.
_STAYS_SPARSE = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EPERM, *SCARCE})


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory that a file is to get from byte `start` (of a page) up to `end`, on the account of `tenant`.

    `taken_bytes` were taken from its allowance for that.
    """

    node: Node
    start: int
    end: int
    tenant: TenantId
    taken_bytes: int = 0


class GivesWay(Protocol):
    """Files that nobody pays for, where they go when space is short (`maintenance/giving_way.py`)."""

    def for_bytes(self, needed_bytes: int, spared: int, /) -> bool:
        """Free space for so many bytes, but not of the inode `spared`; whether any was freed."""

    def available_bytes(self) -> int:
        """How many bytes could be freed so."""


class Growth:
    """For one pool. Safe from any thread: the kernel lets in one change of a file at a time."""

    def __init__(
        self,
        inodes: Inodes,
        books: Books,
        allocation: Allocation,
        reserve_bytes: int,
        reaper: Reaper,
        giving_way: GivesWay,
    ) -> None:
        self._inodes = inodes
        self._books = books
        self._allocation = allocation
        self._reserve_bytes = reserve_bytes
        self._giving_way = giving_way
        self._reaper = reaper

    def bytes_of(self, node: Node, old_size: int, end: int, new_size: int) -> int:
        """How many bytes a file that grows to `new_size` gets between its old end and `end`."""
        free_bytes = self._inodes.tmpfs.free_bytes() + self._reaper.waiting_bytes
        lacking_bytes = new_size - old_size - free_bytes
        if lacking_bytes > 0:  # a daemon that was killed in it may have begun
            lacking_bytes -= self._unbooked_bytes(node)
        if new_size > self._reserve_bytes or (lacking_bytes > 0 and lacking_bytes > self._giving_way.available_bytes()):
            return 0
        return max(0, end - self._first_byte(old_size))

    def _unbooked_bytes(self, node: Node) -> int:
        with self._inodes.lock:
            held_bytes = self._inodes.stat(node).st_blocks * syscalls.STAT_BLOCK_BYTES
        return max(0, held_bytes - self._books.questions.resident_bytes_of(node.inode))

    def _first_byte(self, old_size: int) -> int:
        return -(-old_size // self._books.page_bytes) * self._books.page_bytes

    def reservation(self, node: Node, old_size: int, end: int, tenant: TenantId) -> Reservation:
        """Of what is between the old end and `end`, whatever the bounds are."""
        return Reservation(node, self._first_byte(old_size), end, tenant)

    def begin(self, node: Node, old_size: int, end: int, new_size: int, tenant: TenantId) -> Reservation | None:
        """What is to be reserved before anybody hears that the file grew; None where it stays sparse."""
        if not self.bytes_of(node, old_size, end, new_size):
            return None
        start = self._first_byte(old_size)
        try:
            taken_bytes = self._books.admission.take(node.inode, start, end, tenant)
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise
            return None
        return Reservation(node, start, end, tenant, taken_bytes)

    def give_up(self, reservation: Reservation) -> None:
        """The file does not grow after all."""
        self._books.admission.give_back(reservation.tenant, reservation.taken_bytes)

    def reserve(self, reservation: Reservation) -> None:
        """Allocate it; it stays sparse where that cannot be now."""
        try:
            self.with_space(
                lambda: self._allocate(reservation), reservation.end - reservation.start, reservation.node.inode
            )
        except OSError as error:
            if error.errno not in _STAYS_SPARSE:
                raise
        finally:
            self.give_up(reservation)

    def _allocate(self, reservation: Reservation) -> None:
        """Where no descriptor is left, those that can be opened anew are closed first."""
        node, mode = reservation.node, syscalls.FALLOC_FL_KEEP_SIZE
        try:
            self._allocation.allocate(node, mode, reservation.start, reservation.end, reservation.tenant)
        except OSError as error:
            if error.errno not in SCARCE:
                raise
            with self._inodes.lock:
                self._inodes.make_room()
            self._allocation.allocate(node, mode, reservation.start, reservation.end, reservation.tenant)

    def with_space(self, act: Callable[[], None], needed_bytes: int, inode: int) -> None:
        """Do `act`, which has changed nothing when it raises ENOSPC, again as long as others' files give way to it."""
        while True:
            try:
                return self._reaper.with_space(act)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._giving_way.for_bytes(needed_bytes, inode):
                    raise

    # -- gaps --------------------------------------------------------------------------------------------------------

    def gap_bytes(self, node: Node, size: int, offset: int, end: int) -> int:
        """How many bytes are to be reserved when a file of `size` is given bytes `offset`..`end`; 0 as a rule."""
        if offset <= size or not (node.mappable and node.backing_id):
            return 0
        return self.bytes_of(node, size, offset, end)

    def fill_gap(self, node: Node, size: int, offset: int, end: int, tenant: TenantId) -> None:
        """Reserve that, where the bounds allow it."""
        if self.gap_bytes(node, size, offset, end):
            reservation = self.begin(node, size, offset, end, tenant)
            if reservation is not None:
                self.reserve(reservation)

    def empty_gap(self, node: Node, size: int, offset: int) -> None:
        """What was to follow the gap failed, and the file has not grown."""
        start = self._first_byte(size)
        if start < offset:
            self._allocation.punch(node, syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, start, offset)
