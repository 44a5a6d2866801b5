"""The tape: what becomes one row, what does not, and in which order the rows come."""

from array import array
from itertools import count

from sharedfs.accounting import recorder as tape_module
from sharedfs.accounting.recorder import Tape
from sharedfs.api.types import LAST_TRACE_PAGE, TAPE_COLUMNS, Event
from sharedfs.ledger.tenant import TenantId

A, B, FILE, OTHER = TenantId(1), TenantId(2), 10, 11


def made() -> Tape:
    clock = count(0, 1000)
    return Tape(lambda tenant: f"/t{tenant}", lambda: next(clock))


def rows_of(tape: Tape) -> list[tuple[int, ...]]:
    """Without times, which rise."""
    values = array("q")
    values.frombytes(tape.take().rows)
    width = len(TAPE_COLUMNS)
    rows = [tuple(values[start : start + width]) for start in range(0, len(values), width)]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    return [row[1:] for row in rows if row[1] != Event.START]


def test_uses_that_adjoin_are_one_row() -> None:
    tape = made()
    for page in range(5):
        tape.use(Event.TOUCH, A, FILE, page, page)
    tape.use(Event.TOUCH, A, OTHER, 0, 0)
    tape.use(Event.TOUCH, A, FILE, 3, 9)
    tape.use(Event.TOUCH, A, FILE, 50, 50)
    assert rows_of(tape) == [
        (Event.TOUCH, A, FILE, 0, 9, 6),
        (Event.TOUCH, A, OTHER, 0, 0, 1),
        (Event.TOUCH, A, FILE, 50, 50, 1),
    ]


def test_nobodys_use_moves_past_anothers_on_the_same_file() -> None:
    """A's second page was B's first: first touch must not see A there before B."""
    tape = made()
    tape.use(Event.ALLOCATE, A, FILE, 0, 0)
    tape.use(Event.ALLOCATE, B, FILE, 1, 1)
    tape.use(Event.ALLOCATE, A, FILE, 1, 1)
    tape.free(FILE, 0, None)
    tape.use(Event.ALLOCATE, A, FILE, 2, 2)
    assert rows_of(tape) == [
        (Event.ALLOCATE, A, FILE, 0, 0, 1),
        (Event.ALLOCATE, B, FILE, 1, 1, 1),
        (Event.ALLOCATE, A, FILE, 1, 1, 1),
        (Event.FREE, 0, FILE, 0, LAST_TRACE_PAGE, 0),
        (Event.ALLOCATE, A, FILE, 2, 2, 1),
    ]


def test_mappings_are_told_by_what_is_new_of_them_and_what_is_gone() -> None:
    tape = made()
    tape.mapped(FILE, A, [(0, 9)])
    tape.mapped(FILE, A, [(0, 9)])
    tape.mapped(FILE, A, [(5, 14), (20, 20)])
    tape.mapped(FILE, A, [])
    assert rows_of(tape) == [
        (Event.MAP, A, FILE, 0, 9, 0),
        (Event.UNMAP, A, FILE, 0, 4, 0),
        (Event.MAP, A, FILE, 10, 14, 0),
        (Event.MAP, A, FILE, 20, 20, 0),
        (Event.UNMAP, A, FILE, 5, 14, 0),
        (Event.UNMAP, A, FILE, 20, 20, 0),
    ]


def test_a_tenant_is_named_where_it_starts_and_ends_with_its_exit() -> None:
    tape = made()
    tape.exit(B)
    tape.use(Event.TOUCH, A, FILE, 0, 0)
    tape.exit(A)
    taken = tape.take()
    assert (taken.tenants, taken.files) == ({A: "/t1"}, {FILE})
    events = array("q")
    events.frombytes(taken.rows)
    assert events[1 :: len(TAPE_COLUMNS)].tolist() == [Event.START, Event.TOUCH, Event.EXIT]
    assert tape.take() == (b"", {}, frozenset(), False)


def test_a_tape_that_nobody_takes_is_full_some_day(monkeypatch) -> None:
    monkeypatch.setattr(tape_module, "_MOST_ROWS", 100)
    tape = made()
    for page in range(0, 300, 3):
        tape.use(Event.TOUCH, A, FILE, page, page)
    assert tape.full


def test_what_a_trace_cannot_name_is_cut_off() -> None:
    tape = made()
    tape.use(Event.ALLOCATE, A, FILE, LAST_TRACE_PAGE + 1, LAST_TRACE_PAGE + 1)
    tape.free(FILE, LAST_TRACE_PAGE + 5, None)
    tape.free(FILE, 3, 1 << 51)
    tape.mapped(FILE, A, [(0, 1 << 51), (1 << 52, 1 << 53)])
    assert rows_of(tape) == [(Event.FREE, 0, FILE, 3, LAST_TRACE_PAGE, 0), (Event.MAP, A, FILE, 0, LAST_TRACE_PAGE, 0)]
