"""Debts, their ages, and who bears them: water-filling beside a slow oracle."""

from hypothesis import example, given
from hypothesis import strategies as st

from controller.settlement.debts import Debt, DebtAges, bear, water_fill
from sharedfs.linux.cgroups import CgroupRef

A, B, C = CgroupRef("/pod/a", 1), CgroupRef("/pod/b", 2), CgroupRef("/other/c", 3)


def one_at_a_time(amount: int, rooms: list[int]) -> list[int]:
    """The oracle: who has most room left gives one; the first of equals."""
    left = list(rooms)
    for _ in range(amount):
        most = max(left, default=0)
        if most == 0:
            break
        left[left.index(most)] -= 1
    return [room - rest for room, rest in zip(rooms, left, strict=True)]


@given(st.integers(0, 60), st.lists(st.integers(0, 20), max_size=6))
@example(5, [7, 7, 7])
@example(100, [3, 0, 9])
def test_water_filling_is_what_the_oracle_says(amount: int, rooms: list[int]) -> None:
    assert water_fill(amount, rooms) == one_at_a_time(amount, rooms)


@given(st.integers(0, 1 << 50), st.lists(st.integers(0, 1 << 48), max_size=8))
def test_water_filling_is_exact_to_the_byte_and_level(amount: int, rooms: list[int]) -> None:
    parts = water_fill(amount, rooms)
    assert sum(parts) == min(amount, sum(rooms))
    left = [room - part for room, part in zip(rooms, parts, strict=True)]
    assert all(0 <= rest <= room for rest, room in zip(left, rooms, strict=True))
    giving = [rest for rest, part in zip(left, parts, strict=True) if part]
    assert not giving or max(left) - min(giving) <= 1, "nobody is left with more than one who gave"


def test_a_debt_has_an_age_until_it_is_paid() -> None:
    ages = DebtAges()
    assert ages.update(10.0, {A: 5, B: 0}) == [Debt(A, 5, 10.0)]
    assert ages.update(11.0, {A: 3, B: 1}) == [Debt(A, 3, 10.0), Debt(B, 1, 11.0)]
    assert ages.update(12.0, {A: 0, B: 1}) == [Debt(B, 1, 11.0)]
    assert ages.update(13.0, {A: 1}) == [Debt(A, 1, 13.0)]


def test_who_bears_is_the_rule() -> None:
    debts = [Debt(A, 12, 0.0)]
    headroom = {B: 10, C: 30}
    assert bear("pool", debts, headroom) == {}
    assert bear("parent", debts, headroom) == {B: 10}, "2 stay with the pool"
    assert bear("headroom", debts, headroom) == {C: 12}
    assert bear("headroom", [Debt(A, 26, 0.0)], headroom) == {C: 23, B: 3}


def test_the_oldest_debt_is_borne_first() -> None:
    top = CgroupRef("/a", 4)
    assert bear("parent", [Debt(A, 8, 0.0), Debt(top, 8, 1.0)], {B: 10, C: 1}) == {B: 10, C: 1}
    assert bear("parent", [Debt(C, 8, 0.0), Debt(A, 8, 1.0)], {B: 10}) == {B: 8}


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 50)), unique_by=lambda debt: debt[0]),
    st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 40)),
)
def test_no_more_is_borne_than_owed_nor_than_there_is_room(
    owed: list[tuple[CgroupRef, int]], headroom: dict[CgroupRef, int]
) -> None:
    debts = [Debt(cgroup, debt, 0.0) for cgroup, debt in owed]
    able = {cgroup: room for cgroup, room in headroom.items() if cgroup not in dict(owed)}
    borne = bear("headroom", debts, able)
    assert sum(borne.values()) == min(sum(dict(owed).values()), sum(able.values()))
    assert all(part <= able[cgroup] for cgroup, part in borne.items())
