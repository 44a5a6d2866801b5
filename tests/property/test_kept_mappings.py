"""Whoever has read pages and maps them is their user, whenever the pages are moved: sets of pages as the oracle.

Page tables lose what is moved. A scan looks at them in steps, and everything else can happen between two of these.
"""

from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sharedfs.ledger.kept_mappings import KeptMappings
from sharedfs.ledger.page_ranges import PageRange, merged

FILE, PAGES = 7, 24
PROCESSES = ("a", "b")
ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(0, PAGES - 1)).map(lambda pair: (min(pair), max(pair)))
processes = st.sampled_from(PROCESSES)


def runs(pages: Iterable[int]) -> list[PageRange]:
    return merged((page, page) for page in pages)


def pages_in(found: Iterable[PageRange]) -> set[int]:
    return {page for first, last in found for page in range(first, last + 1)}


class Moves(RuleBasedStateMachine):
    """One file. `used` is what a process has read of what it maps: what the books have to say after each scan."""

    keeps = True  # the control turns it off

    @initialize()
    def start(self) -> None:
        self.kept: KeptMappings[str] = KeptMappings()
        self.resident = set(range(PAGES))
        self.mapped: dict[str, set[int]] = {process: set() for process in PROCESSES}
        self.tables: dict[str, set[int]] = {process: set() for process in PROCESSES}
        self.used: dict[str, set[int]] = {process: set() for process in PROCESSES}
        self.looked: tuple[str, int, set[int], set[int]] | None = None
        self.to_forget: set[tuple[int, str]] | None = None

    @rule(process=processes, pages=ranges)
    def map(self, process: str, pages: PageRange) -> None:
        self.mapped[process] |= pages_in([pages])

    @rule(process=processes, pages=ranges)
    def read(self, process: str, pages: PageRange) -> None:
        read = pages_in([pages]) & self.mapped[process] & self.resident
        self.tables[process] |= read
        self.used[process] |= read

    @rule(process=processes, pages=ranges)
    def unmap(self, process: str, pages: PageRange) -> None:
        for of in (self.mapped, self.tables, self.used):
            of[process] -= pages_in([pages])
        # Mapped again before any scan it would be taken for mapped all the while: the scan comes first here.
        self.scan_all()

    @rule(pages=ranges)
    def move(self, pages: PageRange) -> None:
        moved = pages_in([pages])
        for process in PROCESSES:
            if self.keeps:
                self.kept.keep(FILE, process, runs(self.tables[process] & moved))
            self.tables[process] -= moved

    @rule(pages=ranges)
    def punch(self, pages: PageRange) -> None:
        gone = pages_in([pages])
        self.resident -= gone
        self.kept.uncharge(FILE, *pages)
        for of in (self.tables, self.used):
            for process in PROCESSES:
                of[process] -= gone

    @rule(pages=ranges)
    def allocate(self, pages: PageRange) -> None:
        self.resident |= pages_in([pages])

    @precondition(lambda self: self.looked is None)
    @rule(process=processes)
    def look(self, process: str) -> None:
        """A scan reads what a process maps; what else happens before it asks what is kept?"""
        self.looked = process, self.kept.sequence, set(self.mapped[process]), set(self.tables[process])

    @precondition(lambda self: self.looked is not None)
    @rule()
    def ask(self) -> None:
        assert self.looked is not None
        process, since, mapped, tables = self.looked
        self.looked = None
        self.kept.mapped_still(FILE, process, runs(mapped), runs(tables), since)

    @rule()
    def scan_all(self) -> None:
        for process in PROCESSES:
            mapped, tables = runs(self.mapped[process]), runs(self.tables[process])
            kept = self.kept.mapped_still(FILE, process, mapped, tables, self.kept.sequence)
            assert pages_in([*tables, *kept]) == self.used[process]

    @invariant()
    def nothing_is_kept_of_what_is_told(self) -> None:
        assert {process for _, process in self.kept.kept()} <= set(PROCESSES)

    def teardown(self) -> None:
        if hasattr(self, "kept"):
            self.scan_all()
            self.kept.forget(self.kept.kept())
            assert self.kept.kept() == set()


TestMoves = Moves.TestCase
TestMoves.settings = settings(max_examples=150, stateful_step_count=30)


def test_the_control_without_keeping_a_user_is_lost() -> None:
    machine = Moves()
    machine.keeps = False
    machine.start()
    machine.map("a", (0, 9))
    machine.read("a", (0, 4))
    machine.scan_all()
    machine.move((2, 3))
    try:
        machine.scan_all()
    except AssertionError:
        return
    raise AssertionError("the scan saw what page tables do not have")
