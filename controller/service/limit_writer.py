"""Carries out what settlement plans: journal first, then the writes, each in a thread of its own.

A lowering write blocks while the kernel reclaims. It holds up nobody but its own tenant, which is left alone until the
write is through; everybody else is settled meanwhile.

Limits that yield are told to the guard before they are lowered, with values that the journal has.

In a dry run nothing is written, neither to the kernel nor to the journal: what would be is said in the log, once.
"""

import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import trio

from controller.limits.cgroup_files import not_standing
from controller.limits.types import Account, KernelLimits, Limits, Order, managers_limits
from controller.persistence.state import Entry, State
from controller.service.guarding import Guarding
from controller.service.restore import restore
from controller.settlement.watching import Watch
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef

log = logging.getLogger(__name__)

WRITE_PATIENCE_SECONDS = 0.25
"""How long a settlement waits for its writes before it goes on without the slow ones."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What the kernel says of cgroups. `unreadable` ones live, but nothing can be known or done about their limits.

    `above` are cgroups above those asked for that have a limit, or a budget; they have an account too.
    """

    accounts: Mapping[CgroupRef, Account]
    gone: frozenset[CgroupRef]
    unreadable: frozenset[CgroupRef]
    above: frozenset[CgroupRef] = frozenset()


class Settler:
    """The one writer of limits. `entries` is the journal as it stands, with what we know beyond the disk."""

    def __init__(
        self,
        limits: KernelLimits,
        state: State,
        nursery: trio.Nursery,
        write_threads: int,
        guarding: Guarding | None = None,
        *,
        dry_run: bool = False,
    ) -> None:
        self.entries: dict[CgroupRef, Entry] = state.journal()
        self.writes = 0
        """Writes to the kernel's limit files since the start."""
        self.dry_run = dry_run
        self._limits = limits
        self._state = state
        self._guarding = guarding
        self._nursery = nursery
        self._threads = trio.CapacityLimiter(write_threads)
        self.disk = trio.CapacityLimiter(1)  # the database takes one thread at a time
        self._busy: dict[CgroupRef, trio.Event] = {}
        self._complaints: dict[CgroupRef | None, str] = {}
        self._told: dict[CgroupRef, Order] = {}

    @property
    def busy(self) -> frozenset[CgroupRef]:
        """Tenants with a write under way."""
        return frozenset(self._busy)

    async def read(
        self, cgroups: Iterable[CgroupRef], above: Iterable[str] = (), budgeted: Container[str] = ()
    ) -> Readings:
        """The accounts of `cgroups`, and of the cgroups at the paths `above` that have a limit or are `budgeted`."""
        return await trio.to_thread.run_sync(self._read, frozenset(cgroups), tuple(above), budgeted)

    def found(self, cgroup: CgroupRef, now: Limits) -> Limits:
        """What the manager of `cgroup` set, given that its limits are `now`."""
        entry = self.entries.get(cgroup)
        return now if entry is None else managers_limits(entry.found, entry.ours, now)

    async def carry_out(
        self,
        raising: Iterable[Order],
        lowering: Iterable[Order],
        found: Mapping[CgroupRef, Limits],
        watches: Mapping[CgroupRef, Watch] | None = None,
    ) -> None:
        """Raise, then lower. Returns when all is written, or when the slow writes have had their chance.

        `watches` are those that the guard is to keep, in place of all that it keeps.
        """
        raising = [order for order in raising if order.cgroup not in self._busy]
        lowering = [order for order in lowering if order.cgroup not in self._busy]
        if self.dry_run:
            for order in (*raising, *lowering):
                self._tell(order)
            return
        watches = {cgroup: watch for cgroup, watch in (watches or {}).items() if cgroup not in self._busy}
        orders = {order.cgroup: order for order in (*raising, *lowering)}
        for cgroup, watch in watches.items():
            entry = self.entries.get(cgroup)
            if cgroup not in orders and (entry is None or entry.raised[:1] != (watch.raised,)):
                orders[cgroup] = Order(cgroup, watch.lowered[0], watch.lowered[0])
        if not await self._announce(orders.values(), found, watches):
            return
        if self._guarding:
            await self._guarding.update(watches.values())
            # Without a guard, or when it had to raise at once, the next settlement decides anew.
            watched = self._guarding.watches if self._guarding.works else {}
            lowering = [order for order in lowering if order.cgroup not in watches or order.cgroup in watched]
        await self._confirm()
        await self._start(raising)
        await self._start(lowering)

    async def _confirm(self) -> None:
        """What the guard wrote, told to the manager that keeps limits itself."""
        while self._guarding and self._guarding.unconfirmed:
            cgroup = self._guarding.unconfirmed.pop()
            try:
                await trio.to_thread.run_sync(self._limits.confirm, cgroup)
            except HostFault as fault:
                self._complain(cgroup, str(fault))

    async def _announce(
        self, orders: Iterable[Order], found: Mapping[CgroupRef, Limits], watches: Mapping[CgroupRef, Watch]
    ) -> bool:
        """In the journal, and in our own copy of it; False when the disk refuses."""
        entries = []
        for order in orders:
            before, watch = self.entries.get(order.cgroup), watches.get(order.cgroup)
            kept = () if before is None else before.raised[:1]
            raised = kept if watch is None else tuple(dict.fromkeys((watch.raised, *kept)))
            entries.append(Entry(order.cgroup, found[order.cgroup], order.now, order.intended, raised))
        if not entries:
            return True
        rows = [(Order(entry.cgroup, entry.wrote, entry.intended), entry.found) for entry in entries]
        raised_by = {entry.cgroup: entry.raised for entry in entries}
        try:
            await trio.to_thread.run_sync(self._state.announce, rows, raised_by, limiter=self.disk)
        except HostFault as fault:  # a limit that the journal does not know of would never be put back (I6)
            self._complain(None, f"no limit is written: {fault}")
            return False
        self._complain(None, None)
        self.entries |= {entry.cgroup: entry for entry in entries}
        return True

    async def stop_watching(self, cgroups: Iterable[CgroupRef]) -> None:
        """The guard is to leave these alone, before anything else is decided of them."""
        if self._guarding:
            await self._guarding.update((), cgroups)

    async def forget(self, cgroups: Iterable[CgroupRef]) -> None:
        """Strike from the journal what is gone or as its manager left it."""
        idle = [cgroup for cgroup in cgroups if cgroup in self.entries and cgroup not in self._busy]
        if self.dry_run or not idle:
            return
        try:
            await trio.to_thread.run_sync(self._state.forget, idle, limiter=self.disk)
        except HostFault as fault:  # at the next settlement, then
            self._complain(None, str(fault))
            return
        for cgroup in idle:
            del self.entries[cgroup]
            self._complaints.pop(cgroup, None)

    async def restore_all(self) -> list[str]:
        """Put every limit back (I6), when the writes under way are through. Returns what could not be."""
        if self.dry_run:
            return []
        if self._guarding:
            await self._guarding.stop()
        for written in tuple(self._busy.values()):
            await written.wait()
        task = partial(restore, self._limits, self._state.forget, tuple(self.entries.values()))
        return await trio.to_thread.run_sync(task, limiter=self.disk, abandon_on_cancel=True)

    async def _start(self, orders: Iterable[Order]) -> None:
        started = []
        for order in orders:
            self._busy[order.cgroup] = written = trio.Event()
            started.append(written)
            self._nursery.start_soon(self._write, order, written, name=f"settle {order.cgroup.path}")
        with trio.move_on_after(WRITE_PATIENCE_SECONDS):
            for written in started:
                await written.wait()

    async def _write(self, order: Order, written: trio.Event) -> None:
        try:
            # Abandoned only when the service stops: the journal then still has the line, for `sharedctl restore`.
            apply = partial(self._limits.apply, order)
            outcome = await trio.to_thread.run_sync(apply, limiter=self._threads, abandon_on_cancel=True)
            self.writes += outcome.writes
            if outcome.limits == order.intended:
                self.entries[order.cgroup] = replace(self.entries[order.cgroup], wrote=order.intended)
            self._complain(order.cgroup, outcome.refused)
            if self._guarding:
                await self._guarding.look(order.cgroup)
        except HostFault as fault:
            self._complain(order.cgroup, str(fault))
        finally:
            del self._busy[order.cgroup]
            written.set()

    def _tell(self, order: Order) -> None:
        """Say what would be written, when it is another thing than last time."""
        if self._told.get(order.cgroup) != order:
            self._told[order.cgroup] = order
            directory = self._limits.hierarchy.directory(order.cgroup.path)
            for write in self._limits.writes(order):
                log.info("dry run: would write %s to %s", write.text, directory / write.file)

    def _complain(self, cgroup: CgroupRef | None, complaint: str | None) -> None:
        """Say what the host refuses, for a cgroup or for the journal, once and not at each settlement."""
        if complaint is None:
            self._complaints.pop(cgroup, None)
        elif self._complaints.get(cgroup) != complaint:
            if complaint not in self._complaints.values():  # of all tenants alike: once for all
                log.warning("%s", complaint)
            self._complaints[cgroup] = complaint

    def _read(self, cgroups: frozenset[CgroupRef], paths: Iterable[str], budgeted: Container[str]) -> Readings:
        if not self._limits.hierarchy.stands():
            self._complain(None, not_standing(self._limits.hierarchy))
            return Readings({}, frozenset(), cgroups)
        accounts = {}
        gone = set()
        unreadable = set()
        above = {cgroup for path in paths if (cgroup := self._above(path, budgeted)) is not None}
        for cgroup in cgroups | above:
            try:
                account = self._limits.read(cgroup)
            except HostFault as fault:
                unreadable.add(cgroup)
                self._complain(cgroup, str(fault))
                continue
            if account is None:
                gone.add(cgroup)
            else:
                accounts[cgroup] = account
        return Readings(accounts, frozenset(gone), frozenset(unreadable), frozenset(above) - gone)

    def _above(self, path: str, budgeted: Container[str]) -> CgroupRef | None:
        cgroup = self._limits.hierarchy.find(path)
        if cgroup is None or path in budgeted:
            return cgroup
        try:
            limits = self._limits.limits(cgroup)
        except HostFault as fault:
            self._complain(cgroup, str(fault))
            return None
        return None if limits is None or limits == Limits() else cgroup
