"""The log of classes as version 1 wrote it, and as it is left for version 1 (`sharedfs/pool/schema.py`)."""

from collections.abc import Iterable, Iterator

import pytest

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import LedgerStorage, Record
from sharedfs.ledger.tenant import NOBODY, TenantId

A, B = TenantId(1), TenantId(2)
CLASSES = [[1, 1, 0, [], [1], []], [2, 1, 0, [], [1, 2], []], [5, 2, 0, [], [2], []]]
ALIASES = [[3, 1], [4, 2], [6, 5], [7, 1]]
WRITTEN_BY_VERSION_1: list[Record] = [
    ["table", 8, 1024, CLASSES, ALIASES],
    ["class", 8, 1, 0, [2], [1], []],
    ["exit", 2],
    ["class", 9, 1, 0, [1], [], []],
    ["class", 10, 0, 0, [1], [], []],
]
OLDER = SharingClass(A, older=frozenset({A}))
EXPECTED = dict.fromkeys((1, 2, 3, 4, 7, 8), OLDER) | {
    5: SharingClass(NOBODY),
    6: SharingClass(NOBODY),
    9: SharingClass(A, frozenset({A})),
    10: SharingClass(NOBODY, frozenset({A})),
}
"""What that version said of the raw ids afterwards."""
KNOWN_TO_VERSION_1 = {"table", "class", "exit", "age", "reduce", "opened", "unit"}


class KeptLog:
    """A log in a list."""

    overgrown = False

    def __init__(self) -> None:
        self.kept: list[Record] = []

    def records(self) -> list[Record]:
        return self.kept[:]

    def append(self, record: Record) -> None:
        self.kept.append(record)

    def rewriting(self, records: Iterable[Record]) -> Iterator[None]:
        self.kept = list(records)
        return iter(())


def test_a_log_of_version_1_says_what_it_said() -> None:
    table = SharingTable()
    assert all(table.replay(record) for record in WRITTEN_BY_VERSION_1)
    table.count({1: 1, 4: 2, 8: 3, 9: 1, 10: 2})
    table.check()
    assert {raw: table.class_of(raw) for raw in EXPECTED} == EXPECTED
    table.settle(len(EXPECTED))
    table.check()
    assert {raw: table.class_of(raw) for raw in EXPECTED} == EXPECTED
    assert table.holdings() == [(OLDER, 6), (EXPECTED[9], 1), (EXPECTED[10], 2)]


def test_what_is_left_for_version_1_has_no_record_that_it_does_not_know() -> None:
    log = KeptLog()
    ledger = Ledger(storage=LedgerStorage(log=log), tidies_itself=False)
    ledger.charge(3, 0, 5, A)
    ledger.touch(3, 0, 3, B)
    ledger.exit(B)
    ledger.tidy_some()
    ledger.age()
    holdings = ledger.holdings()
    assert not {record[0] for record in log.kept} <= KNOWN_TO_VERSION_1, "the control: a daemon that runs does"
    ledger.write_whole()
    assert {record[0] for record in log.kept} <= KNOWN_TO_VERSION_1
    assert ledger.holdings() == holdings


def test_a_table_with_classes_that_are_behind_is_not_written_whole() -> None:
    table = SharingTable()
    table.intern(SharingClass(A, frozenset({A})))
    table.age()
    with pytest.raises(BrokenInvariant, match="behind"):
        table.whole()
