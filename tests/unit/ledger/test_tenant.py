"""Tenants: one id for each cgroup that ever lived."""

import pytest

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.storage import MemoryLog, Record
from sharedfs.ledger.tenant import NOBODY, Tenant, TenantId, TenantTable


def test_an_identity_has_one_id() -> None:
    table = TenantTable()
    first = table.intern("/pods/a", 17)
    assert first == 1
    assert table.intern("/pods/a", 17) == first
    assert table.find(17) == first
    assert table.get(first) == Tenant(first, "/pods/a", 17)
    assert len(table) == 1


def test_a_path_that_comes_back_is_another_tenant() -> None:
    table = TenantTable()
    before, after = table.intern("/pods/a", 17), table.intern("/pods/a", 23)
    assert before != after
    assert [tenant.inode for tenant in table.live()] == [17, 23]


def test_a_renamed_cgroup_is_the_same_tenant() -> None:
    records: list[Record] = []
    log = MemoryLog()
    log.append = records.append  # type: ignore[method-assign]
    table = TenantTable(log)
    tenant = table.intern("/pods/a", 17)
    assert table.intern("/pods/b", 17) == tenant
    assert table.live() == [Tenant(tenant, "/pods/b", 17)]
    table.check()
    again = TenantTable()
    assert all(again.replay(record) for record in records)
    assert len(records) == 2
    assert again.live() == table.live()
    again.check()


def test_a_tenant_that_has_exited_is_nobody() -> None:
    table = TenantTable()
    tenant = table.intern("/pods/a", 17)
    assert tenant in table
    assert table.if_live(tenant) == tenant
    table.remove(tenant)
    assert tenant not in table
    assert table.if_live(tenant) == NOBODY


def test_ids_are_not_reused() -> None:
    table = TenantTable()
    gone = table.intern("/pods/a", 17)
    assert table.remove(gone).path == "/pods/a"
    assert table.get(gone) is None
    assert table.find(17) is None
    assert table.intern("/pods/a", 17) == gone + 1
    table.check()


@pytest.mark.parametrize("unknown", [NOBODY, TenantId(2)])
def test_removing_who_does_not_live_changes_nothing(unknown: TenantId) -> None:
    table = TenantTable()
    table.intern("/pods/a", 17)
    before = table.live()
    with pytest.raises(KeyError):
        table.remove(unknown)
    assert table.live() == before
    table.check()


def test_check_finds_a_tenant_lost_from_one_index() -> None:
    table = TenantTable()
    table.intern("/pods/a", 17)
    table._by_inode.clear()
    with pytest.raises(BrokenInvariant, match=r"^I9"):
        table.check()


def test_who_pays_for_what_a_gone_tenant_made() -> None:
    records: list[Record] = []
    log = MemoryLog()
    log.append = records.append  # type: ignore[method-assign]
    table = TenantTable(log)
    slice_, pod, child = (table.intern(path, inode) for inode, path in enumerate(("/s", "/s/pod", "/s/pod/c"), 1))
    assert table.payer_for(child) == child
    table.remove(child, pod)
    assert table.payer_for(child) == pod
    table.remove(pod, slice_)
    assert [table.payer_for(one) for one in (child, pod, slice_)] == [slice_] * 3
    table.check()
    for replayed in (records, [table.dump()]):
        again = TenantTable()
        assert all(again.replay(record) for record in replayed)
        again.check()
        assert [again.payer_for(one) for one in (child, pod, slice_, NOBODY)] == [slice_] * 3 + [NOBODY]
    table.keep_heirs_of({child})
    assert (table.payer_for(child), table.payer_for(pod)) == (slice_, NOBODY)
    assert len(table.dump(with_heirs=False)) == 3, "as the versions before read it"
    table.remove(slice_)
    assert table.payer_for(child) == NOBODY
    table.check()
