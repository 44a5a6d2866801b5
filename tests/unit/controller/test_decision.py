"""What a settlement decides, from facts alone: over any history of tenants, pools and managers, on v1."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.billing.holdings import Books, PoolBooks, SharingClass
from controller.billing.inheritance import Inheritance
from controller.limits.types import Account, Budget, Limits, managers_limits
from controller.policies.proportional import Proportional
from controller.settlement.decision import Decider, Decision, Facts
from controller.settlement.planner import Planner, Rules
from controller.settlement.settle import raises
from sharedfs.common.headroom import Room
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion

MIB = 1 << 20
POD, A, B, C = (CgroupRef(path, inode) for inode, path in enumerate(("/pod", "/pod/a", "/pod/b", "/c"), 1))
TENANTS = A, B, C
RULES = Rules(room=Room(MIB, 0))


@dataclass
class Host:
    """Cgroups with 64 MiB each, used without cache, and a journal that is kept as the service keeps it.

    `pools` has the bytes of each pool that are shared by some tenants; a pool that is `silent` has never answered.
    """

    rules: Rules = RULES
    pools: dict[str, dict[frozenset[CgroupRef], int]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    gone: set[CgroupRef] = field(default_factory=set)
    budgets: dict[str, Budget] = field(default_factory=dict)
    manager: dict[CgroupRef, int] = field(default_factory=lambda: dict.fromkeys((POD, *TENANTS), 64 * MIB))
    now: float = 0.0

    def __post_init__(self) -> None:
        self.limit = dict(self.manager)
        self.journal: dict[CgroupRef, tuple[Limits, list[Limits]]] = {}
        self.watched: set[CgroupRef] = set()
        self.decider = Decider(Planner(CgroupVersion.V1, self.rules), Inheritance())

    def facts(self) -> Facts:
        answered = [
            PoolBooks(pool, self._books(pool, held), dict.fromkeys(frozenset().union(*held), 0), "/pools")
            for pool, held in sorted(self.pools.items())
            if pool not in self.silent
        ]
        named = {tenant for pool in answered for tenant in pool.tenants} | self.journal.keys()
        above = {POD} if any(tenant.path.startswith("/pod/") for tenant in named) else set()
        accounts = {cgroup: Account(Limits(self.limit[cgroup]), 0, 0) for cgroup in (named | above) - self.gone}
        found = {}
        for cgroup, account in accounts.items():
            before, ours = self.journal.get(cgroup, (account.limits, [account.limits]))
            found[cgroup] = managers_limits(before, ours, account.limits)
        return Facts(
            now_seconds=self.now,
            policy=Proportional(),
            budgets=self.budgets,
            pools=answered,
            is_complete=not self.silent,
            accounts=accounts,
            found=found,
            gone=frozenset(named & self.gone),
            above=above - self.gone,
            journaled=frozenset(self.journal),
            watched=frozenset(self.watched),
        )

    def settle(self, seconds: float = 3.0) -> tuple[Facts, Decision]:
        self.now += seconds
        facts = self.facts()
        decision = self.decider.decide(facts)
        for cgroup in decision.released:
            self.journal.pop(cgroup, None)
        for order in decision.plan.ordered:
            assert order.intended.max_bytes is not None
            self.journal[order.cgroup] = facts.found[order.cgroup], [order.now, order.intended]
            self.limit[order.cgroup] = order.intended.max_bytes
        self.watched = (self.watched - decision.unwatched) | decision.plan.watches.keys()
        return facts, decision

    def set_by_manager(self, cgroup: CgroupRef, size: int) -> None:
        """But not to a value that the controller wrote: that cannot be told apart, and goes back to what was found."""
        _, ours = self.journal.get(cgroup, (None, []))
        if Limits(size) not in ours:
            self.manager[cgroup] = self.limit[cgroup] = size

    @staticmethod
    def _books(pool: str, held: dict[frozenset[CgroupRef], int]) -> Books:
        nobody = frozenset[CgroupRef]()
        return {SharingClass(pool, None, users, nobody, foreign=False): size for users, size in held.items()}


def check(facts: Facts, decision: Decision) -> None:
    """What holds of each decision, whatever the facts are."""
    plan, ordered = decision.plan, {order.cgroup: order for order in decision.plan.ordered}
    decision.bill.check()
    assert decision.bill.tenants.keys() == facts.tenants | {
        user for books in decision.books.values() for held in books for user in held.payers
    }
    assert not decision.bill.tenants.keys() & facts.gone
    assert len(ordered) == len(plan.ordered), "one order a cgroup"
    assert all(map(raises, plan.raising))
    assert not any(map(raises, plan.lowering))
    for order in plan.ordered:
        assert order.now == facts.accounts[order.cgroup].limits != order.intended
    left = facts.journaled & facts.accounts.keys() - decision.plan.positions.keys()
    for cgroup in left:
        wanted = facts.found[cgroup] if facts.is_complete else facts.accounts[cgroup].limits
        assert (ordered[cgroup].intended if cgroup in ordered else facts.accounts[cgroup].limits) == wanted
    for cgroup in decision.released - facts.gone:
        assert facts.accounts[cgroup].limits == facts.found[cgroup], "the journal must know what is not put back (I6)"
        assert cgroup not in ordered
    assert facts.gone <= decision.released
    assert facts.watched <= decision.unwatched | plan.watches.keys()
    assert not decision.unwatched & plan.watches.keys()
    assert (decision.allowances is not None) == RULES.admission
    for pool in facts.pools:
        assert decision.allowances is not None
        told = decision.allowances[pool.pool]
        assert told.tenants.keys() == pool.tenants
        assert told.above.keys() <= {POD.path}


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("hold"),
            st.sampled_from(["p", "q"]),
            st.frozensets(st.sampled_from(TENANTS), min_size=1),
            st.integers(0, 90),
        ),
        st.tuples(st.just("drop"), st.sampled_from(["p", "q"]), st.none(), st.none()),
        st.tuples(st.sampled_from(["silence", "answer"]), st.sampled_from(["p", "q"]), st.none(), st.none()),
        st.tuples(st.just("remove"), st.sampled_from(TENANTS), st.none(), st.none()),
        st.tuples(st.just("manager"), st.sampled_from((POD, *TENANTS)), st.none(), st.integers(1, 90)),
        st.tuples(st.just("report"), st.sampled_from(TENANTS), st.none(), st.integers(1, 90)),
    ),
    max_size=20,
)


@given(steps)
def test_every_decision_is_right_and_in_the_end_all_limits_are_back(given_steps: list[tuple[str, ...]]) -> None:
    host = Host()
    for what, whom, users, mib in given_steps:
        match what, whom:
            case "hold", str(pool):
                host.pools.setdefault(pool, {})[users] = mib * MIB  # type: ignore[index,operator]
            case "drop", str(pool):
                host.pools.pop(pool, None)
                host.silent.discard(pool)
            case "silence", str(pool) if pool not in host.pools:
                host.pools[pool] = {}
                host.silent.add(pool)
            case "answer", str(pool):
                host.silent.discard(pool)
            case "remove", CgroupRef() as cgroup:
                host.gone.add(cgroup)
            case "manager", CgroupRef() as cgroup:
                host.set_by_manager(cgroup, mib * MIB)  # type: ignore[operator]
            case "report", CgroupRef() as cgroup:
                host.budgets[cgroup.path] = Budget(mib * MIB, report_only=True)  # type: ignore[operator]
        check(*host.settle())
    host.pools.clear()
    host.silent.clear()
    for _ in range(3):
        check(*host.settle())
    assert host.journal == {}
    assert host.watched == set()
    for cgroup in (POD, *TENANTS):
        assert cgroup in host.gone or host.limit[cgroup] == host.manager[cgroup]


def test_a_tenant_that_leaves_all_pools_is_put_back_only_when_all_pools_have_answered() -> None:
    host = Host(pools={"p": {frozenset((A,)): 20 * MIB}})
    host.settle()
    assert host.limit[A] == host.limit[POD] == 44 * MIB
    host.pools = {"p": {frozenset((C,)): MIB}, "q": {}}
    host.silent.add("q")
    _, decision = host.settle()
    assert host.limit[A] == 44 * MIB, "q may hold its pages"
    assert A not in decision.released
    host.silent.clear()
    host.settle()
    assert host.limit[A] == 64 * MIB
    assert A in host.journal, "the write may fail"
    host.settle()
    assert host.journal.keys() == {C}


def test_without_settlement_nothing_is_lowered_and_what_was_goes_home() -> None:
    host = Host(pools={"p": {frozenset((A, C)): 20 * MIB}})
    host.settle()
    lowered = host.limit
    host.decider = Decider(Planner(CgroupVersion.V1, replace(RULES, settle=False)), Inheritance())
    facts, decision = host.settle()
    assert lowered == dict.fromkeys((POD, *TENANTS), 64 * MIB)
    assert decision.allowances is None
    assert decision.plan.positions == {}
    assert decision.positions.keys() == {POD, A, C}, "the bill tells what would be due all the same"
    assert decision.bill.tenants[A].share_bytes == 10 * MIB
    assert {order.cgroup for order in decision.plan.raising} == facts.journaled


def test_who_is_gone_pays_nothing_though_its_pool_has_not_noticed() -> None:
    host = Host(pools={"p": {frozenset((A, C)): 20 * MIB}})
    host.gone.add(A)
    _, decision = host.settle()
    assert decision.bill.tenants.keys() == {C}
    assert host.limit[C] == 44 * MIB
    assert A in decision.released


@pytest.mark.parametrize("admission", [True, False])
def test_pools_are_told_marks_when_the_operator_wants_that(admission: bool) -> None:
    host = Host(replace(RULES, admission=admission), pools={"p": {frozenset((A,)): 20 * MIB}})
    _, decision = host.settle()
    assert (decision.allowances is not None) == admission
