"""How far tenants may grow: what they, and all above them, can bear at once."""

from controller.limits.types import Account, Limits, round_down
from controller.settlement.admission import headrooms_of, marks, marks_above
from controller.settlement.settle import Position
from sharedfs.common.headroom import Room
from sharedfs.linux.cgroups import CgroupRef

MIB = 1 << 20
ROOM = Room(1 << 20, 0)
POD, A, B, FREE = (CgroupRef(path, inode) for inode, path in enumerate(("/pod", "/pod/a", "/pod/b", "/free"), 1))


def position(cgroup: CgroupRef, budget: int, usage: int, due: int, *, report_only: bool = False) -> Position:
    operator = budget if report_only else None
    return Position(cgroup, Account(Limits(), usage, usage), Limits(budget), operator, due, report_only)


def test_a_tenant_may_add_what_it_can_bear() -> None:
    stand = [position(A, 64 * MIB, 20 * MIB, 10 * MIB)]
    assert marks({A: 10 * MIB, FREE: MIB}, headrooms_of(stand, ROOM)) == {A: 43 * MIB, FREE: None}


def test_who_owes_may_add_nothing() -> None:
    assert marks({A: 50 * MIB}, headrooms_of([position(A, 64 * MIB, 20 * MIB, 50 * MIB)], ROOM)) == {A: 50 * MIB}


def test_what_is_above_must_bear_it_too() -> None:
    stand = [position(POD, 64 * MIB, 40 * MIB, 15 * MIB), position(A, 64 * MIB, 20 * MIB, 10 * MIB)]
    assert marks({A: 10 * MIB, B: 5 * MIB}, headrooms_of(stand, ROOM)) == {A: 18 * MIB, B: 13 * MIB}


def test_a_budget_for_reports_refuses_nothing() -> None:
    assert marks({A: 5 * MIB}, headrooms_of([position(A, MIB, 0, 5 * MIB, report_only=True)], ROOM)) == {A: None}


def test_the_room_that_is_left_is_in_proportion_to_the_budget() -> None:
    """The larger of 16 MiB and 5 %, and at most a quarter."""
    rooms = {8: 2, 64: 16, 256: 16, 320: 16, 1024: 1024 * 5 // 100, 64 << 10: (64 << 10) * 5 // 100}
    for budget, room in rooms.items():
        assert Room().of(budget * MIB) // MIB == room
        may_grow = marks({A: 0}, headrooms_of([position(A, budget * MIB, MIB, 0)], Room()))[A]
        assert may_grow is not None
        assert may_grow == round_down(budget * MIB - MIB - Room().of(budget * MIB))


def test_siblings_have_the_room_of_what_is_above_together() -> None:
    """What each alone may add is theirs once, whoever takes it; a cap bounds them like a budget."""
    stand = [position(POD, 64 * MIB, 40 * MIB, 15 * MIB), position(A, 64 * MIB, 20 * MIB, 10 * MIB)]
    headrooms, even = headrooms_of(stand, ROOM), {A: 10 * MIB, B: 5 * MIB, FREE: MIB}
    assert headrooms["/pod"] == 8 * MIB
    assert marks_above(even, headrooms, {}) == {"/pod": 23 * MIB}
    assert marks_above(even, headrooms, {"/pod": 17 * MIB, "/free": MIB}) == {"/pod": 17 * MIB, "/free": MIB}
    assert marks_above(even, {}, {}) == {}
    deep = {CgroupRef("/pod/a/child", 7): 3 * MIB, A: 10 * MIB}
    assert marks_above(deep, headrooms, {}) == {"/pod": 21 * MIB, "/pod/a": 13 * MIB + 8 * MIB}
