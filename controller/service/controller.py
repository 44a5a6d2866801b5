"""What the controller is asked and told: answers from its last settlement, and the operator's orders."""

import posixpath
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import trio

from controller.api.errors import NotOursToSet, UnknownName
from controller.api.types import (
    Bills,
    BudgetState,
    CapState,
    CapStates,
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
from controller.limits.types import Budget, KernelLimits
from controller.persistence.history import History
from controller.persistence.state import State
from controller.policies.designated import Designated
from controller.policies.registry import policy_to_settle
from controller.service import views
from controller.service.config import Config
from controller.service.container_names import Names
from controller.service.explaining import PoolFiles, explain
from controller.service.feed_client import Feed, FilePath, PoolGone, PoolSilent
from controller.service.liveness import is_populated
from controller.service.ordered_policy import ordered_policy
from controller.service.settling import Settling
from controller.service.snapshot import Snapshot
from controller.settlement.what_if import what_if_exit
from sharedfs.api.types import UnclaimedPage
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.common.units import parse_part
from sharedfs.common.version import VERSION
from sharedfs.linux.cgroups import CgroupRef, raw_path, readable

Told = TypeVar("Told")


class Controller:
    """`settling` is the task behind it."""

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
        self._history = history
        policy = ordered_policy(state.policy(), config.policy, limits.hierarchy, state.path)
        self.settling = Settling(
            config, limits, state, history, pools_directory, nursery, policy=policy, dry_run=dry_run
        )
        self._settler = self.settling.settler
        self._pools = self.settling.pools
        self._names = Names(limits.hierarchy)
        self._looking = threading.Lock()

    async def bills(self) -> Bills:
        snapshot = await self.settling.fresh()
        live, names = await trio.to_thread.run_sync(self._look_at, tuple(snapshot.bill.tenants))
        return views.tell_bills(snapshot, live, names)

    async def explain(self, name: str, most_files: int) -> Explanation:
        snapshot, tenant = await self._find(name)

        async def files_of(feed: Feed) -> PoolFiles:
            files = PoolFiles(feed.name, tenant, snapshot.gone)
            async for page in feed.files_of(tenant.path):
                files.add(page)
            return files

        told = await self._ask_each(files_of)
        return await trio.to_thread.run_sync(explain, tenant, told, self.settling.policy, most_files)

    async def unclaimed(self) -> Unclaimed:
        async def pages_of(feed: Feed) -> list[tuple[str, UnclaimedPage]]:
            return [(feed.name, page) async for page in feed.unclaimed()]

        await self.settling.fresh()
        told = await self._ask_each(pages_of)
        return await trio.to_thread.run_sync(views.tell_unclaimed, list(chain.from_iterable(told)))

    async def _ask_each(self, question: Callable[[Feed], Awaitable[Told]]) -> list[Told]:
        """What each pool says, one asked after the other. Raises HostFault when one does not answer."""
        told: list[Told] = []
        for feed in tuple(self._pools.feeds):
            try:
                told.append(await question(feed))
            except PoolGone:
                continue  # it takes its bytes with it
            except PoolSilent as silent:
                raise HostFault(f"pool {feed.name} does not answer: {silent}") from silent
        return told

    async def users(self, file: FilePath) -> FileUsers:
        snapshot = await self.settling.fresh()
        feed, relative = self._pools.locate(file)
        try:
            answer = await feed.users_of(relative)
        except CallerMistake as mistake:
            raise CallerMistake(f"{file.text} on pool {feed.name}: {mistake}") from None
        except (PoolGone, PoolSilent) as error:
            raise HostFault(f"pool {feed.name} does not answer: {error}") from error
        if answer is None:
            raise UnknownName(f"{file.text}: pool {feed.name} has no such file; of a directory, name the files in it")
        return views.tell_users(feed.name, answer, snapshot.gone, self.settling.policy)

    async def hand_over(self, file: FilePath, name: str | None, *, recursive: bool) -> Handover:
        """A file's resident pages are the tenant's, or nobody's. Raises UnknownName, CallerMistake."""
        await self.settling.fresh()
        feed, relative = self._pools.locate(file)
        cgroup = None if name is None else await self._cgroup(name)
        for pool in self._pools.feeds:
            if cgroup is not None and pool.made_cgroup() == cgroup.path:
                raise CallerMistake(f"{cgroup.path} is the own cgroup of pool {pool.name}: name a tenant, or nobody")
        try:
            done = await feed.hand_over(relative, None if cgroup is None else cgroup.path, recursive=recursive)
        except CallerMistake as mistake:
            raise type(mistake)(f"{file.text} on pool {feed.name}: {mistake}") from None
        except (PoolGone, PoolSilent) as error:
            raise HostFault(f"pool {feed.name} does not answer: {error}") from error
        return views.tell_handover(await self.settling.fresh(), feed.name, file.text, done)

    async def what_if_exit(self, name: str) -> ExitForecast:
        snapshot, tenant = await self._find(name)
        forecast = what_if_exit(
            tenant,
            snapshot.books,
            self.settling.policy,
            {cgroup: position for cgroup, position in snapshot.positions.items() if cgroup in snapshot.bill.tenants},
            self._hierarchy.version,
            self._config.room,
        )
        return views.tell_exit(tenant, forecast)

    def plan(self) -> WritePlan:
        """What the last settlement had written, and what it would write and has not yet."""
        return views.tell_plan(self.settling.snapshot, self._limits, dry_run=self._settler.dry_run)

    async def policies(self, payer: str | None) -> Policies:
        """`payer` None: the one that is in force, if any. Raises UnknownName."""
        snapshot = await self.settling.fresh()
        named = self._payer if payer is None else await self._cgroup(payer)
        return views.tell_policies(snapshot, self.settling.policy, named)

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
        self.settling.policy = policy
        await self.settling.fresh()
        return PolicyState(active=policy.name, payer=path)

    @property
    def _payer(self) -> CgroupRef | None:
        return self.settling.policy.payer if isinstance(self.settling.policy, Designated) else None

    async def _cgroup(self, name: str) -> CgroupRef:
        path = self._path(name)
        cgroup = await trio.to_thread.run_sync(self._hierarchy.find, path)
        if cgroup is None:
            raise UnknownName(f"{path} is no memory cgroup: see `sharedctl bills` for the tenants")
        return cgroup

    async def set_budget(self, name: str, budget: Budget) -> BudgetState:
        """Raises UnknownName where there is no cgroup, NotOursToSet where its manager set a limit.

        A budget that is only for reports limits nothing, and goes beside the manager's. A pool's own cgroup has none:
        it is charged for what the tenants pay.
        """
        cgroup = await self._cgroup(name)
        self._check_is_no_pool(cgroup.path)
        if not budget.report_only:
            await self._check_limit_is_ours(cgroup)
        path = cgroup.path
        await trio.to_thread.run_sync(self._state.set_budget, path, budget, limiter=self._settler.disk)
        self.settling.budgets[path] = budget
        return await self._told_budget(path)

    def _check_is_no_pool(self, path: str) -> None:
        for feed in self._pools.feeds:
            if feed.made_cgroup() == path:
                raise NotOursToSet(f"{path} is pool {feed.name}'s own cgroup, no tenant: --size bounds the pool")

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
        if path not in self.settling.budgets and self._hierarchy.find(path) is None:
            raise UnknownName(f"{path} is no memory cgroup: see `sharedctl bills` for the tenants")
        await trio.to_thread.run_sync(self._state.clear_budget, path, limiter=self._settler.disk)
        self.settling.budgets.pop(path, None)
        return await self._told_budget(path)

    async def set_cap(self, name: str, pool: str | None, text: str | None) -> CapStates:
        """`text` is a size or percents of the pool's; None takes the cap back. Returns those that are left.

        Raises UnknownName where there is no such cgroup or pool, CallerMistake where `text` is neither.
        """
        path = self._path(name)
        try:
            part = None if text is None else parse_part(text)
        except ValueError as error:
            raise CallerMistake(str(error)) from None
        if part is not None and self._hierarchy.find(path) is None:
            raise UnknownName(f"{path} is no memory cgroup: see `sharedctl bills` for the tenants")
        if part is not None:
            self._check_is_no_pool(path)
        pools = [answer.pool for answer in self.settling.pools.states()]
        if part is not None and pool is not None and pool not in pools:
            raise UnknownName(f"there is no pool {pool}: `sharedctl status` lists {', '.join(pools) or 'none now'}")
        await trio.to_thread.run_sync(self._state.set_cap, path, pool, part, limiter=self._settler.disk)
        if part is None:
            self.settling.caps.pop((path, pool), None)
        else:
            self.settling.caps[path, pool] = part
        await self.settling.fresh()
        return self.caps()

    def caps(self) -> CapStates:
        ordered = sorted(self.settling.caps.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        return CapStates(caps=tuple(CapState(tenant=path, pool=pool, cap=str(part)) for (path, pool), part in ordered))

    async def history(self, name: str | None, since_seconds: int | None) -> UsageHistory:
        """Up to this moment."""
        await self.settling.fresh()
        await self.settling.keep_history()
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
        snapshot = self.settling.snapshot
        return Health(
            version=VERSION,
            settlements=0 if snapshot is None else snapshot.number,
            pools=() if snapshot is None else snapshot.pool_answers,
            dry_run=self._settler.dry_run,
            limit_writes=self._settler.writes,
            orders_put_off=self.settling.put_off,
            limits_yielded=self.settling.guarding.raised,
        )

    async def _told_budget(self, path: str) -> BudgetState:
        snapshot, budget = await self.settling.fresh(), self.settling.budgets.get(path)
        return BudgetState(
            tenant=path,
            budget_bytes=None if budget is None else budget.budget_bytes,
            report_only=budget is not None and budget.report_only,
            known=any(cgroup.path == path for cgroup in snapshot.positions),
        )

    async def _find(self, name: str) -> tuple[Snapshot, CgroupRef]:
        path = self._path(name)
        snapshot = await self.settling.fresh()
        tenant = snapshot.tenant(path)
        if tenant is None:
            raise UnknownName(f"no pool has a tenant {path}: see `sharedctl bills` for those there are")
        return snapshot, tenant

    def _path(self, name: str) -> str:
        """The cgroup that a person means: its path with or without the leading slash, or its directory's."""
        path = Path(posixpath.normpath(f"/{name.lstrip('/')}"))
        if path.is_relative_to(self._hierarchy.mount):
            path = path.relative_to(self._hierarchy.mount)
        return readable(raw_path(posixpath.normpath(f"/{path}".replace("//", "/"))))

    def _look_at(self, cgroups: Sequence[CgroupRef]) -> tuple[frozenset[CgroupRef], Mapping[CgroupRef, str]]:
        """Those with processes, and the names of those that have one. Blocks on files, in one thread at a time."""
        with self._looking:
            live = frozenset(cgroup for cgroup in cgroups if is_populated(self._hierarchy, cgroup.path))
            return live, self._names.of(cgroups)
