"""What the ledger promises about cost, counted and not timed: bytes a page, pages visited, ids in use."""

import random

from sharedfs.model.ledger import Ledger
from sharedfs.model.pages import PAGES_PER_CHUNK
from sharedfs.model.tenant import NOBODY, TenantId

GIB_PAGES = 1 << 18
TENANTS = [TenantId(number) for number in range(1, 11)]


def cells(ledger: Ledger) -> dict[int, bytes]:
    return {file: pages.snapshot() for file, pages in ledger._files.items()}


def patchwork(pages: int, ledger: Ledger) -> Ledger:
    """File 1, each page of it used by a random subset of the tenants."""
    generator = random.Random(8)
    ledger.charge(1, 0, pages - 1, NOBODY)
    for page in range(pages):
        for tenant in generator.sample(TENANTS, generator.randrange(len(TENANTS))):
            ledger.touch(1, page, page, tenant)
    return ledger


def test_a_gigabyte_shared_by_ten_costs_four_bytes_a_page() -> None:
    ledger = Ledger()
    for tenant in TENANTS:
        ledger.charge(1, 0, GIB_PAGES - 1, tenant)
    statistics = ledger.statistics()
    assert statistics.resident_bytes == 1 << 30
    assert statistics.page_map_bytes == 4 * GIB_PAGES  # no slack: every chunk is full
    assert statistics.memory_bytes < 4.5 * GIB_PAGES
    ledger.check()


def test_a_map_grown_page_by_page_has_at_most_a_sixteenth_of_a_chunk_to_spare() -> None:
    ledger = Ledger()
    for page in range(3 * PAGES_PER_CHUNK + 600):
        ledger.charge(1, page, page, TENANTS[0])
        slack = ledger.statistics().page_map_bytes - 4 * (page + 1)
        assert 0 <= slack <= 4 * (PAGES_PER_CHUNK // 16 + 8)


def test_scattered_pages_cost_at_most_their_own_size() -> None:
    ledger = Ledger()
    for page in range(0, 1 << 40, 1 << 33):
        ledger.charge(1, page | (PAGES_PER_CHUNK - 1), page | (PAGES_PER_CHUNK - 1), TENANTS[0])
    statistics = ledger.statistics()
    assert statistics.page_map_bytes <= statistics.resident_bytes
    ledger.check()


def test_exit_and_ageing_visit_no_page() -> None:
    ledger = patchwork(3000, Ledger(spare_ids=0))
    for tenant in TENANTS:
        before = cells(ledger)
        ledger.exit(tenant)
        ledger.age()
        assert cells(ledger) == before
        ledger.check()
    assert [held.users for held, _ in ledger.holdings()] == [frozenset()]


def test_an_exit_looks_at_its_own_classes_only() -> None:
    """The classes that the one who exits is not in are the same objects afterwards, under the same ids."""
    ledger = patchwork(500, Ledger())
    gone = TENANTS[4]
    before = {raw: held for raw, held in enumerate(ledger._table._classes) if held and gone not in held.tenants}
    ledger.exit(gone)
    survivors = ledger._table._classes
    assert len(before) > 50
    assert all(survivors[raw] is held for raw, held in before.items() if survivors[raw])
    ledger.check()


def test_ids_do_not_grow_for_ever() -> None:
    """A thousand tenants come, share ten files and go; the ids in use stay in proportion to the classes that live."""
    spare = 64
    ledger = Ledger(spare_ids=spare)
    generator = random.Random(4)
    for number in range(1, 1001):
        tenant = TenantId(number)
        for file in range(10):
            ledger.charge(file, 0, 30, tenant)
            first = generator.randrange(30)
            ledger.touch(file, first, 30, TenantId(max(1, number - 1)))
        ledger.exit(TenantId(number - 2))
        if number % 10 == 0:
            ledger.age()
    statistics = ledger.statistics()
    assert statistics.compactions > 10
    assert statistics.class_ids <= 4 * statistics.classes + 2 * spare
    assert len(ledger._table.alias) <= 10 * spare
    ledger.check()
