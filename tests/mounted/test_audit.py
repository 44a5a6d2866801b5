"""`sharedctl audit`: it finds what is wrong, page by page, says nothing where all is right, and repairs what it can."""

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sharedfs.accounting.books import Books
from sharedfs.daemon.parts import Parts
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import cachestat, huge_pages
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.procfs import process_cgroup
from sharedfs.pages import audit
from sharedfs.pages.audit import Audit, Difference
from sharedfs.storage.node import Node
from tests.mounted.test_moved_charges import SIZE, charged_to, collapse, map_aligned, told_by_the_kernel, write
from tests.support.controller import run_sharedctl
from tests.support.mount import MountedPool
from tests.support.parts import build_all, make_books, make_store
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
pytestmark = pytest.mark.skipif(not cachestat.can_be_asked(), reason="this kernel does not tell which pages there are")


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_pool_in_use_has_no_differences(pool: MountedPool, tenants: Tenants) -> None:
    writer, reader = tenants.make("writer"), tenants.make("reader")
    path = pool.path / "f"
    write(writer, path, MIB)
    reader.do(f"fd = os.open('{path}', os.O_RDONLY); m = mmap.mmap(fd, {MIB}, prot=mmap.PROT_READ); sum(m[::{PAGE}])")
    writer.do(f"os.pwrite(fd, b'x', {8 * MIB}); m = mmap.mmap(fd, {8 * MIB}); m[{4 * MIB}] = 1")
    done = run_sharedctl("audit", pool.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{pool.name}: 2 files, ")
    assert done.stdout.endswith(": no differences\n")
    told = json.loads(run_sharedctl("audit", "--json").stdout)
    assert [(one["pool"], one["differences"]) for one in told["pools"] if one["pool"] == pool.name] == [(pool.name, [])]


@told_by_the_kernel
@pytest.mark.skipif(not huge_pages.can_collapse(), reason="this kernel collapses no pages of tmpfs")
def test_charges_that_cannot_go_back_are_told(pool: MountedPool, tenants: Tenants) -> None:
    """Two have a huge page in their page tables, which no kernel splits."""
    owner, mover, other = (tenants.make(name) for name in ("owner", "mover", "other"))
    path = pool.path / "f"
    write(owner, path)
    agents = mover.agent(), other.agent()
    for agent in agents:
        map_aligned(agent, path)
    assert agents[0].do(collapse()) == 0
    for agent in agents:
        agent.do(f"result = sum(ctypes.string_at(address, {SIZE})[::{PAGE}])")
    done = run_sharedctl("audit", pool.name)
    if charged_to(pool, tenants, path)[1]:
        assert done.returncode == 1
        assert f"charged to {mover.path}" in done.stdout.replace("\n", "")
    for agent in agents:
        agent.end()
    wait_until(lambda: run_sharedctl("audit", pool.name).returncode == 0, "nothing differs afterwards", 60)


def test_what_is_no_regular_file_keeps_no_audit_waiting(pool: MountedPool, tenants: Tenants) -> None:
    """A FIFO that nobody writes to, and others that can be known and not be opened."""
    tenants.make("tenant").do(
        f"import socket\nos.chdir('{pool.path}')\n"
        f"os.mkfifo('fifo'); os.mkdir('d'); os.mknod('null', 0o20666); os.symlink('x' * 3000, 'link')\n"
        f"socket.socket(socket.AF_UNIX).bind('socket'); os.chdir('/')"
    )
    assert len([entry.stat(follow_symlinks=False) for entry in os.scandir(pool.path)]) == 5
    done = run_sharedctl("audit", pool.name)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pool_that_is_not_there(run_dir: Path) -> None:
    assert run_sharedctl("audit", "no-such-pool").returncode == 2
    assert run_sharedctl("audit").returncode == 2


@pytest.mark.parametrize("name", ["no-such-pool", "", ".", "../pools/{name}"])
def test_a_name_that_is_no_pools(pool: MountedPool, name: str) -> None:
    done = run_sharedctl("audit", name.format(name=pool.name))
    assert done.returncode == 2
    assert f"there is no pool {name.format(name=pool.name)!r}: `sharedfs status` lists {pool.name}" in done.stderr


# -- what it looks at, on real parts without a mount -------------------------------------------------------------------


@dataclass
class Scene:
    """A file of 40 pages that are written, booked as TENANT's."""

    books: Books
    parts: Parts
    node: Node
    fd: int
    audit: Audit
    tenant: TenantId


PAGES = 40


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(audit, "_PAUSE_SECONDS", 0.01)
    hierarchy, store, books, ended = find_memory_hierarchy(), make_store(8 << 20), make_books(), list[object]()
    own = hierarchy.find(hierarchy.path_in(process_cgroup(os.getpid()) or b"") or "/")
    assert own is not None
    with ExitStack() as resources:
        resources.callback(store.close)
        parts, watch = build_all(resources, store, books, ended=ended, pool_inode=own.inode)  # type: ignore[arg-type]
        node, _, fd = store.create(store.node(1), b"file", 0o600, 0, 0, 0)
        resources.callback(os.close, fd)
        os.pwrite(fd, b"x" * (PAGES * PAGE), 0)
        node.opens, node.lookups = 1, 1
        tenant = books.tenants.intern("/t", 1)
        books.pages.charge(node.inode, 0, PAGES * PAGE, tenant)
        yield Scene(books, parts, node, fd, watch.audit, tenant)
    assert ended == []


def test_books_that_are_right(scene: Scene) -> None:
    assert scene.audit.differences([scene.node.inode], mappings=True) == []


def test_pages_that_one_of_the_two_lacks(scene: Scene) -> None:
    inode = scene.node.inode
    scene.books.pages.uncharge(inode, 3, 5)
    scene.books.pages.charge(inode, 60 * PAGE, 62 * PAGE, scene.tenant)
    expected = [
        Difference(inode, 3, 5, "not there", "there"),
        Difference(inode, 60, 61, "charged to the pool", "not there"),
    ]
    assert scene.audit.differences([inode], mappings=False) == expected
    left = scene.audit.repair(expected, mappings=False)
    assert left == expected[:1], "what the books lack the scans book"
    scene.parts.reconcile.book_strays(scene.node)
    assert scene.audit.differences([inode], mappings=False) == []


@told_by_the_kernel
def test_charges_that_differ(scene: Scene) -> None:
    """The kernel charges this process's own cgroup for all of them, which stands for the pool's."""
    inode = scene.node.inode
    scene.books.pages.uncharge(inode, 10, 19)
    scene.books.pages.charge_strays(inode, [(10, 14)], scene.tenant)
    scene.books.pages.charge_strays(inode, [(15, 19)], NOBODY)
    expected = [
        Difference(inode, 10, 14, "charged to /t", "charged to the pool"),
        Difference(inode, 15, 19, "charged to a cgroup that is gone", "charged to the pool"),
    ]
    assert scene.audit.differences([inode], mappings=False) == expected
    assert scene.audit.repair(expected, mappings=False) == []
    assert scene.audit.differences([inode], mappings=False) == []


def test_what_changes_while_it_looks_is_no_difference(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = scene.node.inode
    scene.books.pages.uncharge(inode, 3, 5)

    def booked_meanwhile(_: float) -> None:
        scene.books.pages.charge(inode, 3 * PAGE, 6 * PAGE, scene.tenant)

    monkeypatch.setattr("sharedfs.pages.audit.time.sleep", booked_meanwhile)
    assert scene.audit.differences([inode], mappings=False) == []


def test_a_file_that_is_gone(scene: Scene) -> None:
    assert scene.audit.differences([scene.node.inode + 77], mappings=False) == []


def test_a_tenant_that_maps_and_does_not_pay(pool: MountedPool, tenants: Tenants) -> None:
    """As the daemon sees it between a mapping and its next scan: looked at once, it is a difference."""
    tenant = tenants.make("tenant")
    path = pool.path / "f"
    write(tenant, path, 40 * PAGE)
    mapper = tenants.make("mapper")
    mapper.do(f"fd = os.open('{path}', os.O_RDWR); m = mmap.mmap(fd, {40 * PAGE}); m[0] = 1")
    books = make_books()
    inode, found = path.stat().st_ino, path.stat()
    books.pages.charge(inode, 0, 40 * PAGE, books.tenants.tenant_at(tenant.path))
    with ExitStack() as resources:
        store = make_store(1 << 20)
        resources.callback(store.close)
        device = os.major(found.st_dev), os.minor(found.st_dev)
        _, watch = build_all(resources, store, books, ended=[], device=device)
        seen = watch.audit.of_mappings()
    assert [(one.inode, one.books, one.kernel) for one in seen] == [
        (inode, f"{mapper.path} does not pay", f"{mapper.path} maps them")
    ]
    assert seen[0].first == 0
    assert mmap.PAGESIZE == PAGE
