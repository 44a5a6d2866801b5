"""Charges that have moved: pages that the books have as the pool's, and for which the kernel charges somebody else.

A tenant that maps a file can have the kernel make a huge page of small ones (MADV_COLLAPSE), and is charged for it. It
can punch pages out (MADV_REMOVE) and fault others in their place, and is charged for these. Neither asks the daemon,
and the number of pages is the same afterwards. When that tenant goes, its cgroup would stay as a zombie. So the daemon
looks whom the kernel charges, and has it charge the pool again (`maintenance/recharge.py`); who owns and uses the pages
stays.

Where to look is told by two things that cost nothing. A punched file has another change time: it is compared with its
books by the page, for as many pages may have come elsewhere in it as went. And the pool's cgroup is
charged for less than the books have. What neither shows, because somebody pins as many pages that are in no file, is
found by going through all files that can be mapped, again and again, with a small part of a CPU.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import cycle, islice

import numpy as np

from sharedfs.accounting.books import Books
from sharedfs.common.errors import SCARCE
from sharedfs.common.lane import PAUSE_SECONDS
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.page_ranges import LAST_PAGE, NO_RUNS, PageRange, Runs, as_runs, common, without
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import TenantId
from sharedfs.pages.kernel_charges import PART_PAGES, Charged, KernelCharges
from sharedfs.pages.pool_charge import PoolCharge
from sharedfs.pages.reconcile import Reconcile
from sharedfs.storage.inodes import Inodes

# Of a CPU: to go through all files, where the change time of one that nobody maps tells of something, where that of one
# that is mapped does, and where the pool's charge does.
_ALWAYS_SHARE, _CHANGED_SHARE, _SUSPECT_SHARE, _ALARM_SHARE = 0.002, 0.005, 0.02, 0.2
_FIRST_SECONDS = 0.02  # may be spent at once: the first look is the dearest
_MOST_SECONDS = 0.1  # at a time
_WORK_SECONDS = 0.0002  # between two pauses
SLACK_BYTES = 1 << 20
"""By so much the pool's charge may be smaller than the books: both are read while files change."""
_FIRST_ALARM_SECONDS, _LAST_ALARM_SECONDS = 10.0, 600.0  # between two: twice as long after one that found nothing
_FILES_AT_ONCE = 50  # some 10 us each

_Queue = OrderedDict[int, None]
"""Files to be looked at, each once, the first one first."""


class MovedCharges:
    """Of one pool. `look` is for one thread, the rest safe from any."""

    def __init__(
        self,
        inodes: Inodes,
        books: Books,
        reconcile: Reconcile,
        charges: KernelCharges,
        charge: PoolCharge,
    ) -> None:
        self._inodes = inodes
        self._books = books
        self._reconcile = reconcile
        self.charges = charges
        self._charge = charge
        self._lock = threading.Lock()
        self._moved: dict[int, Runs] = {}
        self._mapped: frozenset[int] = frozenset()
        self._suspects = _Queue()
        self._changed = _Queue()
        self._round = _Queue()
        self._turns = cycle((self._suspects, self._changed, self._round))
        self._may_begin_round = True  # one at a look
        self._asked: list[int] = []
        self._changed_ns: dict[int, int] = {}
        self._under_way: Iterator[None] = iter(())
        self._seconds = _FIRST_SECONDS  # of CPU time, that may be spent
        self._looked_at = time.monotonic()
        self._lacked = False
        self._alarm_seconds, self._alarm_at = _FIRST_ALARM_SECONDS, 0.0
        self._found = False
        self.recharged_bytes = 0
        """Of foreign pages that a look found to be charged to the pool: what moved them had not booked it."""

    # -- what is known -----------------------------------------------------------------------------------------------

    def files(self) -> list[int]:
        """The files that have such pages."""
        with self._lock:
            return list(self._moved)

    def pages_of(self, inode: int) -> list[PageRange]:
        """Those of a file that are still the pool's in the books, ascending."""
        with self._lock:
            runs = self._moved.get(inode, NO_RUNS)
        return common([(first, last) for first, last in runs.tolist()], self._booked(inode)) if len(runs) else []

    @property
    def bytes(self) -> int:
        """All of them."""
        pages = sum(last - first + 1 for inode in self.files() for first, last in self.pages_of(inode))
        return pages * self._books.page_bytes

    def are_back(self, inode: int, first: int, last: int) -> None:
        """The kernel charges the pool for these pages again, or they are gone."""
        with self._lock:
            left = without(self._moved.pop(inode, NO_RUNS), as_runs([(first, last)]))
            if len(left):
                self._moved[inode] = left

    def _booked(self, inode: int, first: int = 0, last: int = LAST_PAGE) -> list[PageRange]:
        return self._books.questions.runs_where(inode, _is_the_pools, first, last)

    # -- looking -----------------------------------------------------------------------------------------------------

    def look(self, mapped: Iterable[int]) -> None:
        """After a mapping scan, which saw these inodes mapped. Takes 0.1 s of a CPU at most, and 0.2 s in all."""
        if not self.charges.are_told:
            return
        self._suspect_changed(frozenset(mapped))
        lacks = -self._charge.surplus_bytes() - self.bytes > SLACK_BYTES
        alarmed, self._lacked = lacks and self._lacked, lacks
        if alarmed:
            self._suspect_all()
        now = time.monotonic()
        self._seconds = min(_MOST_SECONDS, self._seconds + (now - self._looked_at) * self._share(alarmed))
        self._looked_at = now
        self._spend()

    def _share(self, alarmed: bool) -> float:
        """The part of a CPU that looks may take now."""
        if self._suspects:
            return _ALARM_SHARE if alarmed else _SUSPECT_SHARE
        return _CHANGED_SHARE if self._changed else _ALWAYS_SHARE

    def _suspect_changed(self, mapped: frozenset[int]) -> None:
        """Files with another change time than at the last look at them.

        Those that are mapped, or were at the look before; of others that can be mapped some at each look, for a mapping
        may come and go between two scans. The latter wait for the small part of a CPU: files are written all the time.
        """
        before, self._mapped = self._mapped, mapped
        if not self._asked:
            self._asked = self._mappable()
            known = mapped.union(self._asked)
            self._changed_ns = {inode: at for inode, at in self._changed_ns.items() if inode in known}
        some = [self._asked.pop() for _ in range(min(len(self._asked), _FILES_AT_ONCE))]
        for inode in (mapped | before).union(some):
            with suppress(OSError), self._inodes.lock:  # else it is gone
                changed_ns = self._inodes.stat(self._inodes.find(inode)).st_ctime_ns
                if self._changed_ns.get(inode) != changed_ns:
                    self._changed_ns[inode] = changed_ns
                    is_seen = inode in mapped or inode in before
                    (self._suspects if is_seen else self._changed)[inode] = None

    def _suspect_all(self) -> None:
        """All that can be mapped; those first that are."""
        now = time.monotonic()
        if now < self._alarm_at:
            return
        self._alarm_seconds = _FIRST_ALARM_SECONDS if self._found else min(_LAST_ALARM_SECONDS, 2 * self._alarm_seconds)
        self._alarm_at, self._found = now + self._alarm_seconds, False
        self._suspects.update(dict.fromkeys([*self._mapped, *self._mappable()]))

    def _spend(self) -> None:
        """Work for what may be spent, or to the end of the round. A pause costs as much as a look at a small file."""
        self._may_begin_round = True
        deadline = time.monotonic() + 2 * _MOST_SECONDS  # the next mapping scan waits
        while self._seconds > 0 and time.monotonic() < deadline:
            started = time.thread_time()  # that others take the CPU meanwhile costs nobody anything
            while (now := time.thread_time()) < started + _WORK_SECONDS:
                if next(self._under_way, self) is self and not self._begin_next():
                    self._seconds = 0.0
                    return
            self._seconds -= now - started
            time.sleep(PAUSE_SECONDS)

    def _mappable(self) -> list[int]:
        return [node.inode for node in list(self._inodes.nodes.values()) if node.may_be_mapped]

    def _begin_next(self) -> bool:
        """Begin to look at another file, by turns one of each queue; whether there is one."""
        if not self._round and self._may_begin_round:
            self._round.update(dict.fromkeys(self._mappable()))
            self._may_begin_round = False
        queue = next((queue for queue in islice(self._turns, 3) if queue), None)
        if queue is None:
            return False
        self._under_way = self._compare(queue.popitem(last=False)[0])
        return True

    def compare(self, inode: int) -> None:
        """Look at all of a file now. O(pages)."""
        for _ in self._compare(inode):
            pass

    def _compare(self, inode: int) -> Iterator[None]:
        """In pieces. A file that is gone has none."""
        for chunk in self._books.questions.chunks_of(inode, 0, LAST_PAGE):
            for first in range(chunk * PAGES_PER_CHUNK, (chunk + 1) * PAGES_PER_CHUNK, PART_PAGES):
                try:
                    self._compare_part(inode, (first, first + PART_PAGES - 1))
                except OSError as error:
                    if error.errno in SCARCE:
                        raise
                    with self._lock:
                        self._moved.pop(inode, None)
                    return
                yield

    def _compare_part(self, inode: int, part: PageRange) -> None:
        with self._inodes.lock:
            node = self._inodes.find(inode)
        with self._inodes.opened(node, os.O_RDONLY) as fd:
            self._reconcile.find_lost_in(inode, fd, part)
            charged = self.charges.of(fd, [part])
        self._book_foreign(inode, part, charged)
        moved = common(charged.elsewhere(), self._booked(inode, *part))
        with self._lock:
            left = without(self._moved.pop(inode, NO_RUNS), as_runs([part]))
            self._found |= bool(moved)
            if len(left) or moved:
                self._moved[inode] = as_runs(np.concatenate([left, as_runs(moved)]))

    def _book_foreign(self, inode: int, part: PageRange, charged: Charged) -> None:
        """Foreign pages are whose the kernel says. Not while they are being moved: who moves them books that."""
        if inode in self._books.changes.in_change:
            return
        page_bytes = self._books.page_bytes
        foreign = self._books.questions.runs_where(inode, lambda held: held.foreign, *part)
        for first, last in common(charged.of_pool(), foreign):
            self._books.pages.recharge(inode, first * page_bytes, (last + 1) * page_bytes)
            self.recharged_bytes += (last - first + 1) * page_bytes
        for tenant in charged.tenants if foreign else ():
            others = self._books.questions.runs_where(inode, partial(_is_anothers, tenant), *part)
            self._books.pages.take_foreign(inode, common(charged.pages_of(tenant), others), tenant)


def _is_the_pools(held: SharingClass) -> bool:
    return not held.foreign


def _is_anothers(tenant: TenantId, held: SharingClass) -> bool:
    return held.foreign and held.owner != tenant
