"""Upkeep: what comes again and again while a pool is served, each a task of its own.

Nothing here may end the service for want of a descriptor, or of a process that looks at others: what needs one is put
off until the next time.
"""

import gc
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.accounting.caps import Caps
from sharedfs.common.errors import SCARCE, first_error
from sharedfs.linux.looker import NoLooks
from sharedfs.linux.memory_limits import MemoryLimits
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.maintenance.pins import Pins
from sharedfs.maintenance.recharge import Recharge
from sharedfs.maintenance.unclaimed import Rule, UnclaimedFiles
from sharedfs.ops.data import DataPath
from sharedfs.pages.detached_pages import DetachedPages
from sharedfs.pages.mapping_scan import MappingScan
from sharedfs.pages.moved_charges import MovedCharges
from sharedfs.pages.reconcile import Reconcile
from sharedfs.pages.swap_scan import SwapScan
from sharedfs.pool.options import PoolOptions, UnclaimedRule
from sharedfs.storage.room import Room

log = logging.getLogger("sharedfs")

# A scan takes this part of our time, as far as a change of use can still be settled within two seconds.
_SCAN_SHARE = 0.05
_SWEEP_SHARE = 0.02  # and a look for unclaimed files, of a CPU
_TIDY_PAUSE_SECONDS = 0.1
_YOUNG_COLLECTIONS = 2  # each is of some 7,000 new objects: a millisecond or two
_LONGEST_SCAN_PAUSE_SECONDS = 1.0
_LONGEST_SWEEP_PAUSE_SECONDS = 5.0
_YIELD_SWEEP_PAUSE_SECONDS = 1.0  # who was unclaimed first goes first: so exactly

_EVENTS_BYTES = 64 << 10

Work = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Upkeep:
    """Of one pool. `options` are those in force, which a remount changes; `events` are None where there are none."""

    options: Callable[[], PoolOptions]
    books: Books
    data_path: DataPath
    callers: Callers
    events: TaskEvents | None
    reconcile: Reconcile
    moved: MovedCharges
    detached: DetachedPages
    mappings: MappingScan
    swap: SwapScan
    recharge: Recharge
    unclaimed: UnclaimedFiles
    pins: Pins
    limits: MemoryLimits
    room: Room
    _sweep_at: float = -math.inf

    def start(self, nursery: trio.Nursery) -> None:
        """Each task runs until `nursery` is cancelled. Raises what nobody foresaw."""
        tasks: tuple[tuple[str, Work, Callable[[float], float]], ...] = (
            ("looking for mappings", self._scan_mappings, self._scan_pause),
            ("looking after tenants", self._look_after_tenants, self._often),
            ("looking for pages in no file", self._look_for_detached, self._often),
            ("looking for what is in swap", self._look_for_swap, lambda took: max(self._often(), took / _SCAN_SHARE)),
            ("moving foreign pages", self._look_after_pages, self._often),
            ("emptying the page cache", self._empty_page_cache, self._often),
            ("tidying the books", self._tidy_books, lambda _: _TIDY_PAUSE_SECONDS),
        )
        for what, work, pause in tasks:
            nursery.start_soon(_keep, what, work, pause, name=what)
        nursery.start_soon(self._keep_aging, name="aging")
        nursery.start_soon(_keep, "looking at limits of memory", self._follow_limits, lambda _: 0.0, name="room")

    def _often(self, _took: float = 0.0) -> float:
        return self.options().scan_seconds

    def _scan_pause(self, took: float) -> float:
        return max(self._often(), min(took / _SCAN_SHARE, _LONGEST_SCAN_PAUSE_SECONDS))

    async def _scan_mappings(self) -> None:
        seen = await trio.to_thread.run_sync(self.mappings.scan, abandon_on_cancel=True)
        await trio.to_thread.run_sync(self.mappings.apply, seen)
        mapped = [(inode, pages) for (inode, _), pages in seen.items()]
        await trio.to_thread.run_sync(self.reconcile.keep_up, mapped, abandon_on_cancel=True)
        await trio.to_thread.run_sync(self.moved.look, [inode for inode, _ in mapped], abandon_on_cancel=True)

    async def _look_after_tenants(self) -> None:
        """Exit whose cgroup is gone: its pages are the other payers' from then on (I4)."""
        self.books.tenants.exit(self.books.tenants.dead())
        self.books.admission.keep_up(self._caps())
        if self.events is not None and not self.events.covers_all_cpus():
            log.warning("a CPU came or went: callers are looked up at each request from now on: slower")
            self.data_path.distrust_events()
            self.callers.distrust_events()
            self.events = None

    def _caps(self) -> Caps:
        options = self.options()
        cap, remainder = options.tenant_cap, options.remainder
        return Caps(
            pool_bytes=self.room.bound.bytes,
            cap_bytes=None if cap is None else cap.of(options.size_bytes),
            remainder_bytes=0 if remainder is None else remainder.of(options.size_bytes),
            unclaimed_yields=options.unclaimed is UnclaimedRule.YIELD,
        )

    async def _tidy_books(self) -> None:
        """Class keys, dead ids and the log of the books: nobody who makes such work waits for it."""
        keep_collections_short()
        if self.books.tidying.is_due:
            await trio.to_thread.run_sync(self.books.tidying.tidy, abandon_on_cancel=True)

    async def _keep_aging(self) -> None:
        """A touch counts for one to two halves of the idle time, a mapping for as long as it lasts."""
        while True:
            await trio.sleep(self.options().idle_seconds / 2)
            self.books.tidying.age()

    async def _follow_limits(self) -> None:
        """Have the pool's room follow them: at once when one is written, and as siblings use more or less."""
        with open(self.limits.watch(), "rb", buffering=0) as events:
            while True:
                with trio.move_on_after(self.room.pause_seconds):
                    await trio.lowlevel.wait_readable(events)
                    events.read(_EVENTS_BYTES)
                self.room.look()

    async def _look_for_detached(self) -> None:
        await trio.to_thread.run_sync(self.detached.look, abandon_on_cancel=True)

    async def _look_for_swap(self) -> None:
        await trio.to_thread.run_sync(self.swap.look, abandon_on_cancel=True)

    async def _look_after_pages(self) -> None:
        """Pages that others are charged for become the pool's own (I3); unclaimed files go by the rule."""
        if self.recharge.has_work:
            await trio.to_thread.run_sync(self.recharge.round, abandon_on_cancel=True)
        options = self.options()
        pause = _YIELD_SWEEP_PAUSE_SECONDS if options.unclaimed is UnclaimedRule.YIELD else options.grace_seconds / 4
        if trio.current_time() >= self._sweep_at:
            rule = Rule(options.unclaimed, options.grace_seconds)
            took = await trio.to_thread.run_sync(self.unclaimed.sweep, rule, self.pins, abandon_on_cancel=True)
            pause = max(min(_LONGEST_SWEEP_PAUSE_SECONDS, pause), took / _SWEEP_SHARE)
            self._sweep_at = trio.current_time() + pause

    async def _empty_page_cache(self) -> None:
        """What the kernel caches for a tenant is charged to it, and would make a zombie of its cgroup (I3)."""
        await trio.to_thread.run_sync(self.data_path.drop_page_cache, abandon_on_cancel=True)


def keep_collections_short() -> None:
    """Have Python's collector of cycles look only once at what stays.

    Now and then it looks at every object with the interpreter's lock held: 0.15 s with 200,000 files in the books.
    """
    if gc.get_count()[2] >= _YOUNG_COLLECTIONS:
        gc.collect()
        gc.freeze()


async def _keep(what: str, work: Work, pause: Callable[[float], float]) -> None:
    """Do it again and again; `pause` says for how long not, from how long it took."""
    while True:
        started = time.monotonic()
        try:
            await work()
        except* OSError as errors:  # a group, where a task runs beside the work; perhaps with what ends that task
            cause = first_error(errors)
            if not isinstance(cause, OSError) or cause.errno not in SCARCE:
                raise
            log.warning("%s is put off: %s", what, cause.strerror)
        except* NoLooks as faults:
            log.warning("%s is put off: %s", what, first_error(faults))
        await trio.sleep(pause(time.monotonic() - started))
