"""What the ledger promises about cost, counted and not timed: bytes a page, pages visited, ids in use."""

import random

from sharedfs.ledger.chunks import ENTRY_BYTES, PAGES_PER_CHUNK
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import NOBODY, TenantId

GIB_PAGES = 1 << 18
TENANTS = [TenantId(number) for number in range(1, 11)]


def cells(ledger: Ledger) -> dict[int, bytes]:
    return {file: pages.snapshot() for file, pages in ledger._files.all()}


def patchwork(pages: int, ledger: Ledger) -> Ledger:
    """File 1, each page of it used by a random subset of the tenants."""
    generator = random.Random(8)
    ledger.charge(1, 0, pages - 1, NOBODY)
    for page in range(pages):
        for tenant in generator.sample(TENANTS, generator.randrange(len(TENANTS))):
            ledger.touch(1, page, page, tenant)
    return ledger


def test_a_gigabyte_whose_pages_are_alike_costs_an_entry_for_each_four_megabytes() -> None:
    ledger = Ledger()
    for tenant in TENANTS:
        ledger.charge(1, 0, GIB_PAGES - 1, tenant)
    statistics = ledger.statistics()
    assert statistics.resident_bytes == 1 << 30
    assert statistics.page_map_bytes == ENTRY_BYTES * GIB_PAGES // PAGES_PER_CHUNK
    ledger.check()


def test_a_gigabyte_of_differing_pages_costs_four_bytes_a_page() -> None:
    ledger = Ledger()
    ledger.charge(1, 0, GIB_PAGES - 1, TENANTS[0])
    for page in range(0, GIB_PAGES, PAGES_PER_CHUNK // 2):
        ledger.touch(1, page, page, TENANTS[1])
    statistics = ledger.statistics()
    assert statistics.page_map_bytes == 4 * GIB_PAGES + ENTRY_BYTES * GIB_PAGES // PAGES_PER_CHUNK
    assert statistics.memory_bytes < 4.5 * GIB_PAGES
    ledger.check()


def test_small_files_cost_little_beside_their_pages() -> None:
    """The memory of the page maps, whether their pages are alike or not."""
    ledger = Ledger()
    for file in range(1000):
        ledger.charge(file, 0, 1, TENANTS[0])
        ledger.touch(file, file % 3, file % 3, TENANTS[1])  # a third stays alike
    statistics = ledger.statistics()
    assert statistics.page_map_bytes < 0.04 * statistics.resident_bytes
    ledger.check()


def test_what_is_freed_is_used_again() -> None:
    ledger = Ledger()
    sizes = []
    for _ in range(5):
        for file in range(20):
            ledger.charge(file, 0, 99, TENANTS[0])
            ledger.touch(file, 3, 50, TENANTS[1])
        sizes.append(ledger._cells.memory_bytes)
        for file in range(20):
            ledger.drop(file)
    assert sizes[1] == sizes[4]


def test_scattered_pages_cost_little_more_than_their_own_size() -> None:
    ledger = Ledger()
    for page in range(0, 1 << 40, 1 << 33):
        ledger.charge(1, page | (PAGES_PER_CHUNK - 1), page | (PAGES_PER_CHUNK - 1), TENANTS[0])
    statistics = ledger.statistics()
    assert statistics.page_map_bytes <= 1.01 * statistics.resident_bytes
    ledger.check()


def test_exit_and_ageing_visit_no_page() -> None:
    ledger = patchwork(3000, Ledger(spare_ids=0))
    for tenant in TENANTS:
        before = cells(ledger)
        ledger.exit(tenant)
        ledger.age()
        assert cells(ledger) == before
        ledger.check()
    assert [held.payers for held, _ in ledger.holdings()] == [frozenset()]


def test_an_exit_looks_at_its_own_classes_only() -> None:
    """The classes that the one who exits is not in are the same objects afterwards, under the same ids."""
    ledger = patchwork(500, Ledger())
    gone = TENANTS[4]
    before = {raw: held for raw, held in enumerate(ledger._table._classes) if held and gone not in held.payers}
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
