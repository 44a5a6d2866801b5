"""I3 for pages that the kernel charged to a tenant in spite of us: they become the pool's when its cgroup is gone."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.demo.host import kernel_release, zombies_stay
from sharedfs.linux import huge_pages, syscalls
from sharedfs.linux.cgroups import dying_memcgs
from sharedfs.linux.page_charges import PageCharges
from sharedfs.storage import fault_injection
from tests.support.holes import content_is_there, fault_holes, sparse
from tests.support.mount import MountedPool, mounted_pool
from tests.support.pins import Pin, move_agent, stores_in
from tests.support.stores import Storers
from tests.support.tenants import Agent, Tenant, Tenants, wait_until

pytestmark = pytest.mark.alone

PAGE = 4096
MIB = 1 << 20
PER_WINDOW = 512
PATIENCE = 60.0
PINNED = 2 * PER_WINDOW
with_huge_pages = pytest.mark.skipif(
    huge_pages.page_bytes() != PER_WINDOW * PAGE or huge_pages.are_denied(),
    reason="files in use are moved by MADV_COLLAPSE only, which this kernel does not do",
)


@pytest.fixture
def stayer(tenants: Tenants) -> Tenant:
    return tenants.make("stayer")


@pytest.fixture
def copying_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MountedPool]:
    """As on a kernel that collapses no pages."""
    monkeypatch.setenv(fault_injection.HIDDEN_COLLAPSE_VARIABLE, "1")
    with mounted_pool(tmp_path / "copying", f"copying-{os.getpid()}", "--size", "256M") as pool:
        yield pool


def charged_below(tenants: Tenants) -> int:
    """Shared memory that the kernel charges to cgroups below the tenants' directory, removed ones among them."""
    directory = tenants.hierarchy.directory(tenants.path)
    lines = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    return int(lines.get("total_shmem", lines["shmem"]))


def charged_to_others(pool: MountedPool, tenants: Tenants, path: Path) -> int:
    """Bytes of a file that the kernel charges to other cgroups than the pool's: it is asked page by page.

    memory.stat does not tell: when the kernel collapses pages, its line `shmem` stays with the cgroup that had them.
    """
    own = tenants.hierarchy.find(pool.status().pool_cgroup)
    assert own is not None
    with PageCharges() as charges, path.open("rb") as file:
        return sum(size for inode, size in charges.of(file.fileno()).items() if inode != own.inode)


def is_charged_to_pool(pool: MountedPool, tenants: Tenants, path: Path) -> bool:
    """Whether the kernel charges no tenant. Pages that were copied are right in memory.stat, too."""
    return not (charged_to_others(pool, tenants, path) if huge_pages.can_collapse() else charged_below(tenants))


def map_file(agent: Agent, path: Path, size: int) -> None:
    """Map it, whether it is there or not, and read nothing."""
    opened = f"fd = os.open('{path}', os.O_RDWR)" if path.exists() else sparse(path, size)
    agent.do(f"{opened}\nm = mmap.mmap(fd, {size})")


def is_moved(pool: MountedPool) -> bool:
    return pool.holdings().foreign_bytes == 0


def test_what_nobody_uses_any_more_becomes_the_pools(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    path, pages = pool.path / "f", range(3, 3000, 7)
    fault_holes(tenant, path, pages)
    wait_until(lambda: pool.holdings().foreign_bytes == len(pages) * PAGE, "the pages are foreign", PATIENCE)
    modified = path.stat().st_mtime_ns
    tenant.exit()
    wait_until(lambda: pool.status().recharged_bytes == len(pages) * PAGE, "the pool has taken them over", PATIENCE)
    assert pool.check_conservation().foreign_bytes == 0
    assert content_is_there(path, pages)
    assert path.stat().st_mtime_ns == modified
    # One zombie could not be told from the comings and goings of the host's other cgroups: its charge can.
    wait_until(lambda: is_charged_to_pool(pool, tenants, path), "nothing keeps the zombie", PATIENCE)
    assert path.stat().st_blocks * 512 == pool.check_conservation().resident_bytes == (len(pages) + 1) * PAGE


@with_huge_pages
def test_pages_beside_them_become_the_pools_too(pool: MountedPool, tenants: Tenants) -> None:
    """A window is moved as a whole: pages that a live tenant brought go along."""
    path, half = pool.path / "f", PER_WINDOW // 2
    leaver, stayer = tenants.make("leaver"), tenants.make("stayer")
    holder = stayer.agent()
    map_file(holder, path, 64 * MIB)
    fault_holes(leaver, path, range(half))
    fault_holes(stayer, path, range(half, PER_WINDOW))
    wait_until(lambda: pool.holdings().foreign_bytes == PER_WINDOW * PAGE, "the pages are foreign", PATIENCE)
    leaver.exit()
    wait_until(lambda: is_moved(pool), "the pool has taken them over", PATIENCE)
    assert pool.status().recharged_bytes == PER_WINDOW * PAGE
    assert charged_to_others(pool, tenants, path) == 0
    pool.check_conservation()


# -- no store is lost ------------------------------------------------------------------------------------------------


@with_huge_pages
def test_no_store_is_lost_whoever_stores(pool: MountedPool, tenants: Tenants) -> None:
    """Threads through a mapping, one whose process's main thread has ended, and a process that writes into another's
    memory store all the while. The pages of twelve removed cgroups become the pool's under them."""
    path, leavers, each = pool.path / "f", 12, 256
    pages = leavers * each
    survivor = tenants.make("survivor")
    storers = Storers(pages)
    agents = [survivor.agent(), survivor.agent(main_thread_ends=True)]
    for agent in agents:
        map_file(agent, path, 64 * MIB)
    made = [tenants.make(f"leaver-{number}") for number in range(leavers)]
    for number, leaver in enumerate(made):
        fault_holes(leaver, path, range(number * each, (number + 1) * each))
    wait_until(lambda: pool.holdings().foreign_bytes == pages * PAGE, "the pages are foreign", PATIENCE)
    assert charged_to_others(pool, tenants, path) == pages * PAGE
    storers.begin(agents[0], threads=2)
    storers.begin(agents[1])
    storers.begin_from_outside(survivor.agent(), agents[0])
    storers.wait_for_turns(1, PATIENCE)
    before = dying_memcgs(tenants.hierarchy)
    for leaver in made:
        leaver.exit()
    wait_until(lambda: is_moved(pool), "the pool has taken them over", PATIENCE)
    storers.wait_for_turns(2, PATIENCE)
    assert storers.end() == []
    assert pool.status().recharged_bytes == pages * PAGE
    assert (pool.status().stranded_bytes, pool.status().recharge_refusal) == (0, "")
    assert charged_to_others(pool, tenants, path) == 0
    if zombies_stay(kernel_release()):
        wait_until(lambda: dying_memcgs(tenants.hierarchy) < before + leavers / 2, "the zombies go", PATIENCE)
    assert agents[0].do(f"result = all(m[page * {PAGE}] == 1 + page % {each} % 251 for page in range({each}))")
    pool.check_conservation()


def test_the_control_copying_what_others_map_loses_stores(tenants: Tenants, tmp_path: Path) -> None:
    """What the daemon does with a file that nobody uses, done to one that is used, by the same storers."""
    pages = PER_WINDOW
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "control", str(tmp_path)], check=True)
    try:
        tenant, storers = tenants.make("tenant"), Storers(pages)
        agent = tenant.agent()
        map_file(agent, tmp_path / "f", pages * PAGE)
        storers.begin(agent)
        storers.begin_from_outside(tenant.agent(), agent)
        storers.wait_for_turns(1, PATIENCE)
        fd = os.open(tmp_path / "f", os.O_RDWR)
        deadline = time.monotonic() + PATIENCE
        try:
            while not (agent.do("result = len(lost)") or time.monotonic() > deadline):
                for start in range(0, pages * PAGE, 64 << 10):
                    content = os.pread(fd, 64 << 10, start)
                    syscalls.punch_hole(fd, start, len(content))
                    os.pwrite(fd, content, start)
        finally:
            os.close(fd)
        assert storers.end() != []
    finally:
        tenants.remove_all()
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def pin_and_leave(pool: MountedPool, tenants: Tenants, stayer: Tenant) -> Pin:
    """A process pins 4 MiB, closes the file, and survives the cgroup that is charged for them."""
    leaver, path = tenants.make("leaver"), pool.path / "f"
    fault_holes(leaver, path, range(PINNED), 64 * MIB)
    agent = leaver.agent()
    pin = Pin(agent, path, PINNED * PAGE)
    move_agent(agent, leaver, stayer)
    wait_until(lambda: pool.holdings().foreign_bytes == PINNED * PAGE, "the pages are foreign", PATIENCE)
    leaver.exit()
    return pin


@with_huge_pages
def test_no_store_of_a_pin_is_lost(pool: MountedPool, tenants: Tenants, stayer: Tenant, tmp_path: Path) -> None:
    """Nobody has the file open or maps it, and the kernel stores into its pages all the same."""
    path = pool.path / "f"
    pin = pin_and_leave(pool, tenants, stayer)
    wait_for_refusal(pool, "held by the kernel or a device", PINNED * PAGE)
    blocks, modified = path.stat().st_blocks, path.stat().st_mtime_ns
    pin.store(tmp_path / "source")
    assert stores_in(path, PINNED * PAGE) == PINNED
    stayer.end_processes()
    wait_until(lambda: is_moved(pool), "the pool has taken over what nobody holds", PATIENCE)
    assert stores_in(path, PINNED * PAGE) == PINNED
    assert (path.stat().st_blocks, path.stat().st_mtime_ns) == (blocks, modified)
    assert charged_to_others(pool, tenants, path) == 0
    pool.check_conservation()


def test_the_control_copying_loses_the_stores_of_a_pin(
    copying_pool: MountedPool, tenants: Tenants, stayer: Tenant, tmp_path: Path
) -> None:
    """A kernel that collapses no pages has no other way: docs/reliability.md says so."""
    pin = pin_and_leave(copying_pool, tenants, stayer)
    wait_until(lambda: is_moved(copying_pool), "the pool has taken them over", PATIENCE)
    pin.store(tmp_path / "source")
    assert stores_in(copying_pool.path / "f", PINNED * PAGE) == 0


# -- what stays, and why ---------------------------------------------------------------------------------------------


def wait_for_refusal(pool: MountedPool, reason: str, stranded_bytes: int) -> None:
    wait_until(lambda: reason in pool.status().recharge_refusal, "the refusal is shown", PATIENCE)
    assert pool.status().stranded_bytes == pool.holdings().foreign_bytes == stranded_bytes
    assert pool.status().recharged_bytes == 0


def leave_pages(pool: MountedPool, tenants: Tenants, pages: range, size: int = 64 * MIB) -> None:
    """A tenant has the kernel charge it for pages of `f`, and its cgroup goes."""
    leaver = tenants.make("leaver")
    fault_holes(leaver, pool.path / "f", pages, size)
    wait_until(lambda: pool.holdings().foreign_bytes == len(pages) * PAGE, "the pages are foreign", PATIENCE)
    leaver.exit()


def test_sparse_pages_of_a_file_in_use_stay_until_it_is_not(
    pool: MountedPool, tenants: Tenants, stayer: Tenant
) -> None:
    """Collapsing would make 512 pages of each one. Where there are no huge pages, everything in use stays."""
    pages = range(3, 4000, PER_WINDOW)
    agent = stayer.agent()
    map_file(agent, pool.path / "f", 64 * MIB)
    resident = pool.resident_by_statfs()
    leave_pages(pool, tenants, pages)
    wait_for_refusal(pool, "the file is in use", len(pages) * PAGE)
    assert pool.resident_by_statfs() == resident + len(pages) * PAGE
    assert charged_below(tenants) == len(pages) * PAGE, "the control: they keep the removed cgroup"
    agent.do("m.close(); os.close(fd)")
    wait_until(lambda: is_moved(pool), "the pool has taken them over", PATIENCE)
    wait_until(lambda: is_charged_to_pool(pool, tenants, pool.path / "f"), "no tenant is charged for them", PATIENCE)
    assert pool.resident_by_statfs() == resident + len(pages) * PAGE, "what collapsing fills goes again"
    assert content_is_there(pool.path / "f", pages)
    pool.check_conservation()


def test_a_file_that_a_dead_main_thread_keeps_open_is_in_use(
    pool: MountedPool, tenants: Tenants, stayer: Tenant
) -> None:
    """Nobody is found by /proc/PID, but the kernel knows."""
    agent = stayer.agent(main_thread_ends=True)
    map_file(agent, pool.path / "f", 64 * MIB)
    agent.do("os.close(fd)")
    leave_pages(pool, tenants, range(0, PER_WINDOW, 8))
    wait_for_refusal(pool, "the file is in use", 64 * PAGE)


@with_huge_pages
def test_the_end_of_a_file_in_use_moves_and_the_file_takes_no_more(
    pool: MountedPool, tenants: Tenants, stayer: Tenant
) -> None:
    agent, pages = stayer.agent(), range(24)  # the last one is written
    map_file(agent, pool.path / "f", 25 * PAGE)
    leave_pages(pool, tenants, pages, 25 * PAGE)
    wait_until(lambda: is_moved(pool), "the pool has taken them over", PATIENCE)
    assert pool.check_conservation().resident_bytes == 25 * PAGE
    assert pool.resident_by_statfs() == 25 * PAGE
    assert charged_to_others(pool, tenants, pool.path / "f") == 0
    assert agent.do(f"result = [m[page * {PAGE}] for page in range(24)]") == [1 + page for page in range(24)]


@with_huge_pages
def test_holes_that_are_filled_are_the_pools(pool: MountedPool, tenants: Tenants, stayer: Tenant) -> None:
    agent, pages = stayer.agent(), range(0, PER_WINDOW * 3 // 4)
    map_file(agent, pool.path / "f", 4 * PER_WINDOW * PAGE)
    before = pool.resident_by_statfs()
    leave_pages(pool, tenants, pages, 4 * PER_WINDOW * PAGE)
    wait_until(lambda: is_moved(pool), "the pool has taken them over", PATIENCE)
    holdings = pool.check_conservation()
    assert pool.resident_by_statfs() == before + PER_WINDOW * PAGE
    assert sum(held.bytes for held in holdings.classes if not held.payers) == PER_WINDOW * PAGE
    assert pool.status().recharged_bytes == len(pages) * PAGE
    assert charged_to_others(pool, tenants, pool.path / "f") == 0


@pytest.fixture
def advised_pool(tmp_path: Path) -> Iterator[MountedPool]:
    with mounted_pool(tmp_path / "advised", f"advised-{os.getpid()}", "--size", "256M", "-o", "huge=advise") as pool:
        yield pool


@with_huge_pages
@pytest.mark.parametrize("mapped", [False, True])
def test_a_tenants_own_huge_page_stays_while_another_maps_it(
    advised_pool: MountedPool, tenants: Tenants, stayer: Tenant, mapped: bool
) -> None:
    """The kernel has nothing to collapse there, and says that it did. What nobody has in page tables can be split."""
    agent, leaver = stayer.agent(), tenants.make("leaver")
    size = 8 * MIB
    map_file(agent, advised_pool.path / "f", size)
    leaver.do(
        f"fd = os.open('{advised_pool.path}/f', os.O_RDWR); m = mmap.mmap(fd, {size}); m.madvise(14)\n"
        "m[0] = 1; result = os.fstat(fd).st_blocks"
    )
    with suppress(AssertionError):
        wait_until(lambda: advised_pool.holdings().foreign_bytes == 2 * MIB, "2 MiB came with one page", 10)
    if advised_pool.holdings().foreign_bytes != 2 * MIB:
        pytest.skip("the kernel had no huge page to spare")
    if mapped:
        agent.do("result = m[0]")
    leaver.exit()
    if mapped:
        wait_for_refusal(advised_pool, "a huge page that a tenant made", 2 * MIB)
        agent.do("m.close(); os.close(fd)")
    wait_until(lambda: is_moved(advised_pool), "the pool has taken them over", PATIENCE)
    assert charged_to_others(advised_pool, tenants, advised_pool.path / "f") == 0


@with_huge_pages
def test_a_tenants_own_huge_page_stays_while_a_pin_holds_it(
    advised_pool: MountedPool, tenants: Tenants, stayer: Tenant, tmp_path: Path
) -> None:
    """The kernel has nothing to collapse there, and says that it did."""
    path, leaver = advised_pool.path / "f", tenants.make("leaver")
    agent = leaver.agent()
    leaver.do(f"{sparse(path, 8 * MIB)}; m = mmap.mmap(fd, {8 * MIB}); m.madvise(14); m[0] = 1")
    with suppress(AssertionError):
        wait_until(lambda: advised_pool.holdings().foreign_bytes == 2 * MIB, "2 MiB came with one page", 10)
    if advised_pool.holdings().foreign_bytes != 2 * MIB:
        pytest.skip("the kernel had no huge page to spare")
    pin = Pin(agent, path, 2 * MIB)
    move_agent(agent, leaver, stayer)
    leaver.exit()
    wait_for_refusal(advised_pool, "a huge page that the kernel or a device holds", 2 * MIB)
    pin.store(tmp_path / "source")
    assert stores_in(path, 2 * MIB) == PER_WINDOW
    stayer.end_processes()
    wait_until(lambda: is_moved(advised_pool), "the pool has taken over what nobody holds", PATIENCE)
    assert stores_in(path, 2 * MIB) == PER_WINDOW
    assert charged_to_others(advised_pool, tenants, path) == 0


# -- no touch is lost ------------------------------------------------------------------------------------------------


@with_huge_pages
def test_who_has_read_what_is_moved_stays_its_user(pool: MountedPool, tenants: Tenants) -> None:
    """Two readers map a file and read it from end to end while its pages become the pool's."""
    size, path = 64 * MIB, pool.path / "f"
    maker, readers = tenants.make("maker"), [tenants.make("one"), tenants.make("two")]
    fault_holes(maker, path, range(0, size // PAGE), size)
    wait_until(lambda: pool.holdings().foreign_bytes == size - PAGE, "the pages are foreign", PATIENCE)
    maker.exit()
    wait_until(lambda: pool.status().recharged_bytes > 0, "moving has begun", PATIENCE)
    for reader in readers:
        reader.do(
            f"fd = os.open('{path}', os.O_RDONLY); m = mmap.mmap(fd, {size}, prot=mmap.PROT_READ); os.close(fd)\n"
            "def read():\n"
            f"    for part in range(0, {size}, {MIB}): sum(m[part:part + {MIB}:{PAGE}]); time.sleep(0.01)\n"
            "import time; worker = threading.Thread(target=read); worker.start()"
        )
    wait_until(lambda: is_moved(pool), "the pool has taken them over", PATIENCE)
    for reader in readers:
        reader.do("worker.join()")
    pool.wait_for_scan()
    pool.wait_for_scan()
    assert [pool.used(reader) for reader in readers] == [size, size]
    holdings = pool.check_conservation()
    assert sum(held.bytes for held in holdings.classes if not held.payers) == 0
