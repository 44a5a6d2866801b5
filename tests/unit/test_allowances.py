"""Allowances: a tenant is refused when its share would pass its mark, and never while there is room below it."""

from errno import EDQUOT
from os import strerror

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.accounting.quota import Allowances
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import TenantId

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
    allowances.begin(TenantId(77), 4 * PAGE)
    allowances.take(TenantId(77), 4 * PAGE)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        allowances.take(TenantId(77), PAGE)
    allowances.begin(TenantId(78), None)
    allowances.take(TenantId(78), 1 << 30)
