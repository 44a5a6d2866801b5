"""What touching, mapping, ageing and exiting do to a sharing class."""

from itertools import product

from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId

A, B, C = TenantId(1), TenantId(2), TenantId(3)


def held(owner: int = 0, recent: str = "", older: str = "", mapped: str = "", foreign: bool = False) -> SharingClass:
    """`held(1, "12", mapped="3")`: owned by 1, touched lately by 1 and 2, mapped by 3."""
    sets = (frozenset(TenantId(int(digit)) for digit in digits) for digits in (recent, older, mapped))
    return SharingClass(TenantId(owner), *sets, foreign=foreign)


def test_who_allocates_owns_and_uses() -> None:
    assert SharingClass.charged_by(A) == held(1, "1")
    assert SharingClass.charged_by(A, foreign=True) == held(1, "1", foreign=True)
    assert SharingClass.charged_by(NOBODY) == held()
    assert SharingClass.charged_by(NOBODY).payers == frozenset()


def test_the_owner_and_the_users_pay() -> None:
    shared = held(1, "2", "3", "2")
    assert shared.users == {B, C}
    assert shared.payers == {A, B, C}
    assert held(0, "2").payers == {B}
    assert held(1).payers == {A}


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


def test_the_owner_pays_whatever_it_forgets() -> None:
    assert held(1, "1").aged().aged() == held(1)
    assert held(1, "1").aged().aged().payers == {A}
    assert held(1, "", "12").aged().payers == {A}


def test_the_last_reader_does_not_pay_for_ever() -> None:
    """Its touch of what an exited tenant made counts for one to two generations, then the pages are unclaimed.

    The rule before this one let the last users pay as long as they lived.
    """
    inherited = held(1, "12").without(A)
    assert inherited.aged().payers == {B}
    assert inherited.aged().aged() == held()
    assert held_by_the_last_users(inherited.aged()).payers == {B}, "the control: the rule that there was"


def held_by_the_last_users(before: SharingClass) -> SharingClass:
    """`aged` as it was: it left the last users where nobody came after them."""
    return before.aged() if before.recent or before.mapped else before


def test_handing_over_changes_the_owner_and_no_user() -> None:
    assert held(1, "1", "2", "3").handed_to(B) == held(2, "1", "2", "3")
    assert held(1).handed_to(NOBODY) == held()
    assert held(0).handed_to(A) == held(1)
    assert held(1, foreign=True).handed_to(B) == held(1, foreign=True), "the kernel goes on charging A"


def test_one_payer_is_left_and_it_is_the_owner() -> None:
    assert held(1, "2", "3", "2").reduced() == held(1)
    assert held(1, "12", "", "1").reduced() == held(1, mapped="1")
    assert held(0, "2", "3").reduced() == held(0, "2")
    assert held(1).reduced() == held(1)


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
    for rule in (SharingClass.touched_by, SharingClass.mapped_by, SharingClass.unmapped_by, SharingClass.handed_to):
        assert all(rule(one, A).without(B) == rule(one.without(B), A) for one in classes)


def test_the_heir_of_who_is_gone_pays_when_nobody_uses_the_pages() -> None:
    left = held(1, "1").without(A, B)
    assert (left, left.payers, left.is_unclaimed) == (SharingClass(NOBODY, heir=B), {B}, True)
    used = left.touched_by(C)
    assert (used.payers, used.is_unclaimed, used.tenants) == ({C}, False, {B, C})
    assert used.aged().aged() == left
    assert held(1, "12").without(A, B).payers == {B}, "as a user"


def test_an_heir_that_goes_has_an_heir_or_none() -> None:
    left = held(1).without(A, B)
    assert left.without(B, C) == SharingClass(NOBODY, heir=C)
    assert left.without(B) == held()
    assert held(1, "2").without(B, C) == held(1), "it owned nothing: nobody inherits"


def test_who_is_made_the_owner_puts_an_end_to_the_heir() -> None:
    left, foreign = held(1).without(A, B), held(1, foreign=True).without(A, B)
    assert left.handed_to(C) == held(3)
    assert left.handed_to(NOBODY) == held()
    assert foreign.charged_to(C) == held(3, foreign=True)
    assert foreign.charged_to(NOBODY) == held(foreign=True)
    assert foreign.recharged() == left
