"""Pages that go without a request: the books follow (I1), whatever is mapped, closed, written or killed meanwhile.

With the fewest words a tenant can do that: it maps a file and punches holes with madvise(2).
"""

import gc
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedfs.accounting.books import Books
from sharedfs.ledger.page_ranges import PageRange
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux.cgroups import find_memory_hierarchy
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
FILE = 1


def maps(tenant: Tenant, path: Path, pages: int) -> None:
    """The tenant writes a file and maps all of it."""
    tenant.do(
        f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, b'x' * {pages * PAGE}, 0)\n"
        f"m = mmap.mmap(fd, {pages * PAGE})\nfor page in range({pages}): m[page * {PAGE}] = 1"
    )


def removes(first: int, pages: int, step: int = 0) -> str:
    """Statements: pages from `first` on go; with `step` so many single ones, each `step` pages after the one before."""
    if not step:
        return f"m.madvise({mmap.MADV_REMOVE}, {first * PAGE}, {pages * PAGE})"
    return (
        f"for page in range({first}, {first + pages * step}, {step}): "
        f"m.madvise({mmap.MADV_REMOVE}, page * {PAGE}, {PAGE})"
    )


@pytest.mark.parametrize(("first", "pages", "step"), [(0, 100, 0), (30, 40, 0), (99, 1, 0), (0, 50, 2), (0, 10, 10)])
def test_pages_that_a_mapping_removes(pool: MountedPool, tenants: Tenants, first: int, pages: int, step: int) -> None:
    remover = tenants.make("remover")
    maps(remover, pool.path / "f", 100)
    pool.wait_for_scan()
    remover.do(removes(first, pages, step))
    wait_until(lambda: pool.used(remover) == (100 - pages) * PAGE, "who removed pages pays for those that are left")
    assert pool.check_conservation().resident_bytes == (100 - pages) * PAGE


def test_other_pages_in_their_place_are_the_faulting_tenants(pool: MountedPool, tenants: Tenants) -> None:
    """The kernel charges it for these: they are foreign, and nobody else's (I2)."""
    writer, remover = tenants.make("writer"), tenants.make("remover")
    writer.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, b'x' * {100 * PAGE}, 0)")
    remover.do(
        f"fd = os.open('{pool.path}/f', os.O_RDWR); m = mmap.mmap(fd, {100 * PAGE})\n"
        f"for page in range(100): m[page * {PAGE}] = 1\n{removes(10, 60)}"
    )
    wait_until(lambda: pool.holdings().resident_bytes == 40 * PAGE, "the books have what is left")
    remover.do(f"for page in range(20, 40): m[page * {PAGE}] = 2")
    wait_until(lambda: pool.holdings().foreign_bytes == 20 * PAGE, "what came anew is foreign")
    holdings = pool.check_conservation()
    (foreign,) = [held for held in holdings.classes if held.foreign]
    assert [ref.path for ref in holdings.tenants if ref.id == foreign.owner] == [remover.path]
    assert pool.used(writer) == 40 * PAGE


@pytest.mark.parametrize("order", ["m.close(); os.close(fd)", "os.close(fd); m.close()"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_who_removes_and_goes_before_anybody_looks(
    pool: MountedPool, tenants: Tenants, order: str, is_killed: bool
) -> None:
    """Also when the daemon is killed that knew of it."""
    remover = tenants.make("remover")
    maps(remover, pool.path / "f", 100)
    pool.wait_for_scan()
    remover.do(f"{removes(30, 40)}; {order}")
    if is_killed:
        os.kill(pool.status().daemon_pid, signal.SIGKILL)
    wait_until(lambda: (pool.status_or_none() or pool.status()).resident_bytes == 60 * PAGE, "the books follow")
    pool.check_conservation()


def test_a_mapping_removes_when_its_descriptor_is_closed(pool: MountedPool, tenants: Tenants) -> None:
    remover = tenants.make("remover")
    maps(remover, pool.path / "f", 100)
    remover.do("os.close(fd)")
    pool.wait_for_scan()
    remover.do(removes(30, 40))
    wait_until(lambda: pool.holdings().resident_bytes == 60 * PAGE, "the books follow")
    remover.do("m.close()")
    pool.check_conservation()


def test_a_writer_keeps_what_it_writes_meanwhile(pool: MountedPool, tenants: Tenants) -> None:
    """What was written last is the writer's, not nobody's, however it falls between removals and looks."""
    writer, remover = tenants.make("writer"), tenants.make("remover")
    maps(remover, pool.path / "f", 64)
    writer.do(f"fd = os.open('{pool.path}/f', os.O_RDWR)")
    for _ in range(60):
        remover.do(removes(0, 64))
        writer.do(f"for page in range(64): os.pwrite(fd, b'y' * {PAGE}, page * {PAGE})")
    pool.wait_for_scan()
    holdings = pool.check_conservation()
    assert holdings.resident_bytes == 64 * PAGE
    assert holdings.foreign_bytes == 0
    assert pool.used(writer) == 64 * PAGE


# -- the books alone ---------------------------------------------------------------------------------------------------


@pytest.fixture
def books() -> Iterator[Books]:
    gc.collect()  # the memory of earlier ones: User-Mode Linux has addresses for a few
    made = Books(find_memory_hierarchy(), PAGE, TenantRules("leaf"))
    yield made
    made.close()


@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.parametrize("naive", [False, True])
def test_a_page_that_comes_while_the_books_are_compared(
    books: Books, tenants: Tenants, is_settled: bool, naive: bool
) -> None:
    """It is written right after the kernel said that it is not there: its line in the books comes after the look.

    The control asks the kernel without the books' lock: the page is in the file, and not in the books.
    """
    tenant = books.tenants.tenant_at(tenants.make("writer").path)
    for _ in range(20 if is_settled else 1):
        books.pages.charge(FILE, 0, 10 * PAGE, tenant)
    shortcut = books.for_shortcut()
    assert (shortcut.settled.at == shortcut.ledger.sequence) is is_settled, "the shortcut in C would leave lines out"
    writer = threading.Thread(target=lambda: books.pages.charge(FILE, 3 * PAGE, 4 * PAGE, tenant))

    def there(first: int, last: int) -> list[PageRange]:
        writer.start()
        assert naive or shortcut.settled.at != shortcut.ledger.sequence, "it asks the books, and waits for them"
        return [(0, 2), (5, 9)]

    if naive:
        found = there(0, 9)
        writer.join()
        books.pages.lose_absent(FILE, 0, 9, lambda first, last: found)
    else:
        books.pages.lose_absent(FILE, 0, 9, there)
        writer.join()
    expected = [(0, 2), (5, 9)] if naive else [(0, 3), (5, 9)]
    assert books.questions.runs_where(FILE, lambda held: held.owner == tenant) == expected


def test_a_file_that_is_changed_just_now_is_left_alone(books: Books, tenants: Tenants) -> None:
    tenant = books.tenants.tenant_at(tenants.make("writer").path)
    books.pages.charge(FILE, 0, 10 * PAGE, tenant)
    with books.changes.under_way(FILE):
        books.pages.lose_absent(FILE, 0, 9, lambda first, last: [])
    assert books.questions.resident_bytes() == 10 * PAGE
    books.pages.lose_absent(FILE, 0, 9, lambda first, last: [])
    assert books.questions.resident_bytes() == 0
