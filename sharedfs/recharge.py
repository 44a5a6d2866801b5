"""Recharge: pages that the kernel charged to a cgroup that is gone become the pool's own, so that no zombie stays (I3).

A page fault in a hole charges the tenant (I2). When its cgroup is removed, these pages would keep it in the kernel. The
kernel moves no charge, so each page is copied, punched out, and written again by us, which charges the pool. The copy
is where a kill does not reach it (`punched.py`). Between these steps nobody may see the file or write to it:

- requests wait for us: the data path's and the namespace's (`DataPath.quiet`, the store's lock);
- who maps the file or has it open is stopped (`kernel/stopping.py`), for at most STANDSTILL_SECONDS a batch. Where
  nobody does, nobody is stopped.

What makes a batch impossible (somebody is traced already, or has the kernel write to its memory behind its back, or the
pool is full) leaves the pages foreign, and shown; it is tried again, later and later.
"""

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC

from sharedfs.books import Books
from sharedfs.datapath import DataPath
from sharedfs.faults import RECHARGE, Faults, Point
from sharedfs.inodes import Node
from sharedfs.kernel import proc, syscalls
from sharedfs.kernel.holders import does_asynchronous_io, holders_of
from sharedfs.kernel.stopping import CannotStop, Stopper
from sharedfs.model.ranges import byte_parts
from sharedfs.model.sharing import SharingClass
from sharedfs.model.tenant import NOBODY
from sharedfs.namespace import Namespace
from sharedfs.punched import PUNCHED_BYTES, Punched
from sharedfs.state import StateFiles
from sharedfs.store import Store
from sharedfs.units import format_size

log = logging.getLogger("sharedfs")

STANDSTILL_SECONDS = 0.1
"""Nobody is stopped for longer, but for what the scheduler takes, and requests wait no longer. 0.1 s is a slow frame;
a batch of a few MiB takes a tenth of it."""

_SPARE_BYTES = 4 << 20  # room that nobody else can fill in that moment
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


class CannotRecharge(Exception):
    """Not now, and why."""


@dataclass(slots=True)
class _Refusal:
    reason: str
    pause_seconds: float
    until: float


class Recharge:
    """For one pool. `device` is the mount's, by which its mappings are known. `round` is for one thread."""

    def __init__(
        self,
        store: Store,
        books: Books,
        data_path: DataPath,
        namespace: Namespace,
        device: tuple[int, int],
        state: StateFiles,
        faults: Faults | None = None,
    ) -> None:
        self._store = store
        self._books = books
        self._data_path = data_path
        self._namespace = namespace
        self._device = device
        self._punched = Punched(state)
        self._faults = faults
        self._refused: dict[int, _Refusal] = {}
        self.recharged_bytes = 0

    @property
    def is_due(self) -> bool:
        """O(classes)."""
        return self._books.bytes_where(_is_stray) > 0

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
                self._punched.merge(fd)
                self._write(fd, start)
                syscalls.restore_times(fd, *self._punched.times_ns)
            log.warning("pages of inode %d were being moved when the daemon was killed: they are back", inode)
        self._punched.release()

    def round(self) -> None:
        """Recharge what can be in about STANDSTILL_SECONDS; the caller pauses for some times as long."""
        inodes = self._books.files_where(_is_stray)
        self._refused = {inode: self._refused[inode] for inode in inodes if inode in self._refused}
        started = time.monotonic()
        for inode in inodes:
            refusal = self._refused.get(inode)
            if refusal is not None and time.monotonic() < refusal.until:
                continue
            try:
                with self._store.lock:
                    node = self._store.find(inode)
            except OSError:
                continue  # gone meanwhile
            self._try(node)
            if time.monotonic() - started > STANDSTILL_SECONDS:
                return

    def _try(self, node: Node) -> None:
        before = self.recharged_bytes
        try:
            if not self._recharge_unused(node):
                # A thread's end lets go on whoever it has stopped, whatever went wrong.
                with ThreadPoolExecutor(max_workers=1, thread_name_prefix="recharge") as lane:
                    lane.submit(self._recharge_used, node).result()
        except (CannotRecharge, CannotStop, TimeoutError, OSError) as reason:
            self._refuse(node, str(reason))
        else:
            if self.recharged_bytes > before:
                self._refused.pop(node.inode, None)
            else:
                self._refuse(node, "nothing could be moved")

    def _refuse(self, node: Node, reason: str) -> None:
        known = self._refused.get(node.inode)
        pause = _FIRST_PAUSE_SECONDS if known is None else min(2 * known.pause_seconds, _LONGEST_PAUSE_SECONDS)
        if known is None:
            log.warning("pages of inode %d stay charged to a removed cgroup for now: %s", node.inode, reason)
        self._refused[node.inode] = _Refusal(reason, pause, time.monotonic() + pause)

    def _recharge_unused(self, node: Node) -> bool:
        """Recharge a file that nobody maps or has open; False when somebody does."""
        with self._data_path.quiet(STANDSTILL_SECONDS), self._store.lock:
            if node.opens or self._store.is_open_elsewhere(node):
                return False
            self._rewrite(node, time.monotonic() + STANDSTILL_SECONDS)
            return True

    def _recharge_used(self, node: Node) -> None:
        with self._namespace.watched(node.inode) as opened, _stopped_holders(node.inode, self._device) as stopped_at:
            deadline = stopped_at + STANDSTILL_SECONDS
            with self._data_path.quiet(deadline - time.monotonic()), self._store.lock:
                if opened():
                    raise CannotRecharge("the file was opened meanwhile")
                self._rewrite(node, deadline)

    def _rewrite(self, node: Node, deadline: float) -> None:
        """Move pages until `deadline`, and leave the file's times as they were. Nobody else can reach the file."""
        page_bytes = self._books.page_bytes
        with self._store.opened(node, os.O_RDWR) as fd:
            found = os.fstat(fd)
            runs = self._books.runs_where(node.inode, _is_stray)
            for start, end in byte_parts(runs, page_bytes, found.st_size, PUNCHED_BYTES):
                if time.monotonic() > deadline:
                    break
                self._rewrite_chunk(fd, found, start, end - start)
                self._books.recharge(node.inode, start, end)
                self.recharged_bytes += -(-(end - start) // page_bytes) * page_bytes
            syscalls.restore_times(fd, found.st_atime_ns, found.st_mtime_ns)

    def _rewrite_chunk(self, fd: int, found: os.stat_result, start: int, length: int) -> None:
        pool = os.fstatvfs(fd)
        if pool.f_bavail * pool.f_frsize < _SPARE_BYTES:
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


@contextmanager
def _stopped_holders(inode: int, device: tuple[int, int]) -> Iterator[float]:
    """Everybody who maps or has open the file stands still; since when. Raises CannotStop, CannotRecharge."""
    known = set(proc.process_ids())
    holders = holders_of(inode, device, known)
    for process in holders:
        if does_asynchronous_io(process):
            raise CannotRecharge(f"process {process} has asynchronous I/O that may be under way into the file's pages")
    stopper = Stopper(time.monotonic() + STANDSTILL_SECONDS)
    try:
        while holders:
            stopper.stop(holders)
            new = set(proc.process_ids()) - known  # children that were made before their parent stood still
            known |= new
            holders = holders_of(inode, device, new)
        yield stopper.stopped_at or time.monotonic()
    finally:
        stopper.release()


def _is_stray(held: SharingClass) -> bool:
    return held.foreign and held.owner == NOBODY
