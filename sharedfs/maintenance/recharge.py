"""Recharge: pages that the kernel charges to a cgroup that is gone become the pool's own, so that no zombie stays (I3).

A page fault in a hole charges the tenant (I2). When its cgroup is removed, these pages would keep it in the kernel. So
would those whose charge a tenant moved to itself (`pages/moved_charges.py`), which go back at once. The daemon has the
kernel collapse windows of 2 MiB into a huge page through a mapping of its own (`huge_pages.collapse`): the kernel
charges the daemon, and lets nobody store between copy and exchange, whoever stores and however. The daemon then asks
the kernel whom it charges, and only what it says is booked. Collapsing fills holes with pages:

- Of a file that nobody has open or maps, as an exclusive lease proves, they are punched out again. Requests wait
  meanwhile (`pages/unused_windows.py`).
- Of a file in use they stay, and the pool pays for them: only windows with no more holes than pages to be moved are
  collapsed. Nobody is stopped and no request waits. Who uses the pages stays their user (`pages/page_moves.py`).

A kernel without huge pages collapses nothing. There a file that nobody uses is copied, punched out and written again
by the daemon, 64 KiB at a time. The copy is where a kill does not reach it (`storage/move_buffer.py`). That loses
stores of who has pinned its pages (a buffer of io_uring, a device): a lease does not know of these.

What cannot be moved stays foreign, is shown, and is tried again, later and later.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOSPC

from sharedfs.accounting.books import Books
from sharedfs.common.errors import HostFault
from sharedfs.common.units import format_size
from sharedfs.ledger.page_ranges import PageRange, byte_parts, common, merged
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import huge_pages, syscalls
from sharedfs.maintenance.pins import QUIET_SECONDS
from sharedfs.ops.data import DataPath
from sharedfs.pages.moved_charges import MovedCharges
from sharedfs.pages.page_moves import PageMoves, Round
from sharedfs.pages.reconcile import Reconcile
from sharedfs.pages.unused_windows import SPARE_BYTES, CannotMove, UnusedWindows, why_not_collapsed
from sharedfs.storage.fault_injection import RECHARGE, Faults, Point
from sharedfs.storage.move_buffer import PUNCHED_BYTES, Punched
from sharedfs.storage.node import Node
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

_ROUND_SECONDS = 0.3  # of collapsing, for which nobody waits

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


@dataclass(slots=True)
class _Refusal:
    reason: str
    pause_seconds: float
    until: float


class Recharge:
    """For one pool. `round` is for one thread."""

    def __init__(
        self,
        store: Store,
        books: Books,
        data_path: DataPath,
        reconcile: Reconcile,
        moves: PageMoves,
        unused_windows: UnusedWindows,
        moved: MovedCharges,
        state: StateFiles,
        faults: Faults | None = None,
    ) -> None:
        self._store = store
        self._books = books
        self._data_path = data_path
        self._reconcile = reconcile
        self._moves = moves
        self._moved = moved
        self._charges = moved.charges
        self._unused_windows = unused_windows
        self._punched = Punched(state)
        self._faults = faults
        self._refused: dict[int, _Refusal] = {}
        self._reached: dict[int, int] = {}  # where the window begins that is the next one's turn, by inode
        self.recharged_bytes = 0

    @property
    def has_work(self) -> bool:
        """Whether a removed cgroup, or one that let charges move, is charged for pages. O(classes)."""
        return bool(self.stranded_bytes or self._moved.files())

    @property
    def stranded_bytes(self) -> int:
        """What the kernel still charges to removed cgroups. O(classes)."""
        return self._books.questions.bytes_where(_is_stray)

    @property
    def refusal(self) -> str:
        """Why pages stay foreign that should not, "" when none do."""
        return next((refusal.reason for refusal in list(self._refused.values())), "")

    def resume(self) -> None:
        """Put right what a killed daemon was moving. Before any request is served; the pages stay foreign."""
        inode = self._unused_windows.resume()
        if self._punched.held is not None:
            inode, start = self._punched.held
            with suppress(FileNotFoundError), self._store.lock:  # it went, with its last user
                node = self._store.find(inode)
                with self._store.opened(node, os.O_RDWR) as fd:
                    self._write(fd, start)
                    syscalls.restore_times(fd, *self._punched.times_ns)
            self._punched.release()
        if inode is not None:
            log.warning("pages of inode %d were being moved when the daemon was killed: they are back", inode)

    def round(self) -> None:
        """Recharge what can be in about _ROUND_SECONDS; the caller pauses for some times as long."""
        strays = self._books.questions.files_where(_is_stray) if self.stranded_bytes else []
        inodes = list(dict.fromkeys([*strays, *self._moved.files()]))
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
                self._try(inode, moves, is_over)
                if is_over():
                    return

    def _try(self, inode: int, moves: Round, is_over: Callable[[], bool]) -> None:
        before = self.recharged_bytes
        try:
            with self._store.lock:
                node = self._store.find(inode)  # ESTALE: it is gone meanwhile, and the books have none of its pages
            reason = self._recharge_unused(node)
            if reason is None:
                reason = self._recharge_used(node, moves, is_over)
        except (CannotMove, HostFault, TimeoutError, OSError) as refusal:
            reason = str(refusal)
        if self.recharged_bytes > before:
            self._refused.pop(inode, None)
        elif self._pages_of(inode):
            self._refuse(inode, reason or "nothing could be moved")

    def _refuse(self, inode: int, reason: str) -> None:
        known = self._refused.get(inode)
        pause = _FIRST_PAUSE_SECONDS if known is None else min(2 * known.pause_seconds, _LONGEST_PAUSE_SECONDS)
        if known is None:
            log.warning("pages of inode %d stay charged to a cgroup that is not the pool's: %s", inode, reason)
        self._refused[inode] = _Refusal(reason, pause, time.monotonic() + pause)

    # -- a file in use -----------------------------------------------------------------------------------------------

    def _recharge_used(self, node: Node, moves: Round, is_over: Callable[[], bool]) -> str:
        """Collapse what can be, until the round is over; why a window is left, "" when none is."""
        huge_bytes = self._reconcile.huge_bytes
        if huge_bytes is None:
            return "the file is in use, and this kernel has no huge pages"
        self._charges.check_told()
        with self._store.opened(node, os.O_RDWR) as fd:

            def collapse(start: int) -> None:
                try:
                    self._collapse(node, fd, start, start + huge_bytes, moves)
                except OSError as error:
                    raise CannotMove(f"the file is in use, and {why_not_collapsed(error)}") from error

            return self._each_window(node, huge_bytes, collapse, is_over)

    def _each_window(
        self, node: Node, huge_bytes: int, move: Callable[[int], None], is_over: Callable[[], bool]
    ) -> str:
        """Move what can be, until the time is over; why a window is left, "" when none is.

        From where the last round ended: windows that cannot be moved keep none of the others waiting.
        """
        reason, reached = "", self._reached.pop(node.inode, 0)
        for start in sorted(self._windows(node, huge_bytes), key=lambda start: (start < reached, start)):
            try:
                move(start)
            except CannotMove as refusal:
                reason = str(refusal)
            if is_over():
                self._reached[node.inode] = start + huge_bytes
                break
        return reason

    def _windows(self, node: Node, huge_bytes: int) -> Iterator[int]:
        """Where windows with pages to be moved begin, in bytes."""
        per_window = huge_bytes // self._books.page_bytes
        done = -1
        for first, last in self._pages_of(node.inode):
            for window in range(max(first // per_window, done + 1), last // per_window + 1):
                done = window
                yield window * huge_bytes

    def _collapse(self, node: Node, fd: int, start: int, end: int, moves: Round) -> None:
        page_bytes = self._books.page_bytes
        window = start // page_bytes, end // page_bytes - 1
        holes = self._check_worth(node, fd, window)
        maker = self._who_moved(node.inode, fd, window) if holes else NOBODY
        with self._books.changes.under_way(node.inode):
            with moves.moving(node.inode, *window):
                self._reconcile.collapse(fd, start, end)
                if self._charges.of(fd, [window]).tenants:
                    # A huge page that a tenant made: small ones of it can be collapsed.
                    huge_pages.collapse(fd, start, end, split=True)
                    self._reconcile.collapse(fd, start, end)
            with self._data_path.quiet(QUIET_SECONDS), self._store.lock:
                self._check_stays(node)
                there = self._reconcile.book_filled(node, fd, *window, maker)
            self._book_moved(node, fd, start, end, there)

    def _who_moved(self, inode: int, fd: int, window: PageRange) -> TenantId:
        """Whom the kernel charges for most of what is to be moved; NOBODY when that one is gone.

        Holes that are filled are that one's: who moves charges into every other page does not get the rest for nothing.
        """
        charged = self._charges.of(fd, common(self._pages_of(inode), [window]))
        return max(charged.tenants, key=lambda tenant: _pages_in(charged.pages_of(tenant)), default=NOBODY)

    def _book_moved(self, node: Node, fd: int, start: int, end: int, there: list[PageRange]) -> None:
        """Of a window of which these pages are there: they are the pool's, when the kernel says so."""
        page_bytes = self._books.page_bytes
        asked = common(there, [(start // page_bytes, -(-end // page_bytes) - 1)])
        charged = self._charges.of(fd, asked)
        foreign = self._books.questions.runs_where(node.inode, _is_foreign)  # those of live tenants went along
        moved = common(merged([*foreign, *self._moved.pages_of(node.inode)]), asked)
        if charged.tenants or _pages_in(charged.of_pool()) < _pages_in(moved):
            raise CannotMove("they are in a huge page that a tenant made, and others map it or hold it")
        self._are_the_pools(node.inode, start, end)
        self.recharged_bytes += _pages_in(moved) * page_bytes

    def _are_the_pools(self, inode: int, start: int, end: int) -> None:
        self._books.pages.recharge(inode, start, end)
        self._moved.are_back(inode, start // self._books.page_bytes, -(-end // self._books.page_bytes) - 1)

    def _pages_of(self, inode: int) -> list[PageRange]:
        """The pages of a file that the kernel is to charge to the pool, and does not."""
        strays = self._books.questions.runs_where(inode, _is_stray)
        moved = self._moved.pages_of(inode)
        return merged([*strays, *moved]) if moved else strays

    def _check_stays(self, node: Node) -> None:
        """ESTALE for a file that has gone, CannotMove where pages are being freed. With the store's lock held.

        A file that has gone may have its pages still, for the daemon has it open; the books have closed its account,
        and what is booked now stays booked. A long truncation or punch begins with the lock, and goes on without.
        """
        self._store.find(node.inode)
        if node.inode in self._books.changes.shrinking:
            raise CannotMove("pages of the file are being freed")

    def _check_worth(self, node: Node, fd: int, window: PageRange) -> int:
        """The new pages that a collapse would make: no more than are moved. CannotMove where it would be more."""
        page_bytes, size = self._books.page_bytes, os.fstat(fd).st_size
        last = min(window[1], -(-size // page_bytes) - 1)
        strays = _pages_in(common(self._pages_of(node.inode), [window]))
        holes = _pages_in(self._books.questions.absent(node.inode, [(window[0], last)])) if window[0] <= last else 0
        if holes > strays:
            raise CannotMove(
                f"the file is in use, and pages {window[0]} to {window[1]} are mostly holes, which would become pages"
            )
        if self._store.tmpfs.free_bytes() < SPARE_BYTES + holes * page_bytes:
            raise CannotMove(f"the pool has less than {format_size(SPARE_BYTES + holes * page_bytes)} free")
        return holes

    # -- a file that nobody uses -------------------------------------------------------------------------------------

    def _recharge_unused(self, node: Node) -> str | None:
        """Recharge a file that nobody maps or has open; None when somebody does, else as `_each_window`."""
        with self._data_path.quiet(QUIET_SECONDS), self._store.lock:
            if node.opens or self._store.is_open_elsewhere(node):
                return None
            self._check_stays(node)
            deadline = time.monotonic() + QUIET_SECONDS
            with self._store.opened(node, os.O_RDWR) as fd, self._books.changes.under_way(node.inode):
                if self._unused_windows.can_be_moved():
                    return self._move_windows(node, fd, lambda: time.monotonic() > deadline)
                self._rewrite(node, fd, deadline)
                return ""

    def _move_windows(self, node: Node, fd: int, is_over: Callable[[], bool]) -> str:
        window_bytes, page_bytes = self._unused_windows.bytes, self._books.page_bytes
        assert window_bytes is not None
        size = -(-os.fstat(fd).st_size // page_bytes) * page_bytes
        self._charges.check_told()

        def move(start: int) -> None:
            if start >= size:
                raise CannotMove("they are beyond the end of the file")
            try:
                there = self._unused_windows.move(node, fd, start)
            except OSError as error:
                raise CannotMove(why_not_collapsed(error)) from error
            self._book_moved(node, fd, start, min(start + window_bytes, size), there)

        return self._each_window(node, window_bytes, move, is_over)

    def _rewrite(self, node: Node, fd: int, deadline: float) -> None:
        """Move pages until `deadline` by copying, and leave the file's times as they were. Stores by a pin are lost."""
        page_bytes, found = self._books.page_bytes, os.fstat(fd)
        runs = self._pages_of(node.inode)
        for start, end in byte_parts(runs, page_bytes, found.st_size, PUNCHED_BYTES):
            if time.monotonic() > deadline:
                break
            self._rewrite_chunk(fd, found, start, end - start)
            self._are_the_pools(node.inode, start, end)
            self.recharged_bytes += -(-(end - start) // page_bytes) * page_bytes
        syscalls.restore_times(fd, found.st_atime_ns, found.st_mtime_ns)

    def _rewrite_chunk(self, fd: int, found: os.stat_result, start: int, length: int) -> None:
        if self._store.tmpfs.free_bytes() < SPARE_BYTES:
            raise CannotMove(f"the pool has less than {format_size(SPARE_BYTES)} free")
        if not self._store.tmpfs.room.has(2 * length):  # one of them a copy, for a while
            raise CannotMove("a limit of memory leaves the pool no room for them")
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


def _is_foreign(held: SharingClass) -> bool:
    return held.foreign


def _is_stray(held: SharingClass) -> bool:
    return held.foreign and held.owner == NOBODY


def _pages_in(ranges: list[PageRange]) -> int:
    return sum(last - first + 1 for first, last in ranges)
