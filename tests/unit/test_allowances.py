"""Allowances: a tenant is refused when its share would pass its mark, and never while there is room below it."""

from errno import EDQUOT
from os import strerror

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.accounting.caps import Caps
from sharedfs.accounting.quota import Allowances
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import NOBODY, TenantId

TENANT = TenantId(1)
PAGE = 4096
PAGES = 12


class Tenant:
    """One tenant that takes what it needs, makes the pages and gives back what it took, as the write path does."""

    def __init__(self, mark_pages: int) -> None:
        self.seconds = 0.0
        self.ledger = Ledger(PAGE)
        self.allowances = Allowances(self.ledger, lambda: self.seconds)
        self.mark(mark_pages)

    def mark(self, pages: int) -> None:
        assert self.allowances.put(self.ledger.sequence, {TENANT: pages * PAGE}, 10.0)
        self.mark_bytes = pages * PAGE

    def write(self, file: int, pages: int) -> None:
        absent = self._absent(file, pages)
        self.allowances.take(TENANT, absent * PAGE)
        made = self.ledger.charge(file, 0, pages - 1, TENANT)
        self.allowances.spend(TENANT, made * PAGE)
        self.allowances.give_back(TENANT, absent * PAGE)

    def fits(self, file: int, pages: int) -> bool:
        """The oracle: what the books say now and nothing counted on the way."""
        absent = self._absent(file, pages)
        return self.ledger.resident_bytes + absent * PAGE <= self.mark_bytes or not absent

    def _absent(self, file: int, pages: int) -> int:
        return sum(last - first + 1 for first, last in self.ledger.absent(file, [(0, pages - 1)]))


steps = st.tuples(st.sampled_from(["write", "cut", "mark"]), st.integers(1, 3), st.integers(1, PAGES))


@given(mark=st.integers(0, 2 * PAGES), todo=st.lists(steps, max_size=30))
def test_refused_is_what_does_not_fit_and_nothing_else(mark: int, todo: list[tuple[str, int, int]]) -> None:
    tenant = Tenant(mark)
    for what, file, pages in todo:
        match what:
            case "write" if tenant.fits(file, pages):
                tenant.write(file, pages)
            case "write":
                before, refused = tenant.ledger.holdings(), tenant.allowances.refused
                with pytest.raises(OSError, match=strerror(EDQUOT)):
                    tenant.write(file, pages)
                assert (tenant.ledger.holdings(), tenant.allowances.refused) == (before, refused + 1)
            case "cut":
                tenant.ledger.uncharge(file, pages - 1, PAGES)
            case _:
                tenant.mark(pages)


TENANTS = (TenantId(1), TenantId(2), TenantId(3))
POOL = 40


class CappedPool:
    """Three tenants that make files of their own in a pool of 40 pages, without a controller."""

    def __init__(self, cap_pages: int, remainder_pages: int) -> None:
        self.cap, self.remainder = cap_pages, remainder_pages
        self.ledger = Ledger(PAGE)
        self.allowances = Allowances(self.ledger, lambda: 0.0)
        self.allowances.bind(Caps(POOL * PAGE, cap_pages * PAGE, remainder_pages * PAGE), TENANTS)

    def write(self, tenant: TenantId, pages: int) -> None:
        absent = pages - self.ledger.resident_pages_of(tenant)
        self.allowances.take(tenant, max(0, absent) * PAGE)
        made = self.ledger.charge(tenant, 0, pages - 1, tenant)
        self.allowances.spend(tenant, made * PAGE)
        self.allowances.give_back(tenant, max(0, absent) * PAGE)

    def excess(self, tenant: TenantId, pages: int, spare: int) -> bool:
        """The oracle: whether a tenant would have more than its part, when `spare` pages count as used."""
        has = self.ledger.resident_pages_of(tenant)
        used = self.ledger.resident_bytes // PAGE + pages - has
        touches_remainder = self.remainder > 0 and used + spare > POOL - self.remainder
        return pages > has and (pages > self.cap or (touches_remainder and pages > self.remainder))


capped_steps = st.tuples(st.sampled_from(TENANTS), st.sampled_from(["write", "write", "cut"]), st.integers(1, POOL))


@given(cap=st.integers(0, POOL), remainder=st.integers(0, 16), todo=st.lists(capped_steps, max_size=30))
def test_caps_and_the_remainder(cap: int, remainder: int, todo: list[tuple[TenantId, str, int]]) -> None:
    pool = CappedPool(cap, remainder)
    for tenant, what, pages in todo:
        if what == "cut":
            pool.ledger.uncharge(tenant, pages - 1, POOL)
            pool.allowances.keep_up()
            continue
        must, may = pool.excess(tenant, pages, 0), pool.excess(tenant, pages, remainder // 8 + 1)
        before = pool.ledger.holdings()
        try:
            pool.write(tenant, pages)
        except OSError:
            assert may
            assert pool.ledger.holdings() == before
        else:
            assert not must


def test_what_one_asks_for_in_vain_refuses_nobody_else() -> None:
    pool = CappedPool(POOL, 10)
    pool.write(TENANTS[0], 15)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        pool.write(TENANTS[1], 30)
    pool.write(TENANTS[0], 20)


def test_caps_that_are_taken_back_bind_nobody() -> None:
    pool = CappedPool(4, 10)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        pool.write(TENANTS[0], 5)
    pool.allowances.bind(Caps(), TENANTS)
    pool.write(TENANTS[0], POOL)
    assert not pool.allowances.left


def test_what_yields_is_free() -> None:
    pool = CappedPool(POOL, 10)
    pool.ledger.charge(99, 0, 29, NOBODY)
    pool.allowances.bind(Caps(POOL * PAGE, POOL * PAGE, 10 * PAGE, unclaimed_yields=True), TENANTS)
    pool.allowances.keep_up()
    pool.write(TENANTS[0], 30)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        pool.write(TENANTS[0], 31)


def test_what_a_refusal_found_free_can_be_used() -> None:
    """The books are looked at once in each state of theirs: what was found then counts, even when it was too little."""
    tenant = Tenant(10)
    tenant.write(1, 10)
    tenant.ledger.uncharge(1, 1, PAGES)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        tenant.write(2, 12)
    tenant.write(3, 5)


def test_nobody_is_refused_when_marks_have_ended() -> None:
    tenant = Tenant(1)
    tenant.seconds = 11.0
    tenant.write(1, PAGES)
    assert TENANT not in tenant.allowances.left


def test_a_tenant_that_the_controller_has_not_seen_may_fill_its_cgroup() -> None:
    allowances = Tenant(0).allowances
    allowances.begin(TenantId(77), {"/a": 4 * PAGE})
    allowances.take(TenantId(77), 4 * PAGE)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        allowances.take(TenantId(77), PAGE)
    allowances.begin(TenantId(78), {})
    allowances.take(TenantId(78), 1 << 30)
