"""Recharge: pages that the kernel charged to a cgroup that is gone become the pool's own, so that no zombie stays (I3).

A page fault in a hole charges the tenant (I2). When its cgroup is removed, these pages would keep it in the kernel. The
daemon has two ways to move them, and neither can lose a store, whoever makes it and however:

- A file that nobody has open or maps, as an exclusive lease proves, is copied, punched out and written again by the
  daemon, 64 KiB at a time. Requests wait meanwhile. The copy is where a kill does not reach it
  (`storage/move_buffer.py`).
- Of a file in use, windows of 2 MiB are collapsed into a huge page through a mapping of the daemon's
  (`huge_pages.collapse`): the kernel charges the daemon and lets nobody store between copy and exchange. Nobody is
  stopped and no request waits. Who uses the pages stays their user (`pages/page_moves.py`). The daemon then asks the
  kernel whom it charges, and only what it says is booked. Collapsing fills holes with pages, which the pool pays for:
  only windows with no more holes than pages to be moved are collapsed.

What can be moved in neither way stays foreign, is shown, and is tried again, later and later.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EAGAIN, EBUSY, EINVAL, ENOMEM, ENOSPC

from sharedfs.accounting.books import Books
from sharedfs.common.errors import HostFault
from sharedfs.common.units import format_size
from sharedfs.ledger.page_ranges import PageRange, byte_parts, common
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY
from sharedfs.linux import huge_pages, syscalls
from sharedfs.linux.page_charges import PageCharges
from sharedfs.ops.data import DataPath
from sharedfs.pages.page_moves import PageMoves, Round
from sharedfs.pages.reconcile import Reconcile
from sharedfs.storage.fault_injection import RECHARGE, Faults, Point
from sharedfs.storage.move_buffer import PUNCHED_BYTES, Punched
from sharedfs.storage.node import Node
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

QUIET_SECONDS = 0.1
"""Requests wait no longer for a file that nobody uses. 0.1 s is a slow frame; a batch of a few MiB takes a tenth."""
_ROUND_SECONDS = 0.3  # of collapsing, for which nobody waits

_SPARE_BYTES = 4 << 20  # room that nobody else can fill in that moment
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_WHY_NOT = {
    EAGAIN: "some of them are held by the kernel or a device (a pipe, io_uring, direct I/O)",
    EBUSY: "some of them are held by the kernel or a device (a pipe, io_uring, direct I/O)",
    EINVAL: "this kernel collapses no pages of a tmpfs (needs Linux 6.1 and huge pages that are not denied)",
    ENOMEM: "the kernel has no huge page to spare",
}


class CannotRecharge(Exception):
    """Not now, and why."""


@dataclass(slots=True)
class _Refusal:
    reason: str
    pause_seconds: float
    until: float


class Recharge:
    """For one pool. `pool_inode` is that of the cgroup that the daemon lives in. `round` is for one thread."""

    def __init__(
        self,
        store: Store,
        books: Books,
        data_path: DataPath,
        reconcile: Reconcile,
        moves: PageMoves,
        pool_inode: int,
        state: StateFiles,
        faults: Faults | None = None,
    ) -> None:
        self._store = store
        self._books = books
        self._data_path = data_path
        self._reconcile = reconcile
        self._moves = moves
        self._pool_inode = pool_inode
        self._punched = Punched(state)
        self._faults = faults
        self._refused: dict[int, _Refusal] = {}
        self._reached: dict[int, int] = {}  # where the window begins that is the next one's turn, by inode
        self.recharged_bytes = 0

    @property
    def stranded_bytes(self) -> int:
        """What the kernel still charges to removed cgroups. O(classes)."""
        return self._books.questions.bytes_where(_is_stray)

    @property
    def refusal(self) -> str:
        """Why pages stay foreign that should not, "" when none do."""
        return next((refusal.reason for refusal in list(self._refused.values())), "")

    def resume(self) -> None:
        """Put back what a killed daemon had punched out. Before any request is served; the pages stay foreign."""
        if self._punched.held is None:
            return
        inode, start = self._punched.held
        with suppress(FileNotFoundError), self._store.lock:  # it went, with its last user
            node = self._store.find(inode)
            with self._store.opened(node, os.O_RDWR) as fd:
                self._write(fd, start)
                syscalls.restore_times(fd, *self._punched.times_ns)
            log.warning("pages of inode %d were being moved when the daemon was killed: they are back", inode)
        self._punched.release()

    def round(self) -> None:
        """Recharge what can be in about _ROUND_SECONDS; the caller pauses for some times as long."""
        inodes = self._books.questions.files_where(_is_stray)
        self._refused = {inode: self._refused[inode] for inode in inodes if inode in self._refused}
        self._reached = {inode: self._reached[inode] for inode in inodes if inode in self._reached}
        with self._moves.round() as moves:
            started = time.monotonic()

            def is_over() -> bool:
                return time.monotonic() > started + moves.took_seconds + _ROUND_SECONDS

            for inode in inodes:
                refusal = self._refused.get(inode)
                if refusal is not None and time.monotonic() < refusal.until:
                    continue
                with suppress(FileNotFoundError):  # gone meanwhile
                    with self._store.lock:
                        node = self._store.find(inode)
                    self._try(node, moves, is_over)
                if is_over():
                    return

    def _try(self, node: Node, moves: Round, is_over: Callable[[], bool]) -> None:
        before = self.recharged_bytes
        reason = "nothing could be moved"
        try:
            if not self._recharge_unused(node):
                reason = self._recharge_used(node, moves, is_over) or reason
        except (CannotRecharge, HostFault, TimeoutError, OSError) as refusal:
            reason = str(refusal)
        if self.recharged_bytes > before:
            self._refused.pop(node.inode, None)
        elif self._books.questions.runs_where(node.inode, _is_stray):
            self._refuse(node, reason)

    def _refuse(self, node: Node, reason: str) -> None:
        known = self._refused.get(node.inode)
        pause = _FIRST_PAUSE_SECONDS if known is None else min(2 * known.pause_seconds, _LONGEST_PAUSE_SECONDS)
        if known is None:
            log.warning("pages of inode %d stay charged to a removed cgroup for now: %s", node.inode, reason)
        self._refused[node.inode] = _Refusal(reason, pause, time.monotonic() + pause)

    # -- a file in use -----------------------------------------------------------------------------------------------

    def _recharge_used(self, node: Node, moves: Round, is_over: Callable[[], bool]) -> str:
        """Collapse what can be, until the round is over; why a window is left, "" when none is."""
        huge_bytes = self._reconcile.huge_bytes
        if huge_bytes is None:
            return "the file is in use, and this kernel has no huge pages"
        reason = ""
        with PageCharges() as charges, self._store.opened(node, os.O_RDWR) as fd:
            windows, reached = list(self._windows(node, huge_bytes)), self._reached.pop(node.inode, 0)
            # From where the last round ended: windows that cannot be collapsed keep none of the others waiting.
            for start in sorted(windows, key=lambda start: (start < reached, start)):
                try:
                    self._collapse(node, fd, start, start + huge_bytes, moves, charges)
                except CannotRecharge as refusal:
                    reason = str(refusal)
                except OSError as error:
                    reason = f"the file is in use, and {_WHY_NOT.get(error.errno or 0, str(error))}"
                if is_over():
                    self._reached[node.inode] = start + huge_bytes
                    break
        return reason

    def _windows(self, node: Node, huge_bytes: int) -> Iterator[int]:
        """Where windows with pages to be moved begin, in bytes."""
        per_window = huge_bytes // self._books.page_bytes
        done = -1
        for first, last in self._books.questions.runs_where(node.inode, _is_stray):
            for window in range(max(first // per_window, done + 1), last // per_window + 1):
                done = window
                yield window * huge_bytes

    def _collapse(self, node: Node, fd: int, start: int, end: int, moves: Round, charges: PageCharges) -> None:
        page_bytes = self._books.page_bytes
        window = start // page_bytes, end // page_bytes - 1
        self._check_worth(node, fd, window)
        with self._books.changes.under_way(node.inode):
            with moves.moving(node.inode, *window):
                self._reconcile.collapse(fd, start, end)
                if set(charges.of_ranges(fd, [(start, min(end, os.fstat(fd).st_size))])) - {self._pool_inode}:
                    # A huge page that a tenant made: small ones of it can be collapsed.
                    huge_pages.collapse(fd, start, end, split=True)
                    self._reconcile.collapse(fd, start, end)
            with self._data_path.quiet(QUIET_SECONDS), self._store.lock:
                self._check_stays(node)
                there = self._reconcile.book_filled(node, fd, *window)
            charged = charges.of_ranges(fd, [(start, min(end, os.fstat(fd).st_size))])
            moved_bytes = _pages_in(common(self._books.questions.runs_where(node.inode, _is_stray), there)) * page_bytes
            if set(charged) - {self._pool_inode} or charged[self._pool_inode] < moved_bytes:
                raise CannotRecharge(
                    "the file is in use, and they are in a huge page that a tenant made and others map"
                )
            self._books.pages.recharge(node.inode, start, end)
            self.recharged_bytes += moved_bytes

    def _check_stays(self, node: Node) -> None:
        """ESTALE for a file that has gone, CannotRecharge where pages are being freed. With the store's lock held.

        A file that has gone may have its pages still, for the daemon has it open; the books have closed its account,
        and what is booked now stays booked. A long truncation or punch begins with the lock, and goes on without.
        """
        self._store.find(node.inode)
        if node.inode in self._books.changes.shrinking:
            raise CannotRecharge("pages of the file are being freed")

    def _check_worth(self, node: Node, fd: int, window: PageRange) -> None:
        """Raises CannotRecharge unless the window can be collapsed for no more than as many new pages as are moved."""
        page_bytes, size = self._books.page_bytes, os.fstat(fd).st_size
        last = min(window[1], -(-size // page_bytes) - 1)
        strays = _pages_in(common(self._books.questions.runs_where(node.inode, _is_stray), [window]))
        holes = _pages_in(self._books.questions.absent(node.inode, [(window[0], last)])) if window[0] <= last else 0
        if holes > strays:
            raise CannotRecharge(
                f"the file is in use, and pages {window[0]} to {window[1]} are mostly holes, which would become pages"
            )
        if self._store.tmpfs.free_bytes() < _SPARE_BYTES + holes * page_bytes:
            raise CannotRecharge(f"the pool has less than {format_size(_SPARE_BYTES + holes * page_bytes)} free")

    # -- a file that nobody uses -------------------------------------------------------------------------------------

    def _recharge_unused(self, node: Node) -> bool:
        """Recharge a file that nobody maps or has open; False when somebody does."""
        with self._data_path.quiet(QUIET_SECONDS), self._store.lock:
            if node.opens or self._store.is_open_elsewhere(node):
                return False
            self._rewrite(node, time.monotonic() + QUIET_SECONDS)
            return True

    def _rewrite(self, node: Node, deadline: float) -> None:
        """Move pages until `deadline`, and leave the file's times as they were. Nobody else can reach the file."""
        page_bytes = self._books.page_bytes
        self._check_stays(node)
        with self._store.opened(node, os.O_RDWR) as fd, self._books.changes.under_way(node.inode):
            found = os.fstat(fd)
            runs = self._books.questions.runs_where(node.inode, _is_stray)
            for start, end in byte_parts(runs, page_bytes, found.st_size, PUNCHED_BYTES):
                if time.monotonic() > deadline:
                    break
                self._rewrite_chunk(fd, found, start, end - start)
                self._books.pages.recharge(node.inode, start, end)
                self.recharged_bytes += -(-(end - start) // page_bytes) * page_bytes
            syscalls.restore_times(fd, found.st_atime_ns, found.st_mtime_ns)

    def _rewrite_chunk(self, fd: int, found: os.stat_result, start: int, length: int) -> None:
        if self._store.tmpfs.free_bytes() < _SPARE_BYTES:
            raise CannotRecharge(f"the pool has less than {format_size(_SPARE_BYTES)} free")
        if not self._store.tmpfs.room.has(2 * length):  # one of them a copy, for a while
            raise CannotRecharge("a limit of memory leaves the pool no room for them")
        self._punched.hold(fd, found, start, length)
        syscalls.punch_hole(fd, start, length)
        if self._faults is not None:
            self._faults.reached(RECHARGE, Point.HALFWAY)
        self._write(fd, start)
        self._punched.release()

    def _write(self, fd: int, start: int) -> None:
        content, written = self._punched.content, 0
        while written < len(content):
            try:
                written += os.pwrite(fd, content[written:], start + written)
            except OSError as error:  # the content is in no page
                if error.errno != ENOSPC:
                    raise
                log.warning("the pool filled up while a page was moved, and grows by %s", format_size(len(content)))
                self._store.tmpfs.grow(len(content))


def _is_stray(held: SharingClass) -> bool:
    return held.foreign and held.owner == NOBODY


def _pages_in(ranges: list[PageRange]) -> int:
    return sum(last - first + 1 for first, last in ranges)
