"""What the books count of uses that were no act of the user's own."""

import pytest

from sharedfs.accounting.books import Books
from sharedfs.ledger.tenant import NOBODY, TenantId
from tests.support.parts import make_books

PAGE = 4096
INODE = 7


@pytest.fixture
def books() -> Books:
    return make_books()


@pytest.fixture
def users(books: Books) -> tuple[TenantId, TenantId]:
    return books.tenants.intern("/maker", 1), books.tenants.intern("/reader", 2)


def counted(books: Books, tenant: TenantId) -> tuple[int, int]:
    """(handed, added), in pages."""
    unasked = books.questions.reading().unasked
    return unasked.handed[tenant] // PAGE, unasked.added[tenant] // PAGE


def test_what_is_handed_over_is_counted_once(books: Books, users: tuple[TenantId, TenantId]) -> None:
    maker, reader = users
    books.pages.charge(INODE, 0, 10 * PAGE, maker)
    books.pages.charge(INODE, 10 * PAGE, 12 * PAGE, reader)
    books.pages.hand_over(INODE, reader)
    assert counted(books, reader) == (10, 0), "of its own pages it was the owner before"
    books.pages.hand_over(INODE, reader)
    assert counted(books, reader) == (10, 0)
    books.pages.hand_over(INODE, NOBODY)
    assert counted(books, maker) == (0, 0)


def test_what_nobody_knows_to_be_used_is_counted_and_what_was_used_before_is_not(
    books: Books, users: tuple[TenantId, TenantId]
) -> None:
    maker, reader = users
    books.pages.charge(INODE, 0, 10 * PAGE, maker)
    books.pages.touch(INODE, 0, 4 * PAGE, reader)
    books.pages.touch_unasked(INODE, [(2, 7), (100, 200)], reader)
    assert counted(books, reader) == (0, 4)
    assert counted(books, maker) == (0, 0)


def test_a_reader_takes_what_there_is_of_a_file_and_others_add_the_rest(
    books: Books, users: tuple[TenantId, TenantId]
) -> None:
    maker, reader = users
    books.pages.charge(INODE, 0, 10 * PAGE, maker)
    books.readers.open(INODE, reader)
    books.readers.refresh()
    assert counted(books, reader) == (0, 0)
    books.pages.charge(INODE, 10 * PAGE, 15 * PAGE, maker)
    books.readers.refresh()
    books.readers.refresh()
    assert counted(books, reader) == (0, 5)
    books.pages.charge(INODE, 15 * PAGE, 16 * PAGE, maker)
    books.readers.close(INODE, reader)
    assert counted(books, reader) == (0, 6), "no look came in between"


def test_a_large_file_is_taken_in_parts(books: Books, users: tuple[TenantId, TenantId]) -> None:
    """At the open one piece of it, the rest at the next look: all of that is the reader's own act."""
    maker, reader = users
    pages = 100_000
    for first in range(0, pages, 1000):
        books.pages.charge(INODE, first * PAGE, (first + 1000) * PAGE, maker)
    books.readers.open(INODE, reader)
    books.pages.charge(INODE, pages * PAGE, (pages + 3) * PAGE, maker)
    books.readers.refresh()
    assert counted(books, reader) == (0, 3)
    books.readers.close(INODE, reader)
    books.pages.charge(INODE, (pages + 3) * PAGE, (pages + 5) * PAGE, maker)
    books.readers.refresh()
    assert counted(books, reader) == (0, 5)


@pytest.mark.parametrize("act", ["refresh", "touch_unasked"])
def test_no_reading_has_a_use_without_what_is_counted_of_it(
    books: Books, users: tuple[TenantId, TenantId], act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a settlement between two pieces takes the use for the reader's own act, for ever."""
    maker, reader = users
    pages = 100_000
    books.pages.charge(INODE, 0, PAGE, maker)
    if act == "refresh":
        books.readers.open(INODE, reader)
    for first in range(1, pages, 1000):
        books.pages.charge(INODE, first * PAGE, (first + 1000) * PAGE, maker)
    readings: list[tuple[int, int]] = []

    def read() -> None:
        reading = books.questions.reading()
        used = sum(size for held, size in reading.holdings if reader in held.payers) // PAGE
        readings.append((used, counted(books, reader)[1]))

    monkeypatch.setattr("sharedfs.accounting.core.pause", read)
    if act == "refresh":
        books.readers.refresh()
        own = 1
    else:
        books.pages.touch_unasked(INODE, [(0, pages)], reader)
        own = 0
    read()
    assert len({used for used, _ in readings}) > 2, "readings between the pieces"
    assert all(used - added == own for used, added in readings), readings


def test_who_exits_is_forgotten(books: Books, users: tuple[TenantId, TenantId]) -> None:
    maker, reader = users
    books.pages.charge(INODE, 0, 10 * PAGE, maker)
    books.readers.open(INODE, reader)
    books.pages.hand_over(INODE, reader)
    books.tenants.exit([reader])
    books.readers.refresh()
    assert counted(books, reader) == (0, 0)
