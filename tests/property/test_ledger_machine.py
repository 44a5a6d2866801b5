"""The ledger against its twin: any sequence of operations, and after each step all answers alike and `check()` content.

Pages straddle two chunks of a page map and include one far out; few tenants and files make classes meet; a bound of few
ids makes compactions happen in most runs, one of few classes makes units of accounting grow. The ledger is kept in a
directory, dropped at any time, and made again from what is there.

The examples are the same on every run, so that CI compares and does not discover. To discover, set LEDGER_EXAMPLES to
some thousands.
"""

import json
import os
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sharedfs.accounting.persistence import BooksState, FileLog
from sharedfs.ledger import tidying
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.page_ranges import LAST_PAGE, as_runs
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import Record
from sharedfs.ledger.tenant import NOBODY, TenantId
from tests.property.ledger_oracle import Oracle

FILES = (3, 8)
TENANTS = [TenantId(number) for number in range(1, 5)]
FAR_PAGE = 1 << 50
MOST_CLASSES_HERE = 1 << 10  # more than these tenants can make
BASE = PAGES_PER_CHUNK - 5

files = st.sampled_from(FILES)
tenants = st.sampled_from(TENANTS)
anybody = st.sampled_from([*TENANTS, NOBODY])
near_pages = st.integers(BASE, BASE + 9)
near_ranges = st.tuples(near_pages, near_pages).map(lambda pages: (min(pages), max(pages)))
single_pages = (near_pages | st.just(FAR_PAGE)).map(lambda page: (page, page))
short_ranges = single_pages | near_ranges
open_ranges = near_pages.map(lambda page: (page, LAST_PAGE)) | st.just((0, BASE + 4))
any_ranges = short_ranges | open_ranges
range_lists = st.lists(short_ranges, max_size=4) | st.lists(any_ranges, max_size=3)


class WatchedLog:
    """A log that tells the oracle what the ledger decided by itself: units of accounting, and who is to pay alone."""

    def __init__(self, log: FileLog) -> None:
        self._log = log
        self.records, self.rewriting = log.records, log.rewriting
        self.decisions: list[Record] = []

    @property
    def overgrown(self) -> bool:
        return self._log.overgrown

    def append(self, record: Record) -> None:
        self._log.append(record)
        if record[0] in ("unit", "reduce"):
            self.decisions.append(record)


class LedgerAndOracle(RuleBasedStateMachine):
    """The two, and what holds of them after every step."""

    @initialize(
        spare_ids=st.sampled_from([0, 6, 1024]),
        most_classes=st.sampled_from([4, 12, MOST_CLASSES_HERE + 1]),
        page_bytes=st.sampled_from([4096, 16384]),
        tidies_itself=st.booleans(),
    )
    def open_books(self, spare_ids: int, most_classes: int, page_bytes: int, tidies_itself: bool) -> None:
        self.directory = TemporaryDirectory(dir="/dev/shm")
        self.bounds = {"spare_ids": spare_ids, "most_classes": most_classes, "tidies_itself": tidies_itself}
        self.pieces = patch.multiple(tidying, SETTLED_AT_ONCE=1, IDS_AT_ONCE=2, FILES_AT_ONCE=1, CHUNKS_AT_ONCE=1)
        self.pieces.start()
        self.open_ledger(page_bytes)
        self.oracle = Oracle(page_bytes)
        self.told: dict[tuple[int, TenantId], list[tuple[int, int]]] = {}
        self.sequence_before = self.ledger.sequence
        self.state_before = self.oracle.state()

    def open_ledger(self, page_bytes: int) -> None:
        directory_fd = os.open(self.directory.name, os.O_RDONLY)
        self.kept = BooksState(directory_fd)
        os.close(directory_fd)
        self.log = WatchedLog(self.kept.ledger.log)
        storage = replace(self.kept.ledger, log=self.log)
        self.ledger = Ledger(page_bytes, storage=storage, **self.bounds)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.kept.close()
            self.directory.cleanup()
            self.pieces.stop()

    def both(self, operation: str, *operands: object, **options: object) -> None:
        result = getattr(self.ledger, operation)(*operands, **options)
        assert result == getattr(self.oracle, operation)(*operands, **options)
        self.tell_decisions()

    def tell_decisions(self) -> None:
        for tag, *decided in self.log.decisions:
            getattr(self.oracle, {"unit": "coarsen", "reduce": "reduce"}[tag])(*decided)
        self.log.decisions.clear()

    @rule(whole=st.booleans())
    def crash_and_restore(self, whole: bool) -> None:
        """What was returned is kept; the object itself is of no use any more.

        `whole`: it was handed over, perhaps to the version before, which knows some records only.
        """
        before = self.ledger
        if whole:
            self.ledger.write_whole()
            self.oracle.disinherit()
            self.state_before = self.oracle.state()
        self.kept.close()
        if whole:
            log = Path(self.directory.name, "books/classes").read_bytes().splitlines()[1:]
            assert {json.loads(line)[0] for line in log} <= {"opened", "table", "unit"}
        self.open_ledger(self.oracle.page_bytes)
        self.oracle.told.clear()
        self.books_agree()
        assert self.ledger.sequence > before.sequence
        self.sequence_before = self.ledger.sequence
        assert self.ledger.mapped() == {
            (file, tenant) for (file, _), page in self.oracle.pages.items() for tenant in page.mapped
        }

    @invariant()
    def books_agree(self) -> None:
        ledger, oracle = self.ledger, self.oracle
        ledger.check()
        holdings = ledger.holdings()
        assert dict(holdings) == oracle.holdings()
        assert len(holdings) == len(dict(holdings))
        assert ledger.resident_bytes == sum(size for _, size in holdings) == len(oracle.pages) * oracle.page_bytes
        assert ledger.foreign_bytes == sum(page.foreign for page in oracle.pages.values()) * oracle.page_bytes
        assert ledger.files() == oracle.files()
        for file in FILES:
            assert dict(ledger.file_holdings(file)) == oracle.file_holdings(file)
            assert ledger.resident_pages_of(file) == len(oracle.state(file))
        for tenant in TENANTS:
            assert ledger.files_where(lambda held, paying=tenant: paying in held.payers) == oracle.files_of(tenant)
        for held, _ in holdings:
            assert held.payers >= {held.owner} - {NOBODY}, "who allocated a page pays for it while it lives"

    @invariant()
    def sequence_tells_changes(self) -> None:
        state, sequence = self.oracle.state(), self.ledger.sequence
        assert sequence >= self.sequence_before
        if self.bounds["most_classes"] > MOST_CLASSES_HERE:
            assert (sequence == self.sequence_before) == (state == self.state_before)
        else:  # what is touched and then reduced may end where it began
            assert sequence > self.sequence_before or state == self.state_before
        self.state_before, self.sequence_before = state, sequence


class Questions(LedgerAndOracle):
    """What is not asked after every step."""

    @rule(file=files, tenant=anybody, foreign=st.booleans())
    def select(self, file: int, tenant: TenantId, foreign: bool) -> None:
        """Pages by their class: the files that have such, where in a file, and how many bytes in all."""

        def wanted(held: SharingClass) -> bool:
            return held.foreign == foreign and (tenant in held.payers or (tenant == NOBODY and not held.payers))

        state = {key for key, held in self.oracle.state().items() if wanted(held)}
        assert self.ledger.files_where(wanted) == sorted({known for known, _ in state})
        assert self.ledger.bytes_where(wanted) == len(state) * self.oracle.page_bytes
        runs = self.ledger.runs_where(file, wanted)
        assert [page for first, last in runs for page in range(first, last + 1)] == sorted(
            page for known, page in state if known == file
        )

    @rule(file=files, pages=near_ranges)
    def holdings_in(self, file: int, pages: tuple[int, int]) -> None:
        state = self.oracle.state(file)
        found = Counter(state[file, page] for page in range(pages[0], pages[1] + 1) if (file, page) in state)
        expected = {held: count * self.oracle.page_bytes for held, count in found.items()}
        assert self.ledger.holdings_in(file, [pages]) == expected

    @rule(file=files, ranges=st.lists(short_ranges, max_size=4))
    def absent(self, file: int, ranges: list[tuple[int, int]]) -> None:
        gaps = self.ledger.absent(file, ranges)
        pages = [page for first, last in gaps for page in range(first, last + 1)]
        assert pages == sorted(self.oracle.absent_pages(file, ranges))
        assert all(last + 1 < first for (_, last), (first, _) in pairwise(gaps))

    @rule(file=files, tenant=anybody)
    def settled(self, file: int, tenant: TenantId) -> None:
        """What is said to change nothing changes nothing."""
        pages = self.ledger.settled_pages(file, tenant)
        if pages is not None:
            sequence = self.ledger.sequence
            self.ledger.touch(file, 0, LAST_PAGE, tenant)
            if pages:
                self.ledger.charge(file, 0, pages - 1, tenant)
            assert self.ledger.sequence == sequence
            assert pages in (0, len(self.oracle.state(file)))


class LedgerMachine(Questions):
    """The operations."""

    @rule(file=files, pages=short_ranges, tenant=anybody, foreign=st.booleans())
    def charge(self, file: int, pages: tuple[int, int], tenant: TenantId, foreign: bool) -> None:
        self.both("charge", file, *pages, tenant, foreign=foreign)

    @rule(file=files, tenant=tenants)
    def charge_all(self, file: int, tenant: TenantId) -> None:
        self.both("charge", file, BASE, BASE + 9, tenant)

    @rule(file=files, pages=any_ranges, tenant=anybody)
    def touch(self, file: int, pages: tuple[int, int], tenant: TenantId) -> None:
        self.both("touch", file, *pages, tenant)

    @rule(file=files, pages=any_ranges)
    def punch(self, file: int, pages: tuple[int, int]) -> None:
        self.both("uncharge", file, *pages)

    @rule(file=files, ranges=range_lists)
    def punch_many(self, file: int, ranges: list[tuple[int, int]]) -> None:
        gone = as_runs(ranges)
        freed = self.ledger.uncharge_runs(file, gone, self.ledger.chunks_of(file))
        assert freed == sum(self.oracle.uncharge(file, first, last) for first, last in gone.tolist())
        self.tell_decisions()

    @rule(file=files, page=near_pages)
    def truncate(self, file: int, page: int) -> None:
        self.both("uncharge", file, page)

    @rule(file=files)
    def unlink(self, file: int) -> None:
        self.both("drop", file)

    @rule(file=files, unit_pages=st.sampled_from([2, 4, 64]))
    def coarsen(self, file: int, unit_pages: int) -> None:
        if file in self.ledger.files():
            self.ledger.coarsen(file, unit_pages)
            self.oracle.coarsen(file, unit_pages)
            self.log.decisions.clear()

    @rule(file=files, tenant=anybody, ranges=range_lists, times=st.integers(1, 2))
    def set_mapped(self, file: int, tenant: TenantId, ranges: list[tuple[int, int]], times: int) -> None:
        for _ in range(times):  # the second time nothing changes, by a shorter way
            self.both("set_mapped", file, tenant, ranges)
        self.told[file, tenant] = ranges

    @rule(file=files, tenant=anybody, ranges=range_lists)
    def add_mapped(self, file: int, tenant: TenantId, ranges: list[tuple[int, int]]) -> None:
        self.both("add_mapped", file, tenant, ranges)

    @rule(file=files, tenant=anybody)
    def hand_over(self, file: int, tenant: TenantId) -> None:
        self.both("hand_over", file, tenant)

    @rule(file=files, pages=any_ranges)
    def recharge(self, file: int, pages: tuple[int, int]) -> None:
        self.both("recharge", file, *pages)

    @rule(file=files, pages=any_ranges, tenant=anybody)
    def recharge_to(self, file: int, pages: tuple[int, int], tenant: TenantId) -> None:
        self.both("recharge", file, *pages, tenant)

    @rule(file=files, tenant=tenants)
    def set_mapped_as_last_told(self, file: int, tenant: TenantId) -> None:
        self.set_mapped(file, tenant, self.told.get((file, tenant), []), 1)

    @rule(file=files, tenant=tenants, whole=st.booleans())
    def map_all_or_nothing(self, file: int, tenant: TenantId, whole: bool) -> None:
        self.set_mapped(file, tenant, [(0, LAST_PAGE)] if whole else [], 1)

    @rule(file=files, order=st.permutations(TENANTS))
    def share_by_degrees(self, file: int, order: list[TenantId]) -> None:
        """Each touches two pages less than the one before it: nested classes, which meet when tenants exit."""
        self.charge_all(file, order[0])
        for turn, tenant in enumerate(order):
            self.touch(file, (BASE, BASE + 8 - 2 * turn), tenant)

    @rule(file=files, owner=tenants, tenant=tenants, ranges=range_lists)
    def unlink_and_write_again(
        self, file: int, owner: TenantId, tenant: TenantId, ranges: list[tuple[int, int]]
    ) -> None:
        """A new file under the number of one that was mapped."""
        for _ in range(2):
            self.unlink(file)
            self.sequence_tells_changes()
            self.charge_all(file, owner)
            self.sequence_tells_changes()
            self.set_mapped(file, tenant, ranges, 1)
            self.books_agree()
            self.sequence_tells_changes()

    @rule(file=files, gone=tenants, tenant=tenants, pages=any_ranges)
    def repeat_after_an_exit(self, file: int, gone: TenantId, tenant: TenantId, pages: tuple[int, int]) -> None:
        """What was memoised or remembered before an exit meets the same question after it."""
        for _ in range(2):
            self.touch(file, pages, tenant)
            self.sequence_tells_changes()
            self.set_mapped(file, gone, [pages], 1)
            self.sequence_tells_changes()
            self.charge(file, (BASE, BASE + 2), gone, False)
            self.sequence_tells_changes()
            self.exit(gone)
            self.books_agree()
            self.sequence_tells_changes()
        self.set_mapped(file, gone, [pages], 1)

    @rule(order=st.permutations(TENANTS))
    def drain(self, order: list[TenantId]) -> None:
        for tenant in order[1:]:
            self.exit(tenant)
            self.books_agree()
            self.sequence_tells_changes()

    @rule(tenant=tenants, heir=anybody)
    def exit(self, tenant: TenantId, heir: TenantId = NOBODY) -> None:
        cells = {file: pages.snapshot() for file, pages in self.ledger._files.all()}
        self.both("exit", tenant, NOBODY if heir == tenant else heir)
        assert cells == {file: pages.snapshot() for file, pages in self.ledger._files.all()}

    @rule()
    def age(self) -> None:
        cells = {file: pages.snapshot() for file, pages in self.ledger._files.all()}
        self.both("age")
        assert cells == {file: pages.snapshot() for file, pages in self.ledger._files.all()}

    @rule(pieces=st.integers(1, 4))
    def tidy_some(self, pieces: int) -> None:
        """Between two pieces of what the books do for themselves anything else may happen."""
        for _ in range(pieces):
            self.ledger.tidy_some()
            self.ledger.check()
        if self.log.decisions:  # the oracle does as much at once
            while self.ledger.tidy_some():
                self.ledger.check()
        self.tell_decisions()

    @rule()
    def compact(self) -> None:
        while self.ledger.tidy_some():
            pass
        self.tell_decisions()
        for _ in self.ledger._tidying.compacting():
            pass
        statistics = self.ledger.statistics()
        assert statistics.class_ids <= statistics.classes + 1


EXAMPLES = os.environ.get("LEDGER_EXAMPLES")

TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=int(EXAMPLES or 400), stateful_step_count=40, derandomize=not EXAMPLES
)
