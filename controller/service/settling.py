"""The task that settles: asks the pools, reads limits, has it decided what to do, does it, and keeps a snapshot.

It settles at each interval and whenever somebody asks; everybody else reads the last snapshot. A question is answered
from a settlement that began after it was asked, so the answer holds what the asker did before.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from controller.billing.hierarchy import above
from controller.billing.inheritance import Inheritance
from controller.billing.usage import Meter
from controller.limits.types import Budget, KernelLimits
from controller.persistence.debt_ages import KeptDebts
from controller.persistence.history import History
from controller.persistence.known import KnownTenants
from controller.persistence.state import State
from controller.policies.policy import Policy
from controller.service.config import Config
from controller.service.guarding import Guarding
from controller.service.limit_writer import Settler
from controller.service.pool_clients import Pools
from controller.service.snapshot import Snapshot
from controller.settlement.decision import Decider, Decision, Facts
from controller.settlement.planner import Planner
from controller.settlement.settle import Position
from sharedfs.common.errors import BrokenInvariant
from sharedfs.common.units import Part
from sharedfs.linux.cgroups import CgroupRef

ALLOWED_SECONDS, ALLOWED_INTERVALS = 5.0, 10
"""How long allowances are good for when we are gone: long enough for a restart of the controller, and too short for
somebody to wonder why a tenant cannot write while nobody moves its limit."""


HISTORY_SECONDS = 5.0
"""So often the history is written: what a killed controller loses of it at most."""


class Settling:
    """`policy`, `budgets` and `caps` are the operator's orders; a change of them counts from the next settlement on."""

    def __init__(
        self,
        config: Config,
        limits: KernelLimits,
        state: State,
        history: History,
        pools_directory: Path,
        nursery: trio.Nursery,
        *,
        policy: Policy,
        dry_run: bool = False,
    ) -> None:
        self.policy = policy
        self.budgets: dict[str, Budget] = state.budgets()
        self.caps: dict[tuple[str, str | None], Part] = state.caps()
        self.snapshot: Snapshot | None = None
        self.pools = Pools(pools_directory, config.pool_patience_seconds, nursery)
        self.guarding = Guarding(limits, config.interval_seconds, self._settle_now)
        self.settler = Settler(limits, state, nursery, config.write_threads, self.guarding, dry_run=dry_run)
        self._config = config
        self._known = KnownTenants(state)
        self._debts = KeptDebts(state)
        indebted = self._debts.since(trio.current_time())
        self._planner = Planner(limits.hierarchy.version, config.rules, state.needs(), indebted)
        self._decider = Decider(self._planner, Inheritance(state.own()))
        self._history = history
        self._written_seconds = trio.current_time()
        self._meter = Meter()
        self._begun = 0
        self._wanted = trio.Event()
        self._settled = trio.Event()
        self._broken: BrokenInvariant | None = None

    @property
    def put_off(self) -> int:
        """Orders that had to wait, since the start."""
        return self._planner.pacing.put_off

    async def keep_settling(self) -> None:
        """Settle at each interval, and at once when asked. Raises BrokenInvariant."""
        while True:
            self._wanted = trio.Event()
            self._begun += 1
            self.snapshot = await self._settle(self._begun)
            self._settled.set()
            self._settled = trio.Event()
            if trio.current_time() - self._written_seconds > HISTORY_SECONDS:
                await self.keep_history()
            with trio.move_on_after(self._config.interval_seconds):
                await self._wanted.wait()
            if self._broken is not None:
                raise self._broken

    async def fresh(self) -> Snapshot:
        """The first settlement that begins from now on."""
        wanted = self._begun + 1
        while self.snapshot is None or self.snapshot.number < wanted:
            self._wanted.set()
            await self._settled.wait()
        return self.snapshot

    def stop_broken(self, error: BrokenInvariant) -> None:
        """A question found our books broken: the service stops and says so, not the answer only."""
        self._broken = error
        self._wanted.set()

    async def keep_history(self) -> None:
        """Up to the last settlement."""
        self._written_seconds = trio.current_time()
        usage = self._meter.take()
        if not await trio.to_thread.run_sync(self._history.write, usage, limiter=self.settler.disk):
            self._meter.give_back(usage)

    async def put_back(self) -> list[str]:
        """All limits as their managers set them (I6), within `stop_seconds`. Returns what could not be put back."""
        faults = ["limits are still being written: run `sharedctl restore` when they are through"]
        with trio.move_on_after(self._config.stop_seconds, shield=True):
            faults = await self.settler.restore_all()
        with trio.move_on_after(1, shield=True):
            await self.pools.aclose()
            await self.keep_history()
        return faults

    def _settle_now(self) -> None:
        self._wanted.set()

    async def _settle(self, number: int) -> Snapshot:
        facts = await self._gather()
        decision = self._decider.decide(facts)
        self._meter.read(int(facts.now_seconds * 1000), decision.bills)
        if not self.settler.dry_run:
            await self._remember(facts.now_seconds, decision)
        await self._carry_out(facts, decision)
        return Snapshot(
            number=number,
            books=tuple(decision.books.values()),
            gone=facts.gone,
            pool_answers=self.pools.states(),
            bill=decision.bill,
            positions=await self._after(decision),
            planned=decision.plan,
            taken_seconds=facts.now_seconds,
        )

    async def _gather(self) -> Facts:
        pools = await self.pools.fetch()
        is_complete = self.pools.is_complete  # of the same moment: a pool that answers now is on no bill yet
        now_seconds = trio.current_time()
        tenants = frozenset[CgroupRef]().union(*(pool.tenants for pool in pools))
        known = {*tenants, *self.settler.entries}
        readings = await self.settler.read(known, above(tenant.path for tenant in tenants), self.budgets)
        return Facts(
            now_seconds=now_seconds,
            policy=self.policy,
            budgets=self.budgets,
            pools=pools,
            is_complete=is_complete,
            accounts=readings.accounts,
            found={cgroup: self.settler.found(cgroup, at.limits) for cgroup, at in readings.accounts.items()},
            gone=readings.gone,
            above=readings.above,
            journaled=frozenset(self.settler.entries),
            watched=frozenset(self.guarding.watches),
            guarded=self.guarding.works,
            caps=dict(self.caps),
        )

    async def _remember(self, now_seconds: float, decision: Decision) -> None:
        """On the disk: what a successor has to know."""
        since = dict(self._planner.ages.since)
        if not self._debts.are_kept(since):
            keep_debts = partial(self._debts.keep, now_seconds, since)
            await trio.to_thread.run_sync(keep_debts, limiter=self.settler.disk)
        if self._known.are_due(now_seconds):
            keep_known = partial(self._known.keep, now_seconds, self._decider.inheritance.own, decision.needs)
            await trio.to_thread.run_sync(keep_known, limiter=self.settler.disk)

    async def _carry_out(self, facts: Facts, decision: Decision) -> None:
        plan = decision.plan
        await self.settler.stop_watching(decision.unwatched)
        await self.settler.forget(decision.released)
        await self.settler.carry_out(plan.raising, plan.lowering, facts.found, plan.watches)
        if decision.allowances is not None and not self.settler.dry_run:
            seconds = max(ALLOWED_SECONDS, ALLOWED_INTERVALS * self._config.interval_seconds)
            await self.pools.allow(decision.allowances, seconds)

    async def _after(self, decision: Decision) -> dict[CgroupRef, Position]:
        """The positions, with the accounts of those that had an order as they are now."""
        ordered = {order.cgroup for order in decision.plan.ordered} & decision.positions.keys()
        accounts = (await self.settler.read(ordered)).accounts
        return dict(decision.positions) | {
            cgroup: replace(decision.positions[cgroup], account=account) for cgroup, account in accounts.items()
        }
