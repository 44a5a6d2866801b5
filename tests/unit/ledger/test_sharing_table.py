"""Class ids: merged by alias, reused after a compaction, and memoised steps that stay true."""

import pytest

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.class_view import ABSENT
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.ledger.transitions import StepMemo

A, B = TenantId(1), TenantId(2)


def used_by(*tenants: int, owner: int = 0) -> SharingClass:
    return SharingClass(TenantId(owner), frozenset(map(TenantId, tenants)))


def table_of(*classes: SharingClass) -> SharingTable:
    """A table with one page in each class; their ids count from 1."""
    table = SharingTable()
    for held in classes:
        table.move(ABSENT, table.intern(held), 1)
    return table


def settled(table: SharingTable) -> SharingTable:
    table.settle(1 << 20)
    assert not table.behind
    table.check()
    return table


def compacted(table: SharingTable) -> SharingTable:
    """As the ledger does it when no page map has a dead id."""
    table.free(sorted(table.dead_ids()))
    table.free(table.empty_ids(0, 1 << 20))
    table.compacted()
    table.check()
    return table


def test_a_class_has_one_id() -> None:
    table = table_of(used_by(1), used_by(1, 2), used_by(1))
    assert table.holdings() == [(used_by(1), 2), (used_by(1, 2), 1)]
    assert table.resident_pages == 3
    table.check()


def test_exit_renames_a_class_whose_new_key_is_free() -> None:
    table = table_of(used_by(1, 2))
    assert table.exit(A)
    assert table.class_of(1) == used_by(2)
    settled(table)
    assert table.class_of(1) == used_by(2)
    assert table.alias == [ABSENT, 1]
    table.check()


def test_exit_merges_classes_that_become_one() -> None:
    table = table_of(used_by(1, 2), used_by(2), used_by(2, owner=1))
    assert table.exit(A)
    assert table.holdings() == [(used_by(2), 3)]
    settled(table)
    assert table.holdings() == [(used_by(2), 3)]
    assert {table.alias[raw] for raw in (1, 2, 3)} == {2}
    table.check()


def test_aliases_stay_one_step_long_through_chains_of_merges() -> None:
    everybody = range(1, 9)
    table = table_of(*(used_by(*everybody[:count]) for count in range(len(everybody) + 1)))
    for tenant in reversed(everybody):
        table.exit(TenantId(tenant))
        table.check()
        settled(table)
    assert table.holdings() == [(used_by(), len(everybody) + 1)]


def test_a_key_may_come_back_under_another_id() -> None:
    table = table_of(used_by(1), used_by())
    table.exit(A)
    assert table.intern(used_by(1)) not in (1, 2)
    table.check()


def test_ageing_moves_all_keys_at_once() -> None:
    """The new key of the first class is the old key of the second."""
    older = SharingClass(NOBODY, older=frozenset({A}), mapped=frozenset({B}))
    recent = SharingClass(NOBODY, recent=frozenset({A}), mapped=frozenset({B}))
    table = table_of(recent, older)
    assert table.age()
    assert [table.class_of(raw) for raw in (1, 2)] == [older, SharingClass(NOBODY, mapped=frozenset({B}))]
    table.check()


def test_what_changes_no_page_is_no_change() -> None:
    table = SharingTable()
    table.intern(used_by(1))
    assert not table.exit(A)
    assert not table.exit(A)
    assert not table.age()


def test_reclaim_frees_dead_ids_and_classes_without_pages() -> None:
    table = table_of(used_by(1), used_by(), used_by(2))
    table.intern(used_by(1, 2))
    table.exit(A)  # 1 becomes an alias, 4 an empty class of B alone, which 3 is
    compacted(settled(table))
    assert table.ids_in_use == 3  # ABSENT, nobody's and B's
    assert {table.intern(used_by(number)) for number in (3, 4, 5)} == {1, 4, 5}
    table.check()


def test_crowded_after_as_many_ids_as_spared() -> None:
    table = SharingTable(spare_ids=3)
    seen = []
    for number in range(1, 5):
        table.intern(used_by(number))
        seen.append(table.crowded)
    assert seen == [False, False, True, True]
    compacted(table)
    assert not table.crowded


def test_pages_that_are_not_there_cannot_leave() -> None:
    table = table_of(used_by(1), used_by(2))
    with pytest.raises(BrokenInvariant, match=r"^I1: 2 pages leave"):
        table.move(1, 2, 2)
    assert dict(table.holdings()) == {used_by(1): 1, used_by(2): 1}


def test_steps_of_others_stay_true_when_a_tenant_exits() -> None:
    table = table_of(used_by(1), used_by(1, 2), used_by())
    memo = StepMemo(table)
    touch = memo.of(B).touch
    assert touch.target(1) == 2
    assert touch.target(2) == 2
    assert touch.fixed == {ABSENT, 2}
    memo.forget(A)
    table.exit(A)
    memo.check()
    assert memo.of(B).touch is touch
    assert table.class_of(touch.target(1)) == used_by(2)


def test_a_memoised_target_is_read_through_its_alias() -> None:
    table = table_of(used_by(1), used_by(), used_by(2))
    touch = StepMemo(table).of(B).touch
    assert touch.target(1) == 4  # A and B
    table.exit(A)
    assert table.class_of(touch.target(1)) == used_by(2)
    settled(table)
    assert touch.target(1) == table.alias[4] == 3  # B


def test_check_finds_steps_that_survived_ageing() -> None:
    table = table_of(used_by(1))
    memo = StepMemo(table)
    memo.of(A).touch.target(1)
    table.age()
    with pytest.raises(BrokenInvariant, match="memoised as fixed"):
        memo.check()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda table: table._pages.__setitem__(1, 5), "I1: pages do not sum to 0"),
        (lambda table: table._ids_of.clear(), "I4: the tenants' classes"),
        (lambda table: table.alias.__setitem__(1, 1), "I4: an alias"),
        (lambda table: table._merged.clear(), "I4: an alias that a merge would miss"),
        (lambda table: table._id_of.pop(used_by(2)), "I1: ids"),
        (lambda table: table._classes.__setitem__(2, used_by(9)), "I1: ids"),
    ],
)
def test_check_finds_what_is_broken(broken, message: str) -> None:
    table = table_of(used_by(1, 2), used_by(2))
    table.intern(used_by(2, 3))
    table.exit(A)
    settled(table)
    broken(table)
    with pytest.raises(BrokenInvariant, match=message):
        table.check()
