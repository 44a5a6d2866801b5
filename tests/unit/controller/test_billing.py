"""The bill, from one class to all pools: nothing is lost, nothing is made up (I1)."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controller.billing.bill import Bill, TenantShare, add_up, due_bytes, make_bill, swap_due_bytes
from controller.billing.holdings import Books, SharingClass, read_classes, read_holdings, without
from controller.policies.first_touch import FirstTouch
from controller.policies.policy import Held, Parts
from controller.policies.proportional import Proportional
from controller.policies.split import apportion, split
from sharedfs.api.types import ClassHolding, Holdings, TenantRef
from sharedfs.common.errors import BrokenInvariant
from sharedfs.linux.cgroups import CgroupRef

A, B, C = (CgroupRef(f"/{name}", inode) for inode, name in enumerate("abc", 1))
PAGE = 4096

cgroups = st.builds(CgroupRef, st.sampled_from(["/a", "/b", "/c", "/d", "/d/e"]), st.integers(1, 3))
users = st.frozensets(cgroups, max_size=6)
classes = st.builds(
    SharingClass,
    st.sampled_from(["p", "q"]),
    st.none() | cgroups,
    users,
    st.just(frozenset[CgroupRef]()),
    st.booleans(),
    st.booleans(),
)
books = st.dictionaries(classes, st.integers(0, 1 << 50), max_size=12)


@given(st.integers(0, 1 << 60), users)
@example(10, frozenset({A, B, C}))
@example(2, frozenset({A, B, C}))
@example(0, frozenset({A}))
def test_a_split_conserves_and_is_even(resident_bytes: int, shared_by: frozenset[CgroupRef]) -> None:
    shares = split(resident_bytes, shared_by)
    assert shares.keys() == shared_by
    if shared_by:
        assert sum(shares.values()) == resident_bytes
        assert max(shares.values()) - min(shares.values()) <= 1


@given(st.permutations([A, B, C]))
def test_a_split_does_not_depend_on_the_order_of_asking(order: list[CgroupRef]) -> None:
    assert split(PAGE, order) == {A: 1366, B: 1365, C: 1365}


def test_a_split_refuses_what_is_no_class() -> None:
    with pytest.raises(ValueError, match="cannot split"):
        split(-1, [A])
    with pytest.raises(ValueError, match="cannot split"):
        split(1, [A, A])


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1 << 50), min_size=1, max_size=9), st.data())
def test_apportioning_conserves_and_is_within_a_byte(weights: dict[str, int], data: st.DataObject) -> None:
    whole = sum(weights.values())
    total = data.draw(st.integers(0, whole))
    parts = apportion(total, weights)
    assert sum(parts.values()) == total
    for key, part in parts.items():
        assert abs(part * whole - total * weights[key]) < max(1, whole)
        assert part <= weights[key]


def test_there_must_be_somebody_to_apportion_to() -> None:
    assert apportion(0, {"a": 0}) == {"a": 0}
    with pytest.raises(ValueError, match="no weight"):
        apportion(1, {"a": 0})


@given(st.lists(books, max_size=3))
def test_a_bill_conserves(pools: list[Books]) -> None:
    bill = make_bill(pools, {A}, Proportional())
    bill.check()
    assert A in bill.tenants
    assert bill.pool_resident_bytes == sum(sum(pool.values()) for pool in pools)
    assert bill.unclaimed_bytes == sum(size for pool in pools for held, size in pool.items() if not held.payers)
    assert sum(line.foreign_bytes for line in bill.tenants.values()) <= bill.foreign_bytes
    for line in bill.tenants.values():
        assert line.share_bytes <= line.used_bytes


@given(st.lists(books, max_size=3))
def test_the_bills_of_pools_add_up_to_the_bill_of_all(pools: list[Books]) -> None:
    pools = [
        {replace(held, pool=str(number)): size for held, size in pool.items()} for number, pool in enumerate(pools)
    ]
    whole = make_bill(pools, {A}, Proportional())
    assert add_up([make_bill([pool], (), Proportional()) for pool in pools], {A}) == whole


@given(books, st.frozensets(cgroups, max_size=3))
def test_an_exit_moves_shares_to_those_who_stay_and_loses_nothing(pool: Books, gone: frozenset[CgroupRef]) -> None:
    before = make_bill([pool], (), Proportional())
    after = make_bill([without(pool, gone)], (), Proportional())
    assert after.pool_resident_bytes == before.pool_resident_bytes
    assert not after.tenants.keys() & gone
    for tenant, line in after.tenants.items():
        # Merged classes are rounded once where they were rounded apart.
        assert line.share_bytes >= before.tenants[tenant].share_bytes - len(pool)
        assert line.used_bytes == before.tenants[tenant].used_bytes


def test_two_share_one_is_alone_and_nobody_claims_the_rest() -> None:
    nobody = frozenset[CgroupRef]()
    pool = {
        SharingClass("p", A, frozenset({A, B}), nobody, False): 10 * PAGE,
        SharingClass("p", B, frozenset({B}), nobody, True): 3 * PAGE,
        SharingClass("p", None, nobody, nobody, False): PAGE,
        SharingClass("p", A, frozenset({A, B}), nobody, False, swapped=True): 6 * PAGE,
        SharingClass("p", B, frozenset({B}), nobody, True, swapped=True): PAGE,
        SharingClass("p", None, nobody, nobody, False, swapped=True): 2 * PAGE,
    }
    bill = make_bill([pool], {C}, Proportional())
    assert bill == Bill(
        23 * PAGE,
        3 * PAGE,
        4 * PAGE,
        9 * PAGE,
        {
            A: TenantShare(8 * PAGE, 16 * PAGE, 0, 3 * PAGE),
            B: TenantShare(12 * PAGE, 20 * PAGE, 4 * PAGE, 4 * PAGE, PAGE),
            C: TenantShare(),
        },
    )
    assert [(due_bytes(bill, tenant), swap_due_bytes(bill, tenant)) for tenant in (A, B, C)] == [
        (5 * PAGE, 3 * PAGE),
        (5 * PAGE, 3 * PAGE),
        (0, 0),
    ]


@dataclass
class Greedy(FirstTouch):
    """Charges a byte that is not there."""

    def charge(self, held: Held, held_bytes: int) -> Parts:
        return {A: held_bytes + 1}


def test_a_policy_that_does_not_conserve_is_caught() -> None:
    with pytest.raises(BrokenInvariant, match="I1"):
        make_bill([{SharingClass("p", A, frozenset({A}), frozenset(), False): PAGE}], (), Greedy())


def test_a_negative_line_is_caught() -> None:
    with pytest.raises(BrokenInvariant, match="no books give"):
        Bill(0, 1, 0, 0, {A: TenantShare(-1)}).check()


def row(size_bytes: int, *shared_by: int, owner: int = 0) -> ClassHolding:
    return ClassHolding(owner=owner, payers=shared_by, mapped=(), foreign=False, bytes=size_bytes)


def test_rows_of_one_class_become_one_so_that_it_is_rounded_once() -> None:
    tenants = (TenantRef(id=1, path="/a", inode=1), TenantRef(id=2, path="/b", inode=2))
    read = read_classes("p", tenants, [row(1, 1, 2), row(1, 2, 1), row(1, 1)])
    assert sorted(read.values()) == [1, 2]


def test_books_that_contradict_themselves_are_a_broken_invariant() -> None:
    holdings = Holdings(pool="p", sequence=7, resident_bytes=2, foreign_bytes=0, tenants=(), classes=(row(1),))
    with pytest.raises(BrokenInvariant, match=r"I1: pool p has 2 bytes resident and 1 .* sequence 7"):
        read_holdings(holdings)
    with pytest.raises(BrokenInvariant, match="tenant number 9"):
        read_classes("p", (), [row(1, 9)])
