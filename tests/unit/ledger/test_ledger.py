"""The ledger by example: who holds what after each kind of operation, and that a mistake changes nothing."""

from collections.abc import Callable, Iterator

import pytest

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.page_ranges import LAST_PAGE
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId

A, B, C = TenantId(1), TenantId(2), TenantId(3)
FILE, OTHER = 10, 20
PAGE = 4096


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    books = Ledger(PAGE)
    yield books
    books.check()


def payers(ledger: Ledger) -> dict[frozenset[TenantId], int]:
    """Pages by their payers."""
    pages: dict[frozenset[TenantId], int] = {}
    for held, size_bytes in ledger.holdings():
        pages[held.payers] = pages.get(held.payers, 0) + size_bytes // PAGE
    return pages


def test_new_books_are_empty(ledger: Ledger) -> None:
    assert ledger.holdings() == []
    assert ledger.files() == []
    assert (ledger.resident_bytes, ledger.foreign_bytes, ledger.sequence) == (0, 0, 0)


def test_charging_makes_pages_resident(ledger: Ledger) -> None:
    assert ledger.charge(FILE, 0, 9, A) == 10
    assert ledger.holdings() == [(SharingClass(A, frozenset({A})), 10 * PAGE)]
    assert ledger.resident_bytes == 10 * PAGE
    assert ledger.resident_pages_of(FILE) == 10


def test_charging_what_is_resident_touches_it(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, A)
    assert ledger.charge(FILE, 5, 14, B) == 5
    assert payers(ledger) == {frozenset({A}): 5, frozenset({A, B}): 5, frozenset({B}): 5}


def test_what_nobody_charges_is_unclaimed_until_somebody_uses_it(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, NOBODY)
    ledger.touch(FILE, 0, 4, NOBODY)
    assert payers(ledger) == {frozenset(): 10}
    ledger.touch(FILE, 0, 4, A)
    assert payers(ledger) == {frozenset(): 5, frozenset({A}): 5}


def test_a_touch_reaches_resident_pages_only(ledger: Ledger) -> None:
    ledger.charge(FILE, 2, 3, A)
    ledger.charge(FILE, 6, 7, A)
    ledger.touch(FILE, 0, LAST_PAGE, B)
    ledger.touch(FILE, 4, 4, B)
    ledger.touch(OTHER, 0, 9, B)
    assert payers(ledger) == {frozenset({A, B}): 4}
    assert ledger.files() == [FILE]


def test_truncating_and_punching_free_pages(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, A)
    assert ledger.uncharge(FILE, 2, 3) == 2
    assert ledger.uncharge(FILE, 2, 3) == 0
    assert ledger.uncharge(FILE, 8) == 2
    assert ledger.uncharge(OTHER, 0) == 0
    assert ledger.resident_bytes == 6 * PAGE


def test_a_file_is_in_the_books_while_it_has_pages(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, A)
    ledger.charge(OTHER, 0, 1, A)
    assert ledger.drop(FILE) == 10
    assert ledger.drop(FILE) == 0
    assert ledger.uncharge(OTHER, 0) == 2
    assert ledger.files() == ledger.files_where(lambda held: A in held.payers) == []
    assert ledger.file_holdings(FILE) == []
    assert ledger.resident_pages_of(FILE) == 0
    assert ledger.resident_bytes == 0


def test_foreign_pages_stay_foreign_whoever_uses_them(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 4, A)
    assert ledger.charge(FILE, 0, 9, B, foreign=True) == 5
    ledger.touch(FILE, 0, 9, C)
    ledger.age()
    assert ledger.foreign_bytes == 5 * PAGE
    ledger.exit(B)
    assert ledger.foreign_bytes == 5 * PAGE
    ledger.uncharge(FILE, 8)
    assert ledger.foreign_bytes == 3 * PAGE


def test_set_mapped_is_the_whole_truth_for_a_tenant(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, NOBODY)
    ledger.set_mapped(FILE, A, [(8, 20), (0, 3)])
    assert payers(ledger) == {frozenset({A}): 6, frozenset(): 4}
    ledger.set_mapped(FILE, B, [(0, 9)])
    ledger.set_mapped(FILE, A, [(2, 4)])
    mapped_by_a = {held: size for held, size in ledger.holdings() if A in held.mapped}
    assert sum(mapped_by_a.values()) == 3 * PAGE
    recent_by_a = {held: size for held, size in ledger.holdings() if A in held.recent}
    assert sum(recent_by_a.values()) == 4 * PAGE  # 0, 1, 8 and 9 were unmapped


def test_a_new_page_in_a_mapped_range_is_mapped_when_told_again(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 3, A)
    ledger.set_mapped(FILE, B, [(0, 9)])
    ledger.charge(FILE, 4, 4, A)
    assert payers(ledger) == {frozenset({A, B}): 4, frozenset({A}): 1}
    ledger.set_mapped(FILE, B, [(0, 9)])
    assert payers(ledger) == {frozenset({A, B}): 5}


def test_mappings_of_a_file_end_with_it(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 3, A)
    ledger.set_mapped(FILE, B, [(0, 3)])
    ledger.drop(FILE)
    ledger.charge(FILE, 0, 3, A)
    assert payers(ledger) == {frozenset({A}): 4}
    ledger.set_mapped(FILE, B, [(0, 3)])
    assert payers(ledger) == {frozenset({A, B}): 4}


def test_who_exits_and_is_said_to_map_again_does(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 3, A)
    ledger.set_mapped(FILE, B, [(0, 3)])
    ledger.exit(B)
    assert payers(ledger) == {frozenset({A}): 4}
    ledger.set_mapped(FILE, B, [(0, 3)])
    assert payers(ledger) == {frozenset({A, B}): 4}


def test_who_unmaps_its_pages_still_pays_for_a_while(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 3, NOBODY)
    ledger.set_mapped(FILE, A, [(0, 3)])
    ledger.age()
    ledger.set_mapped(FILE, A, [])
    assert payers(ledger) == {frozenset({A}): 4}


def test_absent_says_what_is_to_be_charged(ledger: Ledger) -> None:
    ledger.charge(FILE, 2, 3, A)
    ledger.charge(FILE, 2000, 2000, A)
    assert ledger.absent(FILE, [(3, 5), (0, 2), (1999, 2001)]) == [(0, 1), (4, 5), (1999, 1999), (2001, 2001)]
    assert ledger.absent(OTHER, [(3, 5), (6, 7)]) == [(3, 7)]
    assert ledger.absent(FILE, [(0, LAST_PAGE)]) == [(0, 1), (4, 1999), (2001, LAST_PAGE)]
    assert ledger.absent(FILE, []) == []


def test_when_a_tenant_exits_the_others_share_its_pages(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, A)
    ledger.touch(FILE, 0, 4, B)
    ledger.set_mapped(FILE, C, [(0, 1)])
    ledger.exit(A)
    assert payers(ledger) == {frozenset({B, C}): 2, frozenset({B}): 3, frozenset(): 5}
    assert {held.owner for held, _ in ledger.holdings()} == {NOBODY}
    assert ledger.files_where(lambda held: A in held.payers) == []


def test_the_owner_pays_while_it_lives_and_others_while_they_use_the_pages(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, A)
    ledger.age()
    ledger.touch(FILE, 0, 3, B)
    ledger.age()
    assert payers(ledger) == {frozenset({A}): 6, frozenset({A, B}): 4}
    ledger.age()
    assert payers(ledger) == {frozenset({A}): 10}
    ledger.touch(FILE, 0, 3, B)
    ledger.exit(A)
    assert payers(ledger) == {frozenset(): 6, frozenset({B}): 4}
    ledger.age()
    ledger.age()
    assert payers(ledger) == {frozenset(): 10}


def test_who_writes_over_a_page_does_not_own_it_and_who_writes_it_anew_does(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, A)
    ledger.charge(FILE, 0, 9, B)
    assert {held.owner for held, _ in ledger.holdings()} == {A}
    ledger.uncharge(FILE, 5)
    ledger.charge(FILE, 0, 9, B)
    ledger.age()
    ledger.age()
    assert payers(ledger) == {frozenset({A}): 5, frozenset({B}): 5}


def test_a_file_is_handed_over_but_for_foreign_pages(ledger: Ledger) -> None:
    ledger.charge(FILE, 0, 9, A)
    ledger.charge(FILE, 10, 12, A, foreign=True)
    ledger.charge(OTHER, 0, 0, A)
    ledger.hand_over(FILE, B)
    assert payers(ledger) == {frozenset({A, B}): 10, frozenset({A}): 4}, "A has just used it"
    ledger.age()
    ledger.age()
    assert payers(ledger) == {frozenset({B}): 10, frozenset({A}): 4}
    ledger.hand_over(FILE, NOBODY)
    assert payers(ledger) == {frozenset(): 10, frozenset({A}): 4}
    ledger.hand_over(77, B)
    ledger.check()


def test_file_holdings_add_up_to_holdings(ledger: Ledger) -> None:
    for file in (FILE, OTHER):
        ledger.charge(file, 0, 9, A)
        ledger.touch(file, 0, file // 5, B)
    ledger.exit(C)
    total: dict[SharingClass, int] = {}
    for file in ledger.files():
        for held, size_bytes in ledger.file_holdings(file):
            total[held] = total.get(held, 0) + size_bytes
    assert total == dict(ledger.holdings())
    assert ledger.files_where(lambda held: B in held.payers) == [FILE, OTHER]


def test_the_sequence_rises_with_changes_only(ledger: Ledger) -> None:
    def changes(operation: Callable[[], object]) -> bool:
        before = ledger.sequence
        operation()
        assert ledger.sequence >= before
        return ledger.sequence != before

    assert changes(lambda: ledger.charge(FILE, 0, 9, A))
    assert not changes(lambda: ledger.charge(FILE, 0, 9, A))
    assert not changes(lambda: ledger.touch(FILE, 0, 9, A))
    assert changes(lambda: ledger.touch(FILE, 0, 9, B))
    assert changes(lambda: ledger.set_mapped(FILE, B, [(0, 1)]))
    assert not changes(lambda: ledger.set_mapped(FILE, B, [(1, 1), (0, 0)]))
    assert changes(ledger.age)
    assert not changes(lambda: ledger.exit(C))
    assert changes(lambda: ledger.exit(B))
    assert not changes(lambda: ledger.uncharge(FILE, 10))
    assert changes(lambda: ledger.drop(FILE))
    assert not changes(ledger.age)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda ledger, pages: ledger.charge(FILE, *pages, B),
        lambda ledger, pages: ledger.charge(OTHER, *pages, B),
        lambda ledger, pages: ledger.touch(FILE, *pages, B),
        lambda ledger, pages: ledger.touch(OTHER, *pages, B),
        lambda ledger, pages: ledger.uncharge(FILE, *pages),
        lambda ledger, pages: ledger.set_mapped(FILE, B, [(0, 9), pages]),
        lambda ledger, pages: ledger.set_mapped(OTHER, NOBODY, [(0, 9), pages]),
        lambda ledger, pages: ledger.absent(FILE, [pages]),
    ],
)
@pytest.mark.parametrize("pages", [(-1, 3), (4, 3), (-2, -1), (0, LAST_PAGE + 1)])
def test_a_mistake_changes_nothing(
    ledger: Ledger, mistake: Callable[[Ledger, tuple[int, int]], object], pages: tuple[int, int]
) -> None:
    ledger.charge(FILE, 0, 9, A)
    ledger.set_mapped(FILE, C, [(2, 3)])
    before = ledger.statistics(), ledger.holdings(), ledger.files()
    with pytest.raises(ValueError, match=r"are not a range|beyond"):
        mistake(ledger, pages)
    assert (ledger.statistics(), ledger.holdings(), ledger.files()) == before


def test_a_page_has_a_size() -> None:
    with pytest.raises(ValueError, match="a page of 0 bytes"):
        Ledger(0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda ledger: ledger._table.move(0, 1, 1),
        lambda ledger: ledger._files.made.pop(FILE),
        lambda ledger: ledger._files[FILE].pages_by_class.clear(),
    ],
)
def test_check_finds_books_that_contradict_the_pages(damage: Callable[[Ledger], object]) -> None:
    ledger = Ledger()
    ledger.charge(FILE, 0, 9, A)
    damage(ledger)
    with pytest.raises(BrokenInvariant, match=r"^I1"):
        ledger.check()
