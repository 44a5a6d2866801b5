"""Mappings that were made and are gone before a scan looks: who made one is billed for its range.

The kernel tells of each mapping when it is made (`linux/mapping_events.py`). A scan that begins later sees what is left
of it in page tables, and knows the pages that were touched. Where nothing is left nobody can tell which pages were: all
of the range that there are count as touched once.

A tenant can make more mappings than anybody can take down. One thread does it, and uses a twentieth of a CPU at most;
records that it does not get to are lost, and are counted.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from sharedfs.accounting.books import Books
from sharedfs.common.errors import SCARCE
from sharedfs.ledger.page_ranges import PageRange, Runs, as_runs, merged, without
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import procfs
from sharedfs.linux.mapping_events import MappingEvents, NewMapping

_TAKE_SECONDS = 0.1
_RESTS = 20
"""Between two takings the thread rests so many times as long as the last one took of a CPU."""
_MOST_WAITING = 10_000
_MOST_RANGES = 64  # of one process and file; more are one range


class Made(NamedTuple):
    """By a process of a tenant, of a file."""

    process_id: int
    tenant: TenantId
    inode: int


class Gone(NamedTuple):
    """A tenant had these pages of a file mapped."""

    inode: int
    tenant: TenantId
    pages: list[PageRange]


class ShortMappings:
    """`last_tenant` says whose a thread was that has ended, as far as is known; NOBODY else.

    `begin_scan` and `gone` are for the thread of the mapping scan. `on_end` is told what nobody foresaw.
    """

    def __init__(
        self,
        books: Books,
        events: MappingEvents | None,
        last_tenant: Callable[[int], TenantId],
        on_end: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._books = books
        self._events = events
        self._last_tenant = last_tenant
        self._on_end = on_end
        self._lock = threading.Lock()
        self._waiting: dict[Made, list[PageRange]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mappings", daemon=True)
        self.lost = 0
        """How often records were lost."""

    @property
    def are_seen(self) -> bool:
        return self._events is not None

    def start(self) -> None:
        if self._events is not None:
            self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            began = time.thread_time()
            try:
                with self._lock:
                    self._take()
            except BaseException as error:
                if self._on_end is not None:
                    self._on_end(error)
                raise
            self._ended.wait(_RESTS * (time.thread_time() - began))
            assert self._events is not None
            self._events.wait(_TAKE_SECONDS)

    def _take(self) -> None:
        """Take down what was mapped until now. With the lock held: no scan begins between a record and its note."""
        if self._events is None:
            return
        found, is_lost = self._events.take()
        self.lost += is_lost
        own = os.getpid()
        for one in found:
            if one.process_id == own:
                continue
            try:
                self._note(one)
            except OSError as error:
                if error.errno not in SCARCE:
                    raise
                self.lost += 1

    def _note(self, one: NewMapping) -> None:
        tenant = self._tenant_of(one)
        if tenant == NOBODY:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self.lost += 1
            return
        ranges = self._waiting.setdefault(Made(one.process_id, tenant, one.inode), [])
        ranges.append((one.first_page, one.last_page))
        if len(ranges) > _MOST_RANGES:
            ranges[:] = _few(merged(ranges))

    def _tenant_of(self, one: NewMapping) -> TenantId:
        for number in (one.thread_id, one.process_id):
            # Of one that has ended and was not waited for cgroup v1 says that it is in the root.
            text = None if procfs.has_ended(f"/proc/{number}") else procfs.cgroup_of(f"/proc/{number}")
            tenant = self._last_tenant(number) if text is None else self._books.tenants.tenant_in(text)
            if tenant != NOBODY:
                return tenant
        return NOBODY

    # -- the scan ----------------------------------------------------------------------------------------------------

    def begin_scan(self) -> dict[Made, list[PageRange]]:
        """What waits for a scan that begins now."""
        with self._lock:
            self._take()
            waiting, self._waiting = self._waiting, {}
        return waiting

    def gone(
        self, waiting: Mapping[Made, list[PageRange]], mapped: Mapping[tuple[int, int], Runs], unseen: Iterable[int]
    ) -> list[Gone]:
        """What of `waiting` is mapped no more: a scan saw what each process maps of a file, but for those `unseen`.

        What these made waits for the next scan. One for each tenant and file, however many processes it had.
        """
        found, left_out = dict[tuple[int, TenantId], list[PageRange]](), set(unseen)
        for made, ranges in waiting.items():
            if made.process_id in left_out:
                with self._lock:
                    self._waiting.setdefault(made, []).extend(ranges)
                continue
            now = mapped.get((made.process_id, made.inode))
            left = as_runs(ranges) if now is None else without(as_runs(ranges), as_runs(now))
            if len(left):
                ranges_of = found.setdefault((made.inode, made.tenant), [])
                ranges_of += [(first, last) for first, last in left.tolist()]
        return [Gone(inode, tenant, merged(ranges)) for (inode, tenant), ranges in found.items()]


def _few(ranges: list[PageRange]) -> list[PageRange]:
    return ranges if len(ranges) <= _MOST_RANGES // 2 else [(ranges[0][0], ranges[-1][1])]
