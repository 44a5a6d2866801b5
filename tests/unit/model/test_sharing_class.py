"""What touching, mapping, ageing and exiting do to a sharing class."""

from itertools import product

from sharedfs.model.sharing import SharingClass
from sharedfs.model.tenant import NOBODY, TenantId

A, B, C = TenantId(1), TenantId(2), TenantId(3)


def held(owner: int = 0, recent: str = "", older: str = "", mapped: str = "", foreign: bool = False) -> SharingClass:
    """`held(1, "12", mapped="3")`: owned by 1, touched lately by 1 and 2, mapped by 3."""
    sets = (frozenset(TenantId(int(digit)) for digit in digits) for digits in (recent, older, mapped))
    return SharingClass(TenantId(owner), *sets, foreign=foreign)


def test_who_allocates_owns_and_uses() -> None:
    assert SharingClass.charged_by(A) == held(1, "1")
    assert SharingClass.charged_by(A, foreign=True) == held(1, "1", foreign=True)
    assert SharingClass.charged_by(NOBODY) == held()
    assert SharingClass.charged_by(NOBODY).users == frozenset()


def test_users_pay_and_an_owner_need_not_be_one() -> None:
    shared = held(1, "2", "3", "2")
    assert shared.users == {B, C}
    assert shared.tenants == {A, B, C}
    assert held(0, "2").tenants == {B}


def test_touching() -> None:
    assert held(1, "1").touched_by(B) == held(1, "12")
    assert held(1, "1", "2").touched_by(B) == held(1, "12")
    assert held(1, "1").touched_by(A) == held(1, "1")
    assert held(1, "1").touched_by(NOBODY) == held(1, "1")
    assert held(1, "", "", "2").touched_by(B) == held(1, "2", "", "2")


def test_mapping_is_not_touching() -> None:
    assert held(1, "1").mapped_by(B) == held(1, "1", "", "2")
    assert held(1, "1", "2").mapped_by(B) == held(1, "1", "2", "2")
    assert held(1, "1").mapped_by(NOBODY) == held(1, "1")


def test_unmapping_was_a_use_until_now() -> None:
    assert held(1, "", "", "2").unmapped_by(B) == held(1, "2")
    assert held(1, "", "2", "2").unmapped_by(B) == held(1, "2")
    assert held(1, "1").unmapped_by(B) == held(1, "1")


def test_a_touch_lasts_one_generation_and_is_forgotten_in_the_second() -> None:
    shared = held(1, "12").aged()
    assert shared == held(1, "", "12")
    assert shared.touched_by(A).aged() == held(1, "", "1")


def test_ageing_never_leaves_pages_without_a_payer() -> None:
    assert held(1, "1").aged().aged().aged().users == {A}
    assert held(1, "", "12").aged() == held(1, "", "12")
    assert held().aged() == held()


def test_a_mapping_keeps_paying_while_touches_age() -> None:
    assert held(1, "1", "", "2").aged() == held(1, "", "1", "2")
    assert held(1, "", "1", "2").aged() == held(1, "", "", "2")
    assert held(1, "", "", "2").aged() == held(1, "", "", "2")


def test_exit_removes_a_tenant_everywhere() -> None:
    assert held(1, "12", "3", "1").without(A) == held(0, "2", "3")
    assert held(1, "2").without(A) == held(0, "2")
    assert held(1, "1", foreign=True).without(A) == held(foreign=True)
    assert held(2, "2").without(A) == held(2, "2")
    assert held().without(NOBODY) == held()


def test_what_one_tenant_does_commutes_with_the_exit_of_another() -> None:
    places = ["", "1", "2", "12"]
    classes = [
        held(owner, recent, older, mapped)
        for owner, recent, older, mapped in product((0, 1, 2), places, places, places)
        if not set(recent) & set(older)
    ]
    for rule in (SharingClass.touched_by, SharingClass.mapped_by, SharingClass.unmapped_by):
        assert all(rule(one, A).without(B) == rule(one.without(B), A) for one in classes)
