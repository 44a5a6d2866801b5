"""The controller: asks the pools, bills, settles, remembers, and puts everything back when it stops.

One task settles, at each interval and whenever somebody asks; everybody else reads its last snapshot. A question is
answered from a settlement that began after it was asked, so the answer holds what the asker did before.
"""

import logging
import posixpath
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import trio

from controller import answers
from controller.api_types import (
    Bills,
    BudgetState,
    ExitForecast,
    Explanation,
    FileUsers,
    Handover,
    Health,
    HistoryEntry,
    Policies,
    PolicyState,
    Unclaimed,
    UsageHistory,
    WritePlan,
)
from controller.billing.admission import marks
from controller.billing.ancestors import above, due_at
from controller.billing.bill import add_up, due_by_pool, due_bytes, make_bill, swap_due_bytes
from controller.billing.books import without
from controller.billing.inheritance import Inheritance
from controller.billing.meter import Meter
from controller.billing.planner import Planner
from controller.billing.policies.designated import Designated
from controller.billing.policies.policy import Policy
from controller.billing.policies.registry import policy_to_settle
from controller.billing.settlement import Position, raises
from controller.billing.whatif import what_if_exit
from controller.config import Config
from controller.debts import KeptDebts
from controller.feed_client import Feed, Page, PoolGone, PoolSilent
from controller.guarding import Guarding
from controller.history import History
from controller.known import KnownTenants
from controller.limits.types import Account, KernelLimits, Limits, Order
from controller.liveness import is_populated
from controller.mistakes import NotOursToSet, UnknownName
from controller.names import Names
from controller.pools import Pools
from controller.settler import Settler
from controller.snapshot import Snapshot
from controller.state import Budget, State
from sharedfs import __version__
from sharedfs.errors import BrokenInvariant, CallerMistake, HostFault
from sharedfs.kernel.cgroups import CgroupRef, raw_path, readable

log = logging.getLogger(__name__)

ALLOWED_SECONDS, ALLOWED_INTERVALS = 5.0, 10
"""How long allowances are good for when we are gone: long enough for a restart of the controller, and too short for
somebody to wonder why a tenant cannot write while nobody moves its limit."""


HISTORY_SECONDS = 5.0
"""So often the history is written: what a killed controller loses of it at most."""


class Controller:
    def __init__(
        self,
        config: Config,
        limits: KernelLimits,
        state: State,
        history: History,
        pools_directory: Path,
        nursery: trio.Nursery,
        *,
        dry_run: bool = False,
    ) -> None:
        self._config = config
        self._limits = limits
        self._hierarchy = limits.hierarchy
        self._state = state
        ordered = state.policy()
        self._policy = self._make_policy(*(ordered or (config.policy, None)))
        self._budgets = state.budgets()
        self._pools = Pools(pools_directory, config.pool_patience_seconds, nursery)
        self.guarding = Guarding(limits, config.interval_seconds, self._settle_now)
        self._settler = Settler(limits, state, nursery, config.write_threads, self.guarding, dry_run=dry_run)
        self._planner = Planner(limits.hierarchy.version, config.rules, state.needs())
        self._inheritance = Inheritance(state.own())
        self._known = KnownTenants(state)
        self._names = Names(limits.hierarchy)
        self._looking = threading.Lock()
        self._debts = KeptDebts(state)
        self._planner.ages.since.update(self._debts.since(trio.current_time()))
        self._history = history
        self._written_seconds = trio.current_time()
        self._meter = Meter()
        self._begun = 0
        self._snapshot: Snapshot | None = None
        self._wanted = trio.Event()
        self._settled = trio.Event()
        self._broken: BrokenInvariant | None = None

    # -- the settling task

    async def keep_settling(self) -> None:
        """Settle at each interval, and at once when asked. Raises BrokenInvariant."""
        while True:
            self._wanted = trio.Event()
            self._begun += 1
            self._snapshot = await self._settle(self._begun)
            self._settled.set()
            self._settled = trio.Event()
            if trio.current_time() - self._written_seconds > HISTORY_SECONDS:
                await self._keep_history()
            with trio.move_on_after(self._config.interval_seconds):
                await self._wanted.wait()
            if self._broken is not None:
                raise self._broken

    def _settle_now(self) -> None:
        self._wanted.set()

    def stop_broken(self, error: BrokenInvariant) -> None:
        """A question found our books broken: the service stops and says so, not the answer only."""
        self._broken = error
        self._wanted.set()

    async def _keep_history(self) -> None:
        self._written_seconds = trio.current_time()
        usage = self._meter.take()
        if not await trio.to_thread.run_sync(self._history.write, usage, limiter=self._settler.disk):
            self._meter.give_back(usage)

    async def put_back(self) -> list[str]:
        """All limits as their managers set them (I6), within `stop_seconds`. Returns what could not be put back."""
        faults = ["limits are still being written: run `sharedctl restore` when they are through"]
        with trio.move_on_after(self._config.stop_seconds, shield=True):
            faults = await self._settler.restore_all()
        with trio.move_on_after(1, shield=True):
            await self._pools.aclose()
            await self._keep_history()
        return faults

    async def _settle(self, number: int) -> Snapshot:
        pools = await self._pools.fetch()
        now_seconds = trio.current_time()
        tenants = frozenset().union(*(pool.tenants for pool in pools))
        known = {*tenants, *self._settler.entries}
        readings = await self._settler.read(known, above(tenant.path for tenant in tenants), self._budgets)
        books = {pool.pool: without(pool.books, readings.gone) for pool in pools}
        bills = {pool: make_bill([held], (), self._policy) for pool, held in books.items()}
        bill = add_up(bills.values(), tenants - readings.gone)
        found = {cgroup: self._settler.found(cgroup, account.limits) for cgroup, account in readings.accounts.items()}
        billed = (bill.tenants.keys() | readings.above) & readings.accounts.keys()
        self._meter.read(int(now_seconds * 1000), bills)
        yielding = {
            pool.pool: self._inheritance.update(
                now_seconds, pool.pool, books[pool.pool], pool.tenants - readings.gone, bills[pool.pool], self._policy
            )
            for pool in pools
        }
        # Rounding happens once a class, and a class is of one pool: the pools' bills sum up to the bill of all.
        parts = (
            due_by_pool(due_bytes, bills),
            due_by_pool(swap_due_bytes, bills),
            {pool: part.inherited for pool, part in yielding.items()},
            {pool: part.fresh for pool, part in yielding.items()},
        )
        places, pool_cgroups = {cgroup.path for cgroup in billed}, {pool.pool: pool.cgroup for pool in pools}
        dues = tuple(due_at(part, pool_cgroups, places) for part in parts)
        positions = {
            cgroup: self._position(cgroup, readings.accounts[cgroup], found[cgroup], *dues) for cgroup in billed
        }
        planned = self._planner.plan(
            now_seconds, positions.values() if self._config.settle else (), guarded=self.guarding.works
        )
        since = dict(self._planner.ages.since)
        if not self._settler.dry_run and not self._debts.are_kept(since):
            keep_debts = partial(self._debts.keep, now_seconds, since)
            await trio.to_thread.run_sync(keep_debts, limiter=self._settler.disk)
        if not self._settler.dry_run and self._known.are_due(now_seconds):
            needs = {cgroup: self._planner.peaks.remembered(cgroup) for cgroup in planned.positions}
            keep_known = partial(self._known.keep, now_seconds, self._inheritance.own, needs)
            await trio.to_thread.run_sync(keep_known, limiter=self._settler.disk)
        raising, lowering = list(planned.raising), list(planned.lowering)
        left = self._settler.entries.keys() & readings.accounts.keys() - planned.positions.keys()
        for cgroup in left if self._pools.is_complete else ():
            order = Order(cgroup, readings.accounts[cgroup].limits, found[cgroup])
            if order.now != order.intended:
                (raising if raises(order) else lowering).append(order)
        ordered = {order.cgroup for order in (*raising, *lowering)}
        late = {order.cgroup for order in planned.put_off}
        at_home = {cgroup for cgroup, account in readings.accounts.items() if account.limits == found[cgroup]}
        await self._settler.stop_watching(self.guarding.watches.keys() - planned.watches.keys())
        await self._settler.forget(readings.gone | (at_home - ordered - late))
        await self._settler.carry_out(raising, lowering, found, planned.watches)
        if self._config.admission and self._config.settle and not self._settler.dry_run:
            room = planned.positions.values()
            allowed = {pool.pool: marks(pool.even_bytes, room, self._config.room) for pool in pools}
            await self._pools.allow(allowed, max(ALLOWED_SECONDS, ALLOWED_INTERVALS * self._config.interval_seconds))
        for cgroup, account in (await self._settler.read(ordered & positions.keys())).accounts.items():
            positions[cgroup] = replace(positions[cgroup], account=account)
        return Snapshot(
            number=number,
            books=tuple(books.values()),
            gone=readings.gone,
            pool_answers=self._pools.states(),
            bill=bill,
            positions=positions,
            planned=planned,
            ordered=(*raising, *lowering),
            taken_seconds=now_seconds,
        )

    def _position(self, cgroup: CgroupRef, account: Account, found: Limits, *dues: Mapping[str, int]) -> Position:
        """`dues` by path: what is due in memory and in swap, and what of it is inherited, and fresh."""
        budget = self._budgets.get(cgroup.path)
        due, swap_due, inherited, fresh = (part[cgroup.path] for part in dues)
        return Position(
            cgroup,
            account,
            found,
            None if budget is None else budget.budget_bytes,
            due,
            report_only=budget is not None and budget.report_only,
            swap_due_bytes=swap_due,
            inherited_bytes=inherited,
            fresh_bytes=fresh,
        )

    # -- questions

    async def fresh(self) -> Snapshot:
        """The first settlement that begins from now on."""
        wanted = self._begun + 1
        while self._snapshot is None or self._snapshot.number < wanted:
            self._wanted.set()
            await self._settled.wait()
        return self._snapshot

    async def bills(self) -> Bills:
        snapshot = await self.fresh()
        live, names = await trio.to_thread.run_sync(self._look_at, tuple(snapshot.bill.tenants))
        return answers.tell_bills(snapshot, live, names)

    async def explain(self, name: str, most_files: int) -> Explanation:
        snapshot, tenant = await self._find(name)
        told = await self._ask_all(lambda feed: feed.files_of(tenant.path))
        return answers.explain(tenant, told, snapshot.gone, self._policy, most_files)

    async def unclaimed(self) -> Unclaimed:
        await self.fresh()
        return answers.tell_unclaimed(await self._ask_all(lambda feed: feed.unclaimed()))

    async def _ask_all(self, question: Callable[[Feed], AsyncIterator[Page]]) -> list[tuple[str, Page]]:
        """All pages of what each pool says, by its name. Raises HostFault when one does not answer."""
        told: list[tuple[str, Page]] = []
        faults: list[str] = []

        async def ask(feed: Feed) -> None:
            try:
                told.extend([(feed.name, page) async for page in question(feed)])
            except PoolGone:
                return  # it takes its bytes with it
            except PoolSilent as silent:
                faults.append(f"pool {feed.name} does not answer: {silent}")

        async with trio.open_nursery() as nursery:
            for feed in self._pools.feeds:
                nursery.start_soon(ask, feed, name=f"ask pool {feed.name}")
        if faults:
            raise HostFault("; ".join(faults))
        return told

    async def users(self, path: Path) -> FileUsers:
        snapshot = await self.fresh()
        feed, relative = self._pools.locate(path)
        try:
            answer = await feed.users_of(relative)
        except (PoolGone, PoolSilent) as error:
            raise HostFault(f"pool {feed.name} does not answer: {error}") from error
        if answer is None:
            raise UnknownName(f"{path}: pool {feed.name} has no such file")
        return answers.tell_users(feed.name, answer, snapshot.gone, self._policy)

    async def hand_over(self, path: Path, name: str | None, *, recursive: bool) -> Handover:
        """A file's resident pages are the tenant's, or nobody's. Raises UnknownName, CallerMistake."""
        await self.fresh()
        feed, relative = self._pools.locate(path)
        cgroup = None if name is None else await self._cgroup(name)
        try:
            done = await feed.hand_over(relative, None if cgroup is None else cgroup.path, recursive=recursive)
        except CallerMistake as mistake:
            raise type(mistake)(f"{path} on pool {feed.name}: {mistake}") from None
        except (PoolGone, PoolSilent) as error:
            raise HostFault(f"pool {feed.name} does not answer: {error}") from error
        return answers.tell_handover(await self.fresh(), feed.name, str(path), done)

    async def what_if_exit(self, name: str) -> ExitForecast:
        snapshot, tenant = await self._find(name)
        forecast = what_if_exit(
            tenant,
            snapshot.books,
            self._policy,
            {cgroup: position for cgroup, position in snapshot.positions.items() if cgroup in snapshot.bill.tenants},
            self._hierarchy.version,
            self._config.room,
        )
        return answers.tell_exit(tenant, forecast)

    def plan(self) -> WritePlan:
        """What the last settlement had written, and what it would write and has not yet."""
        return answers.tell_plan(self._snapshot, self._limits, dry_run=self._settler.dry_run)

    async def policies(self, payer: str | None) -> Policies:
        """`payer` None: the one that is in force, if any. Raises UnknownName."""
        snapshot = await self.fresh()
        named = self._payer if payer is None else await self._cgroup(payer)
        return answers.tell_policies(snapshot, self._policy, named)

    async def set_policy(self, name: str | None, payer: str | None) -> PolicyState:
        """From the next settlement on, also after a restart. None: the configuration's.

        Raises CallerMistake for a policy that limits cannot follow, UnknownName for a payer that is not there.
        """
        cgroup = None if payer is None else await self._cgroup(payer)
        if (name == Designated.name) != (cgroup is not None):
            raise CallerMistake(f"{Designated.name} needs a payer, and no other policy has one: --payer TENANT")
        policy = policy_to_settle(name or self._config.policy, cgroup)
        path = None if cgroup is None else cgroup.path
        await trio.to_thread.run_sync(self._state.set_policy, name, path, limiter=self._settler.disk)
        self._policy = policy
        await self.fresh()
        return PolicyState(active=policy.name, payer=path)

    @property
    def _payer(self) -> CgroupRef | None:
        return self._policy.payer if isinstance(self._policy, Designated) else None

    def _make_policy(self, name: str, payer: str | None) -> Policy:
        """A policy that was ordered earlier. The payer may be gone meanwhile; then nobody pays."""
        return policy_to_settle(name, None if payer is None else self._hierarchy.find(payer))

    async def _cgroup(self, name: str) -> CgroupRef:
        path = self._path(name)
        cgroup = await trio.to_thread.run_sync(self._hierarchy.find, path)
        if cgroup is None:
            raise UnknownName(f"{path} is no memory cgroup: see `sharedctl bills` for the tenants")
        return cgroup

    async def set_budget(self, name: str, budget: Budget) -> BudgetState:
        """Raises UnknownName where there is no cgroup, NotOursToSet where its manager set a limit.

        A budget that is only for reports limits nothing, and goes beside the manager's.
        """
        cgroup = await self._cgroup(name)
        if not budget.report_only:
            await self._check_limit_is_ours(cgroup)
        path = cgroup.path
        await trio.to_thread.run_sync(self._state.set_budget, path, budget, limiter=self._settler.disk)
        self._budgets[path] = budget
        return await self._told_budget(path)

    async def _check_limit_is_ours(self, cgroup: CgroupRef) -> None:
        file = self._limits.limit_file(cgroup)
        if cgroup.path == "/" or not Path(file).exists():
            raise NotOursToSet(f"{cgroup.path} cannot be limited: the kernel has no {file} to write")
        account = (await self._settler.read([cgroup])).accounts.get(cgroup)
        if account is not None:
            limit = self._settler.found(cgroup, account.limits).enforced_bytes
            if limit is not None:
                raise NotOursToSet(
                    f"{cgroup.path} has a budget from its manager, {limit} bytes in {file}: change it there"
                )

    async def clear_budget(self, name: str) -> BudgetState:
        """Clearing what is not set is no mistake, as long as there is such a cgroup."""
        path = self._path(name)
        if path not in self._budgets and self._hierarchy.find(path) is None:
            raise UnknownName(f"{path} is no memory cgroup: see `sharedctl bills` for the tenants")
        await trio.to_thread.run_sync(self._state.clear_budget, path, limiter=self._settler.disk)
        self._budgets.pop(path, None)
        return await self._told_budget(path)

    async def history(self, name: str | None, since_seconds: int | None) -> UsageHistory:
        """Up to this moment."""
        await self.fresh()
        await self._keep_history()
        tenant = None if name is None else self._path(name)
        read = partial(self._history.read, since_seconds, tenant)
        try:
            lines = await trio.to_thread.run_sync(read, limiter=self._settler.disk)
        except (sqlite3.Error, OSError) as error:
            raise HostFault(f"the history cannot be read: {error}") from error
        if tenant is not None and not lines:
            raise UnknownName(f"the history has no tenant {tenant} in that time: see `sharedctl history`")
        return UsageHistory(since_seconds=since_seconds, lines=tuple(HistoryEntry(**asdict(line)) for line in lines))

    def health(self) -> Health:
        snapshot = self._snapshot
        return Health(
            version=__version__,
            settlements=0 if snapshot is None else snapshot.number,
            pools=() if snapshot is None else snapshot.pool_answers,
            dry_run=self._settler.dry_run,
            limit_writes=self._settler.writes,
            orders_put_off=self._planner.pacing.put_off,
            limits_yielded=self.guarding.raised,
        )

    async def _told_budget(self, path: str) -> BudgetState:
        snapshot, budget = await self.fresh(), self._budgets.get(path)
        return BudgetState(
            tenant=path,
            budget_bytes=None if budget is None else budget.budget_bytes,
            report_only=budget is not None and budget.report_only,
            known=any(cgroup.path == path for cgroup in snapshot.positions),
        )

    async def _find(self, name: str) -> tuple[Snapshot, CgroupRef]:
        path = self._path(name)
        snapshot = await self.fresh()
        tenant = snapshot.tenant(path)
        if tenant is None:
            raise UnknownName(f"no pool has a tenant {path}: see `sharedctl bills` for those there are")
        return snapshot, tenant

    def _path(self, name: str) -> str:
        """The cgroup that a person means: its path with or without the leading slash, or its directory's."""
        path = Path(posixpath.normpath(name))
        if path.is_relative_to(self._hierarchy.mount):
            path = path.relative_to(self._hierarchy.mount)
        return readable(raw_path(posixpath.normpath(f"/{path}".replace("//", "/"))))

    def _look_at(self, cgroups: Sequence[CgroupRef]) -> tuple[frozenset[CgroupRef], Mapping[CgroupRef, str]]:
        """Those with processes, and the names of those that have one. Blocks on files, in one thread at a time."""
        with self._looking:
            live = frozenset(cgroup for cgroup in cgroups if is_populated(self._hierarchy, cgroup.path))
            return live, self._names.of(cgroups)
