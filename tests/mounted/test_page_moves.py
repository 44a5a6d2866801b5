"""Who uses pages stays their user when the kernel moves them: real page tables, real collapses, no daemon.

The control is the same without `moving`: all that a process has used and maps is lost.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from sharedfs.accounting.books import Books
from sharedfs.ledger.tenant import NOBODY
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux import huge_pages
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.huge_pages import NEVER
from sharedfs.pages.kernel_charges import KernelCharges
from sharedfs.pages.mapping_scan import MappingScan
from sharedfs.pages.page_moves import PageMoves
from sharedfs.pages.process_looks import ProcessLooks
from sharedfs.pages.reconcile import Reconcile
from sharedfs.storage.tmpfs import PrivateTmpfs, make_tmpfs
from sharedfs.storage.tree import Store
from tests.support.tenants import Agent, Tenant, Tenants

PAGE, WINDOW = 4096, 512

pytestmark = pytest.mark.skipif(
    huge_pages.page_bytes() != WINDOW * PAGE or huge_pages.are_denied(), reason="this kernel collapses no pages"
)


@dataclass
class Scene:
    """A file of two windows, all of whose pages are there and nobody's in the books."""

    path: Path
    fd: int
    inode: int
    books: Books
    moves: PageMoves
    scan: MappingScan

    def map(self, agent: Agent) -> None:
        agent.do(f"fd = os.open('{self.path}', os.O_RDWR); m = mmap.mmap(fd, {2 * WINDOW * PAGE}); os.close(fd)")

    def move(self, window: int, meanwhile: Callable[[], object] = lambda: None, *, naive: bool = False) -> None:
        first, last = window * WINDOW, (window + 1) * WINDOW - 1
        with self.moves.round() as moves, nullcontext() if naive else moves.moving(self.inode, first, last):
            meanwhile()
            huge_pages.collapse(self.fd, first * PAGE, (last + 1) * PAGE, split=True)

    def used_by(self, tenant: Tenant) -> set[int]:
        """After a scan."""
        self.scan.apply(self.scan.scan())
        ids = {known.id for known in self.books.tenants.live() if known.path == tenant.path}
        runs = self.books.questions.runs_where(self.inode, lambda held: bool(ids & held.users))
        return {page for first, last in runs for page in range(first, last + 1)}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "moves", str(tmp_path)], check=True)
    try:
        fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"x" * (2 * WINDOW * PAGE), 0)
        found = os.fstat(fd)
        device = os.major(found.st_dev), os.minor(found.st_dev)
        books = Books(find_memory_hierarchy(), PAGE, TenantRules("leaf"))
        books.pages.charge_allocated(found.st_ino, [(0, 2 * WINDOW - 1)], NOBODY)
        looks = ProcessLooks(books, device)
        moves = PageMoves(books, looks)
        reconcile = Reconcile(Store(PrivateTmpfs(make_tmpfs(1 << 20)[1])), books, moves, NEVER, KernelCharges(books, 0))
        scan = MappingScan(books, reconcile, looks)
        yield Scene(tmp_path / "f", fd, found.st_ino, books, moves, scan)
        os.close(fd)
        looks.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def use(first: int, last: int) -> str:
    """Stores, for of pages that are read the kernel maps the neighbours, too."""
    return f"for page in range({first}, {last + 1}): m[page * {PAGE}] = 1"


@pytest.mark.parametrize("naive", [False, True])
def test_what_was_used_before_any_scan(scene: Scene, tenants: Tenants, naive: bool) -> None:
    tenant = tenants.make("tenant")
    agent = tenant.agent()
    scene.map(agent)
    agent.do(use(3, 99))
    scene.move(0, naive=naive)
    expected = set() if naive else set(range(3, 100))
    assert scene.used_by(tenant) == expected
    assert scene.used_by(tenant) == expected, "after any number of scans"


def test_a_mapping_lasts_through_a_move_and_ends_with_the_mapping(scene: Scene, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    agent = tenant.agent()
    scene.map(agent)
    agent.do(use(3, 99))
    scene.move(0)
    scene.used_by(tenant)
    for _ in range(4):
        scene.books.tidying.age()  # a touch does not last so long
    assert scene.used_by(tenant) == set(range(3, 100))
    agent.do("m.close()")
    scene.used_by(tenant)
    for _ in range(4):
        scene.books.tidying.age()
    holdings = scene.books.questions.file_holdings(scene.inode)
    assert not any(held.mapped for held, _ in holdings)


def test_what_is_used_between_the_look_and_the_move(scene: Scene, tenants: Tenants) -> None:
    tenant, other = tenants.make("tenant"), tenants.make("other")
    agents = [tenant.agent(), other.agent()]
    for agent in agents:
        scene.map(agent)
        agent.do(use(3, 99))
    scene.move(0, lambda: agents[0].do(use(200, 210)))
    assert scene.used_by(tenant) >= {*range(3, 100), *range(200, 211)}
    assert scene.used_by(tenant) <= set(range(WINDOW)), "of the window that was moved, and no other"
    assert scene.used_by(other) == set(range(3, 100)), "who did nothing meanwhile uses nothing more"


def test_a_mapping_that_is_new_after_the_processes_were_looked_at(scene: Scene, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    agent = tenant.agent()

    def map_and_use() -> None:
        scene.map(agent)
        agent.do(use(0, 9))

    scene.move(1, lambda: None)
    scene.move(0, map_and_use)
    assert scene.used_by(tenant) >= set(range(10))


def test_a_process_whose_main_thread_has_ended(scene: Scene, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    agent = tenant.agent(main_thread_ends=True)
    scene.map(agent)
    agent.do(use(3, 99))
    scene.move(0)
    assert scene.used_by(tenant) == set(range(3, 100))


def test_what_is_cut_off_is_used_no_more(scene: Scene, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    agent = tenant.agent()
    scene.map(agent)
    agent.do(use(3, 99))
    scene.move(0)
    os.ftruncate(scene.fd, 50 * PAGE)
    scene.books.pages.uncharge(scene.inode, 50, 2 * WINDOW - 1)
    os.ftruncate(scene.fd, 2 * WINDOW * PAGE)
    os.pwrite(scene.fd, b"y" * PAGE, 60 * PAGE)
    scene.books.pages.charge_allocated(scene.inode, [(60, 60)], NOBODY)
    assert scene.used_by(tenant) == set(range(3, 50))
