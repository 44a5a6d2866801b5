"""The planner over time: many settlements of tenants whose usage, shares and budgets move, on a kernel that obeys."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.billing.hierarchy import above, due_at
from controller.limits.types import Account, Limits
from controller.settlement.pacing import Pace
from controller.settlement.peaks import Peaks
from controller.settlement.planner import Plan, Planner, Rules
from controller.settlement.settle import Position, raises
from sharedfs.common.headroom import DEFAULT_ROOM
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion

MIB = 1 << 20
ROOM = DEFAULT_ROOM.of(64 * MIB)
A, B, C = (CgroupRef(f"/pod/{name}", inode) for inode, name in enumerate("abc", 1))


class Host:
    """Tenants with a limit of 64 MiB each; every order is carried out as given, all usage cannot be reclaimed."""

    def __init__(self, rules: Rules, tenants: tuple[CgroupRef, ...] = (A, B, C)) -> None:
        self.planner = Planner(CgroupVersion.V1, rules)
        self.limit = dict.fromkeys(tenants, 64 * MIB)
        self.usage = dict.fromkeys(tenants, 0)
        self.due = dict.fromkeys(tenants, 0)
        self.now = 0.0

    def settle(self, seconds: float = 0.5) -> Plan:
        self.now += seconds
        positions = [
            Position(tenant, Account(Limits(limit), usage, usage), Limits(64 * MIB), None, self.due[tenant])
            for (tenant, limit), usage in zip(self.limit.items(), self.usage.values(), strict=True)
        ]
        plan = self.planner.plan(self.now, positions)
        for order in (*plan.raising, *plan.lowering):
            assert order.intended.max_bytes is not None
            self.limit[order.cgroup] = order.intended.max_bytes
        return plan


steps = st.lists(
    st.tuples(
        st.sampled_from([A, B, C]),
        st.sampled_from(["usage", "due"]),
        st.integers(0, 80),
        st.sampled_from([0.5, 0.1, 5.0]),
    ),
    max_size=25,
)


@given(steps, st.sampled_from(["pool", "parent", "headroom"]))
def test_at_every_moment_nobody_is_killed_and_debts_are_right(
    given_steps: list[tuple[CgroupRef, str, int, float]], rule: str
) -> None:
    host = Host(Rules(bearing=rule))  # type: ignore[arg-type]
    for tenant, what, mib, seconds in given_steps:
        if what == "usage":  # the kernel does not let it grow beyond its limit
            host.usage[tenant] = min(mib * MIB, host.limit[tenant])
        else:
            host.due[tenant] = mib * MIB
        before = dict(host.limit)
        plan = host.settle(seconds)
        assert all(map(raises, plan.raising))
        assert not any(map(raises, plan.lowering))
        for cgroup, limit in host.limit.items():
            assert limit >= min(before[cgroup], host.usage[cgroup] + ROOM), "I5"
            assert limit <= 64 * MIB
        owed = {debt.cgroup: debt.debt_bytes for debt in plan.debts}
        assert sum(plan.borne.values()) <= sum(owed.values())
        assert not plan.borne.keys() & owed.keys(), "who owes bears nothing"
        for cgroup, part in plan.borne.items():
            assert 0 < part <= 64 * MIB - host.due[cgroup] - host.usage[cgroup], "out of what it does not need"
    for tenant in host.limit:
        host.usage[tenant] = 0
    for _ in range(30):
        plan = host.settle(2.5)
    for tenant, limit in host.limit.items():
        if host.due[tenant] <= 64 * MIB - ROOM and not plan.borne:
            assert limit == 64 * MIB - host.due[tenant], "in the end every limit is right to the byte"
    assert not plan.raising
    assert not plan.lowering


def test_a_debt_is_paid_as_soon_as_there_is_room_and_has_an_age_until_then() -> None:
    host = Host(Rules())
    host.usage[A], host.due[A] = 40 * MIB, 30 * MIB
    first = host.settle()
    (debt,) = first.debts
    assert debt.debt_bytes == 40 * MIB + 5 * MIB + ROOM - 34 * MIB, "an eighth more, of which nothing is known"
    for _ in range(24):
        later = host.settle()
    (debt,) = later.debts
    assert (debt.debt_bytes, debt.since_seconds) == (40 * MIB + ROOM - 34 * MIB, 0.5)
    assert host.limit[A] == 40 * MIB + ROOM
    host.usage[A] = 10 * MIB
    for _ in range(20):
        assert host.settle().debts, "it may need as much again: the peaks of ten seconds count"
    assert not host.settle().debts
    assert host.limit[A] == 34 * MIB


def test_debts_that_last_are_borne_by_who_can_and_given_back() -> None:
    host = Host(Rules(bearing="headroom"))
    host.usage[A], host.due[A] = 60 * MIB, 16 * MIB
    host.usage[B] = 30 * MIB
    assert not host.settle().borne, "it may be over in a moment"
    for _ in range(30):
        plan = host.settle()
    (debt,) = plan.debts
    assert plan.borne == {C: debt.debt_bytes}
    assert host.limit[C] == 64 * MIB - debt.debt_bytes
    assert plan.watches[C].raised == Limits(64 * MIB), "what it bears for another yields to its own demand"
    assert host.limit[B] == 64 * MIB
    host.due[A] = 0
    host.settle()
    assert host.limit == dict.fromkeys((A, B, C), 64 * MIB)


def test_a_limit_goes_down_no_faster_than_the_tenant_can_give_up() -> None:
    host = Host(Rules(pace=Pace(descent_bytes_per_second=8 * MIB)), (A,))
    cached = replace(
        Position(A, Account(Limits(64 * MIB), 60 * MIB, 0), Limits(64 * MIB), None, 40 * MIB), steady_bytes=0
    )
    limits = []
    for second in range(8):
        plan = host.planner.plan(float(second), [cached])
        for order in plan.lowering:
            limits.append(order.intended.max_bytes)
            account = Account(order.intended, min(60 * MIB, order.intended.max_bytes or 0), 0)
            cached = replace(cached, account=account)
    assert limits == [52 * MIB, 44 * MIB, 36 * MIB, 28 * MIB, 24 * MIB]


@pytest.mark.parametrize(
    ("pool_cgroup", "due"), [("/pools/p", {"/pod": 7, "/pod/a": 3}), ("/pod/p", {"/pod": 0, "/pod/a": 3})]
)
def test_what_is_due_of_a_pod_is_what_all_below_it_owe(pool_cgroup: str, due: dict[str, int]) -> None:
    assert above([A.path, "/x"]) == {"/pod"}
    assert due_at({"p": {A: 3, B: 4, CgroupRef("/podium", 9): 100}}, {"p": pool_cgroup}, ["/pod", A.path]) == due


def test_a_need_of_the_last_hour_yields_and_is_forgotten_after_it() -> None:
    """A burst every few minutes: debts are paid in between, and the burst that was seen comes through again."""
    host = Host(Rules(), (A,))
    host.usage[A] = 40 * MIB
    host.settle()
    host.usage[A] = 4 * MIB
    for _ in range(60):
        host.settle()
    host.due[A] = 40 * MIB
    plan = host.settle()
    assert host.limit[A] == 24 * MIB
    assert plan.watches[A].raised == Limits(41 * MIB), "the need and a slack, and no more: it took the share on itself"
    assert plan.watches[A].threshold_bytes == 24 * MIB - ROOM // 2
    (position,) = plan.positions.values()
    assert position.headroom_bytes(DEFAULT_ROOM) == 0, "admission keeps it free"
    for _ in range(130):
        plan = host.settle(30.0)
    assert not plan.watches


def test_a_burst_between_two_readings_is_seen_by_the_kernels_record() -> None:
    peaks = Peaks()
    peaks.note(0.0, A, 4 * MIB, cache_bytes=10 * MIB, record_bytes=14 * MIB)
    peaks.note(0.5, A, 4 * MIB, cache_bytes=12 * MIB, record_bytes=76 * MIB)
    assert peaks.remembered(A) == 64 * MIB
    peaks.note(1.0, A, 4 * MIB, cache_bytes=90 * MIB, record_bytes=94 * MIB)
    assert peaks.remembered(A) == 64 * MIB, "page cache is no need"


def test_without_a_guard_nothing_is_lowered_that_would_have_to_yield() -> None:
    planner = Planner(CgroupVersion.V1, Rules())
    heir = Position(A, Account(Limits(64 * MIB), MIB, MIB), Limits(64 * MIB), None, 60 * MIB, inherited_bytes=50 * MIB)
    plan = planner.plan(0.0, [heir], guarded=False)
    assert [order.intended for order in plan.lowering] == [Limits(54 * MIB)]
    assert not plan.watches
    plan = planner.plan(0.5, [heir])
    (order,) = plan.lowering
    assert order.intended.max_bytes is not None
    assert order.intended.max_bytes < 54 * MIB
    assert plan.watches[A].raised == Limits(54 * MIB)
