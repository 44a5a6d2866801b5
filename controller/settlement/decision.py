"""Settlement is decided here: from what pools, the kernel and the journal say to all that is to be done. Pure.

The service gathers `Facts`, asks `Decider.decide`, and carries out the `Decision`; it decides nothing itself.

    books, less cgroups that are gone ─▶ bills ─▶ what is due, and inherited ─▶ positions ─▶ plan ─▶ orders
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from posixpath import dirname

from controller.billing.bill import Bill, add_up, due_by_pool, due_bytes, make_bill, swap_due_bytes
from controller.billing.hierarchy import due_at
from controller.billing.holdings import Books, PoolBooks, without
from controller.billing.inheritance import Inheritance
from controller.limits.types import Account, Budget, Limits
from controller.policies.policy import Policy
from controller.settlement.admission import Marks, headrooms_of, marks, marks_above
from controller.settlement.caps import CapOrders, capped, caps_in
from controller.settlement.planner import Plan, Planner
from controller.settlement.settle import Position
from sharedfs.linux.cgroups import CgroupRef, chain

Allowances = Mapping[str, Marks]
"""By pool."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one settlement goes by.

    `pools` have answered, `is_complete`: every pool that lives has. `accounts` are the kernel's, of tenants, of cgroups
    `above` them and of those in the journal, as far as they can be read; `found` is what their managers set. `gone`
    were removed, whatever the pools say. `journaled` are cgroups whose limits the controller has touched. The guard
    watches over those `watched`; `guarded`: it works. `caps` are the operator's.
    """

    now_seconds: float
    policy: Policy
    budgets: Mapping[str, Budget]
    pools: Sequence[PoolBooks]
    is_complete: bool
    accounts: Mapping[CgroupRef, Account]
    found: Mapping[CgroupRef, Limits]
    gone: frozenset[CgroupRef] = frozenset()
    above: Set[CgroupRef] = frozenset()
    journaled: Set[CgroupRef] = frozenset()
    watched: Set[CgroupRef] = frozenset()
    guarded: bool = True
    caps: CapOrders = field(default_factory=dict)

    @property
    def tenants(self) -> frozenset[CgroupRef]:
        """Those of all pools that live."""
        return frozenset().union(*(pool.tenants for pool in self.pools)) - self.gone

    def heirs(self) -> dict[CgroupRef, CgroupRef]:
        """Of those `gone`, the nearest bounded cgroup above each: the pool gives it what they leave, a moment later."""
        bounded = {cgroup.path: cgroup for cgroup in self.above if cgroup in self.accounts}
        found = (
            (gone, next((path for path in chain(dirname(gone.path)) if path in bounded), None)) for gone in self.gone
        )
        return {gone: bounded[path] for gone, path in found if path is not None}


@dataclass(frozen=True, slots=True)
class Decision:
    """What is billed, and what is to be done in this order: stop watching, forget, carry out the plan, allow.

    `books` and `bills` are by pool, without cgroups that are gone; `bill` is that of all pools. `positions` are of the
    cgroups on the bill and above it. The guard is to leave those `unwatched` alone; the journal's lines of those
    `released` can go. `allowances` are None when no pool is to be told any.
    """

    books: Mapping[str, Books]
    bills: Mapping[str, Bill]
    bill: Bill
    positions: Mapping[CgroupRef, Position]
    plan: Plan
    unwatched: frozenset[CgroupRef]
    released: frozenset[CgroupRef]
    allowances: Allowances | None

    @property
    def needs(self) -> dict[CgroupRef, int]:
        """The most that each cgroup has needed within the hour."""
        return {cgroup: position.remembered_bytes for cgroup, position in self.plan.positions.items()}


class Decider:
    """Remembers between settlements what `planner` and `inheritance` do."""

    def __init__(self, planner: Planner, inheritance: Inheritance) -> None:
        self.planner = planner
        self.inheritance = inheritance

    def decide(self, facts: Facts) -> Decision:
        """The settlement at `facts.now_seconds`, which never goes back. Raises BrokenInvariant (I1).

        O(classes x users + tenants x depth + positions log positions).
        """
        rules = self.planner.rules
        heirs = facts.heirs()
        books = {pool.pool: without(pool.books, facts.gone, heirs) for pool in facts.pools}
        bills = {pool: make_bill([held], (), facts.policy) for pool, held in books.items()}
        # Rounding happens once a class, and a class is of one pool: the pools' bills sum up to the bill of all.
        bill = add_up(bills.values(), facts.tenants)
        positions = self._positions(facts, books, bills, (bill.tenants.keys() | facts.above) & facts.accounts.keys())
        settled = positions if rules.settle else {}
        left = (facts.journaled & facts.accounts.keys()) - settled.keys() if facts.is_complete else set[CgroupRef]()
        unbilled = (Position(cgroup, facts.accounts[cgroup], facts.found[cgroup], None, 0) for cgroup in left)
        plan = self.planner.plan(facts.now_seconds, settled.values(), guarded=facts.guarded, unbilled=unbilled)
        return Decision(
            books=books,
            bills=bills,
            bill=bill,
            positions=positions,
            plan=plan,
            unwatched=frozenset(facts.watched - plan.watches.keys()),
            released=facts.gone | _at_home(facts, plan),
            allowances=self._allowances(facts, plan, heirs.keys()),
        )

    def _allowances(self, facts: Facts, plan: Plan, inherited: Set[CgroupRef]) -> Allowances | None:
        rules = self.planner.rules
        admits = rules.settle and rules.admission
        if not admits and not facts.caps:
            return None
        headrooms = headrooms_of(plan.positions.values(), rules.room) if admits else {}
        told = {}
        for pool in facts.pools:
            budgeted = marks(pool.even_bytes, headrooms) if admits else dict.fromkeys(pool.even_bytes, None)
            caps = caps_in(pool.pool, pool.size_bytes, facts.caps)
            even = pool.even_bytes.items()
            there = {tenant: share for tenant, share in even if tenant not in facts.gone or tenant in inherited}
            told[pool.pool] = Marks(capped(budgeted, pool.even_bytes, caps), marks_above(there, headrooms, caps))
        return told

    def _positions(
        self, facts: Facts, books: Mapping[str, Books], bills: Mapping[str, Bill], cgroups: Set[CgroupRef]
    ) -> dict[CgroupRef, Position]:
        """Each of `cgroups` with what is due of it and of all below it, by pool and in all."""
        yielding = {
            pool.pool: self.inheritance.update(
                facts.now_seconds,
                pool.pool,
                books[pool.pool],
                pool.tenants - facts.gone,
                bills[pool.pool],
                facts.policy,
                pool.unasked,
            )
            for pool in facts.pools
        }
        places, pool_cgroups = {cgroup.path for cgroup in cgroups}, {pool.pool: pool.cgroup for pool in facts.pools}
        due, swap_due, inherited, fresh = (
            due_at(part, pool_cgroups, places)
            for part in (
                due_by_pool(due_bytes, bills),
                due_by_pool(swap_due_bytes, bills),
                {pool: part.inherited for pool, part in yielding.items()},
                {pool: part.fresh for pool, part in yielding.items()},
            )
        )
        positions = {}
        for cgroup in cgroups:
            budget = facts.budgets.get(cgroup.path)
            positions[cgroup] = Position(
                cgroup,
                facts.accounts[cgroup],
                facts.found[cgroup],
                None if budget is None else budget.budget_bytes,
                due[cgroup.path],
                report_only=budget is not None and budget.report_only,
                swap_due_bytes=swap_due[cgroup.path],
                inherited_bytes=inherited[cgroup.path],
                fresh_bytes=fresh[cgroup.path],
            )
        return positions


def _at_home(facts: Facts, plan: Plan) -> frozenset[CgroupRef]:
    """Cgroups that have the limits their managers set, and for which no order stands."""
    ordered = {order.cgroup for order in (*plan.ordered, *plan.put_off)}
    return frozenset(
        cgroup
        for cgroup, account in facts.accounts.items()
        if account.limits == facts.found[cgroup] and cgroup not in ordered
    )
