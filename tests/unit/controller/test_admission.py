"""How far tenants may grow: what they, and all above them, can bear at once."""

from controller.billing.admission import marks
from controller.billing.settlement import FLOOR_BYTES, Position
from controller.limits.base import Account, Limits
from sharedfs.kernel.cgroups import CgroupRef

MIB = 1 << 20
POD, A, B, FREE = (CgroupRef(path, inode) for inode, path in enumerate(("/pod", "/pod/a", "/pod/b", "/free"), 1))


def position(cgroup: CgroupRef, budget: int, usage: int, due: int, *, report_only: bool = False) -> Position:
    operator = budget if report_only else None
    return Position(cgroup, Account(Limits(), usage, usage), Limits(budget), operator, due, report_only)


def test_a_tenant_may_add_what_it_can_bear() -> None:
    stand = [position(A, 64 * MIB, 20 * MIB, 10 * MIB)]
    assert marks({A: 10 * MIB, FREE: MIB}, stand, FLOOR_BYTES) == {A: 43 * MIB, FREE: None}


def test_who_owes_may_add_nothing() -> None:
    assert marks({A: 50 * MIB}, [position(A, 64 * MIB, 20 * MIB, 50 * MIB)], FLOOR_BYTES) == {A: 50 * MIB}


def test_what_is_above_must_bear_it_too() -> None:
    stand = [position(POD, 64 * MIB, 40 * MIB, 15 * MIB), position(A, 64 * MIB, 20 * MIB, 10 * MIB)]
    assert marks({A: 10 * MIB, B: 5 * MIB}, stand, FLOOR_BYTES) == {A: 18 * MIB, B: 13 * MIB}


def test_a_budget_for_reports_refuses_nothing() -> None:
    assert marks({A: 5 * MIB}, [position(A, MIB, 0, 5 * MIB, report_only=True)], FLOOR_BYTES) == {A: None}
