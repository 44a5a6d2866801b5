"""How much the books do in one piece, counted and not timed: classes settled, pages visited, records written."""

import os
from pathlib import Path

import pytest

from sharedfs.accounting.persistence import BooksState
from sharedfs.ledger import tidying
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.class_view import ABSENT
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.page_map import PageMap
from sharedfs.ledger.page_ranges import LAST_PAGE, as_runs
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import LedgerStorage
from sharedfs.ledger.tenant import TenantId

CLASSES = 1024
TENANTS = [TenantId(number) for number in range(1, 12)]
A, B = TENANTS[:2]
FILES = 8


def with_many_classes(storage: LedgerStorage | None = None) -> Ledger:
    """Each page has users of its own: the bits of its number."""
    ledger = Ledger(storage=storage, spare_ids=64, tidies_itself=False)
    for page in range(CLASSES):
        file, place = page % FILES, page // FILES
        ledger.charge(file, place, place, A)
        for bit, tenant in enumerate(TENANTS[1:]):
            if page >> bit & 1:
                ledger.touch(file, place, place, tenant)
    while ledger.tidy_some():
        pass
    assert ledger.statistics().classes == CLASSES
    return ledger


@pytest.fixture
def ledger() -> Ledger:
    return with_many_classes()


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[int]:
    """Calls of a method since the list was cleared last, in its first item."""
    calls = [0]
    method = getattr(owner, name)

    def count(*operands: object, **options: object) -> object:
        calls[0] += 1
        return method(*operands, **options)

    monkeypatch.setattr(owner, name, count)
    return calls


@pytest.mark.parametrize("change", [lambda ledger: ledger.age(), lambda ledger: ledger.exit(B)])
def test_an_exit_and_an_ageing_give_no_class_a_new_key(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, change) -> None:
    """All answers are other ones at once; keys follow, so many at a time."""
    twin = with_many_classes()
    change(twin)
    while twin.tidy_some():
        twin.check()
    adopted = counted(monkeypatch, SharingTable, "_adopt")
    computed = counted(monkeypatch, SharingClass, "aged"), counted(monkeypatch, SharingClass, "without")
    change(ledger)
    assert adopted == [0]
    assert sum(map(sum, computed)) <= 2, "it looks whether any class changes, and no further"
    assert sorted(ledger.holdings(), key=repr) == sorted(twin.holdings(), key=repr)
    steps = 0
    while ledger._table.behind:
        adopted[0] = 0
        assert ledger.tidy_some()
        assert adopted[0] <= 2 * tidying.SETTLED_AT_ONCE
        ledger.check()
        steps += 1
    assert steps >= CLASSES / 2 / tidying.SETTLED_AT_ONCE
    assert sorted(ledger.holdings(), key=repr) == sorted(twin.holdings(), key=repr)


def test_a_touch_between_two_pieces_counts_for_a_whole_generation(ledger: Ledger) -> None:
    """Of each page, whether its class has got its key by then or not: nobody is aged twice, or not at all."""
    ledger.age()
    for page in range(CLASSES):
        ledger.touch(page % FILES, page // FILES, page // FILES, B)
        if page % 100 == 0:
            ledger.tidy_some()
    ledger.check()
    ledger.age()
    while ledger.tidy_some():
        ledger.check()
    assert all(held.older == {B} and not held.recent for held, _ in ledger.holdings())


def test_a_compaction_visits_few_pages_and_ids_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for tenant in TENANTS[1:5]:
        ledger.exit(tenant)
    while ledger._table.behind:
        ledger.tidy_some()
    dead = len(ledger._table.dead_ids())
    assert dead > CLASSES / 2
    monkeypatch.setattr(tidying, "CHUNKS_AT_ONCE", 2)
    monkeypatch.setattr(tidying, "IDS_AT_ONCE", 64)
    chunks, freed = [], []
    relabel, free = PageMap.relabel, SharingTable._free
    monkeypatch.setattr(PageMap, "relabel", lambda self, some, ids: (chunks.extend(some), relabel(self, some, ids)))
    monkeypatch.setattr(SharingTable, "_free", lambda self, ids: (freed.extend(ids), free(self, ids)))
    before, seen = sorted(ledger.holdings(), key=repr), [0, 0]
    for _ in ledger._tidying.compacting():
        assert len(chunks) <= 2
        assert len(freed) <= 64
        seen[0] += len(chunks)
        seen[1] += len(freed)
        chunks.clear()
        freed.clear()
        ledger.touch(0, 0, 0, B)  # anything may come in between
        ledger.check()
    assert seen[0] == FILES
    assert seen[1] >= dead
    assert not ledger._table.dead_ids()
    assert sum(size for _, size in before) == ledger.resident_bytes


def test_the_log_is_written_anew_a_record_at_a_time_and_keeps_what_comes_meanwhile(tmp_path: Path) -> None:
    def opened() -> BooksState:
        directory_fd = os.open(tmp_path, os.O_RDONLY)
        try:
            return BooksState(directory_fd)
        finally:
            os.close(directory_fd)

    kept = opened()
    ledger = with_many_classes(kept.ledger)
    pieces = kept.ledger.log.rewriting(ledger._dump())
    longest, steps = 0, 0
    draft_bytes = 0
    for number, _ in enumerate(pieces):
        now_bytes = (tmp_path / "books" / "classes.new").stat().st_size
        longest, draft_bytes, steps = max(longest, now_bytes - draft_bytes), now_bytes, steps + 1
        if number == 3:
            ledger.exit(B)
            ledger.tidy_some()
            ledger.charge(99, 0, 0, TenantId(99))
    assert steps > CLASSES / 64
    assert longest < 64 * 120
    kept.close()
    kept = opened()
    again = Ledger(storage=kept.ledger, spare_ids=64)
    again.check()
    assert sorted(again.holdings(), key=repr) == sorted(ledger.holdings(), key=repr)
    kept.close()


def test_a_file_of_many_classes_is_mapped_few_pages_at_once(ledger: Ledger) -> None:
    newcomer = TenantId(77)
    classes = ledger._table.classes
    for _ in ledger.mapping(0, newcomer, as_runs([(0, LAST_PAGE)])):
        assert ledger._table.classes - classes <= 64
        classes = ledger._table.classes
        ledger.check()
    assert ledger.is_large(0)
    assert not ledger.is_large(99)


def test_how_big_the_books_are_is_known_without_a_look_at_files(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    for file in range(1000):
        ledger.charge(file, 0, file % 3, A)
    looked = [counted(monkeypatch, PageMap, name) for name in ("chunks", "check", "fixed_by")]
    for name in ("map_bytes", "resident_pages"):
        monkeypatch.setattr(PageMap, name, property(lambda _: pytest.fail("a page map is asked")))
    found = ledger.statistics()
    assert (found.files, found.classes, found.resident_bytes) == (1000, 1, 1999 * 4096)
    assert looked == [[0], [0], [0]]


def test_a_copy_of_the_classes_stays_as_it_is(ledger: Ledger) -> None:
    ledger.age()
    classes = ledger.classes()
    before = ledger.holdings()
    ledger.exit(A)
    while ledger.tidy_some():
        pass
    ledger.drop(0)
    assert ledger.holdings_of(classes) == before
    assert classes.alias[ABSENT] == ABSENT


def test_there_is_an_end_to_ids_that_nobody_tidies_up() -> None:
    """Whoever makes classes faster than the upkeep brings them down does it itself."""
    ledger = Ledger(spare_ids=8, most_classes=64, tidies_itself=False)
    most = 0
    for page in range(512):
        ledger.charge(page % FILES, page, page, A)
        for bit, tenant in enumerate(TENANTS[1:]):
            if page >> bit & 1:
                ledger.touch(page % FILES, page, page, tenant)
        most = max(most, ledger.statistics().class_ids)
    assert 64 < most <= 4 * 64 + len(TENANTS)
    ledger.check()
