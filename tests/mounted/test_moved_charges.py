"""Charges that move without a request: they are the pool's again, and whoever owned and used the pages still does.

With the fewest words a tenant can do that: it maps a file and has the kernel collapse its pages, or punches pages out
and stores into others in their place (I2, I3).
"""

import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharedfs.linux import huge_pages
from sharedfs.linux.cgroup_memory import CgroupMemory, batch_bytes
from sharedfs.linux.page_charges import PageCharges
from sharedfs.pages import moved_charges
from tests.support.mount import MountedPool
from tests.support.pins import Pin
from tests.support.tenants import Agent, Tenant, Tenants, wait_until

PAGE = 4096
WINDOW = 512 * PAGE
SIZE = 4 * WINDOW
PATIENCE = 30.0
COLLAPSE = 25  # MADV_COLLAPSE, linux/mman.h
with_huge_pages = pytest.mark.skipif(
    huge_pages.page_bytes() != WINDOW or huge_pages.are_denied(), reason="this kernel collapses no pages of tmpfs"
)
told_by_the_kernel = pytest.mark.skipif(
    not os.path.exists("/proc/kpagecgroup"), reason="this kernel does not tell what is charged to whom"
)
pytestmark = told_by_the_kernel


def charged_to(pool: MountedPool, tenants: Tenants, path: Path) -> tuple[int, int]:
    """Bytes of a file that the kernel charges to the pool, and to others."""
    own = tenants.hierarchy.find(pool.status().pool_cgroup)
    with PageCharges() as charges, path.open("rb") as file:
        found = charges.of(file.fileno())
    return found[own], sum(size for inode, size in found.items() if inode != own)  # type: ignore[index]


def write(tenant: Tenant, path: Path, size: int = SIZE) -> None:
    tenant.do(f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, b'x' * {size}, 0)")


def map_aligned(agent: Agent, path: Path, size: int = SIZE) -> None:
    """Where huge pages can be, as `address`; it reads nothing."""
    agent.do(
        f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True); libc.mmap.restype = ctypes.c_void_p\n"
        f"libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]\n"
        f"libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
        f"libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]\n"
        f"fd = os.open('{path}', os.O_RDWR)\n"
        f"place = libc.mmap(None, {size + WINDOW}, 0, 0x22, -1, 0)\n"
        f"address = -(-place // {WINDOW}) * {WINDOW}\n"
        f"assert libc.mmap(address, {size}, 3, 0x11, fd, 0) == address"
    )


def collapse(start: int = 0, size: int = SIZE) -> str:
    return f"result = libc.madvise(address + {start}, {size}, {COLLAPSE})"


def replace(start: int = 0, size: int = SIZE) -> str:
    """Statements: pages go, and others are stored into in their place."""
    return (
        f"result = libc.madvise(address + {start}, {size}, {mmap.MADV_REMOVE})\n"
        f"for at in range({start}, {start + size}, {PAGE}): ctypes.c_char.from_address(address + at).value = b'y'"
    )


@contextmanager
def not_looking(pool: MountedPool) -> Iterator[None]:
    """The daemon sees what happens within at once. In the middle it would find others' pages gone, and new ones."""
    daemon = pool.status().daemon_pid
    os.kill(daemon, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon, signal.SIGCONT)


def check_moved(pool: MountedPool, tenants: Tenants, path: Path, size: int) -> None:
    """Control: the kernel lets charges move. On a busy host some may be the pool's again by now."""
    elsewhere = charged_to(pool, tenants, path)[1]
    assert elsewhere + pool.status().recharged_bytes >= size


UNMAP = f"libc.munmap(place, {SIZE + WINDOW}); os.close(fd)"
both = pytest.mark.parametrize("act", [collapse, replace])


@with_huge_pages  # which files in use are moved back by
@both
@pytest.mark.parametrize("goes", [False, True])
def test_moved_charges_are_the_pools_again(pool: MountedPool, tenants: Tenants, act, goes: bool) -> None:  # type: ignore[no-untyped-def]
    """Whether who moved them goes at once, or only lets go: its cgroup is charged for none of them afterwards."""
    owner, mover = tenants.make("owner"), tenants.make("mover")
    path = pool.path / "f"
    write(owner, path)
    agent = mover.agent()
    map_aligned(agent, path)
    with not_looking(pool):
        assert agent.do(act()) == 0
    check_moved(pool, tenants, path, SIZE)
    agent.do(UNMAP)
    if goes:
        mover.exit()
    wait_until(lambda: charged_to(pool, tenants, path) == (SIZE, 0), "the kernel charges the pool", PATIENCE)
    wait_until(lambda: pool.status().moved_charge_bytes == 0, "and the pool knows it", PATIENCE)
    holdings = pool.check_conservation()
    assert (holdings.resident_bytes, holdings.foreign_bytes) == (SIZE, 0)
    assert {held.owner for held in holdings.classes} == {ref.id for ref in holdings.tenants if ref.path == owner.path}
    assert pool.status().stranded_bytes == 0


@with_huge_pages  # which files in use are moved back by
@both
def test_a_single_window_of_a_large_file_is_found(pool: MountedPool, tenants: Tenants, act) -> None:  # type: ignore[no-untyped-def]
    owner, mover = tenants.make("owner"), tenants.make("mover")
    path = pool.path / "f"
    write(owner, path)
    agent = mover.agent()
    map_aligned(agent, path)
    pool.wait_for_scan()
    with not_looking(pool):
        assert agent.do(act(2 * WINDOW, WINDOW)) == 0
    check_moved(pool, tenants, path, WINDOW)
    agent.do(UNMAP)
    wait_until(lambda: charged_to(pool, tenants, path) == (SIZE, 0), "the kernel charges the pool", PATIENCE)


@with_huge_pages
def test_pages_that_stay_mapped_go_back_while_they_are(pool: MountedPool, tenants: Tenants) -> None:
    """Small pages are collapsed under those who map them, and no store is lost."""
    owner, mover = tenants.make("owner"), tenants.make("mover")
    path = pool.path / "f"
    write(owner, path)
    agent = mover.agent()
    map_aligned(agent, path)
    with not_looking(pool):
        assert agent.do(replace()) == 0
    wait_until(lambda: charged_to(pool, tenants, path) == (SIZE, 0), "the kernel charges the pool", PATIENCE)
    assert agent.do(f"result = ctypes.string_at(address, {SIZE}) == (b'y' + bytes({PAGE - 1})) * {SIZE // PAGE}")
    wait_until(lambda: pool.used(mover) == SIZE, "who maps them is their user", PATIENCE)
    assert pool.check_conservation().resident_bytes == SIZE


@with_huge_pages
def test_holes_that_moving_back_fills_are_for_who_had_moved_the_rest(pool: MountedPool, tenants: Tenants) -> None:
    """A tenant has every other page charged to itself, and stores into what the daemon makes in between."""
    owner, mover = tenants.make("owner"), tenants.make("mover")
    path = pool.path / "f"
    write(owner, path, WINDOW)
    agent = mover.agent()
    map_aligned(agent, path, WINDOW)
    with not_looking(pool):
        agent.do(
            f"assert libc.madvise(address, {WINDOW}, {mmap.MADV_REMOVE}) == 0\n"
            f"for at in range(0, {WINDOW}, {2 * PAGE}): ctypes.c_char.from_address(address + at).value = b'y'"
        )
    assert path.stat().st_blocks * 512 == WINDOW // 2, "control: every other page is there"
    wait_until(lambda: charged_to(pool, tenants, path) == (WINDOW, 0), "they are moved, and the others made", PATIENCE)
    agent.do(
        f"for at in range({PAGE}, {WINDOW}, {2 * PAGE}): ctypes.c_char.from_address(address + at).value = b'z'\n"
        f"libc.munmap(place, {2 * WINDOW}); os.close(fd)"
    )
    wait_until(lambda: pool.mapped(mover) == 0, "nobody maps it", PATIENCE)
    holdings = pool.check_conservation()
    owned = {ref.path: sum(held.bytes for held in holdings.classes if held.owner == ref.id) for ref in holdings.tenants}
    assert (owned[owner.path], owned[mover.path]) == (WINDOW // 2, WINDOW // 2), "they were nobody's"


@with_huge_pages
def test_holes_that_a_collapse_fills_are_whose_the_kernel_says(pool: MountedPool, tenants: Tenants) -> None:
    """Nobody maps them when the daemon looks: they are not nobody's."""
    mover = tenants.make("mover")
    path = pool.path / "f"
    mover.do(f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666); os.ftruncate(fd, {SIZE})")
    mover.do(f"for window in range(4): os.pwrite(fd, b'x', window * {WINDOW})")
    agent = mover.agent()
    map_aligned(agent, path)
    assert agent.do(collapse()) == 0
    wait_until(lambda: pool.holdings().resident_bytes == SIZE, "the books have all pages", PATIENCE)
    wait_until(lambda: pool.used(mover) == SIZE, "and who made them", PATIENCE)


def test_a_store_into_a_private_mappings_hole_is_its_makers(pool: MountedPool, tenants: Tenants) -> None:
    """The kernel makes a page of the file and charges who faulted. The private copy is in no file."""
    tenant = tenants.make("tenant")
    path = pool.path / "f"
    tenant.do(f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, b'x', {20 * PAGE})")
    tenant.do(f"m = mmap.mmap(fd, {20 * PAGE}, mmap.MAP_PRIVATE)\nfor page in range(20): m[page * {PAGE}] = 1")
    there = path.stat().st_blocks * 512
    assert there == 21 * PAGE, "control: the file has pages there"
    wait_until(lambda: pool.holdings().resident_bytes == there, "the books have them", PATIENCE)
    wait_until(lambda: pool.used(tenant) == there, "and they are its own", PATIENCE)


@pytest.mark.parametrize("sees_it_mapped", [True, False])
def test_as_many_pages_come_as_go_in_the_middle_of_a_file(
    pool: MountedPool, tenants: Tenants, sees_it_mapped: bool
) -> None:
    """Others pay for the pages that are there, and for no others. The sum of the file is right all the while."""
    owner, mover = tenants.make("owner"), tenants.make("mover")
    path, pages = pool.path / "f", 100
    owner.do(f"fd = os.open('{path}', os.O_WRONLY | os.O_CREAT, 0o666)")  # who cannot map it gets holes
    owner.do(f"os.pwrite(fd, b'x' * {SIZE // 2}, 0); os.pwrite(fd, b'x', {SIZE - 1})")
    agent = mover.agent()
    map_aligned(agent, path)
    if sees_it_mapped:
        pool.wait_for_scan()
    before = pool.resident_by_statfs()
    assert before == SIZE // 2 + PAGE
    agent.do(
        f"assert libc.madvise(address + 40 * {PAGE}, {pages * PAGE}, {mmap.MADV_REMOVE}) == 0\n"
        f"for at in range({SIZE // 2}, {SIZE // 2 + pages * PAGE}, {PAGE}):\n"
        f"    ctypes.c_char.from_address(address + at).value = b'y'\n{UNMAP}"
    )
    assert pool.resident_by_statfs() == before, "control: the sum does not tell"
    wait_until(lambda: pool.used(owner) == before - pages * PAGE, "the owner pays for what is left", PATIENCE)
    # Of a mapping that no scan saw nobody can tell which pages were touched: all of its range were.
    by_range = not sees_it_mapped and pool.status().mapping_records_lost is not None
    made = before if by_range else pages * PAGE
    wait_until(lambda: pool.used(mover) == made, "and the other one for what it made", PATIENCE)
    pool.check_conservation()


@with_huge_pages
def test_what_pins_hide_is_found_by_going_through_all_files(pool: MountedPool, tenants: Tenants) -> None:
    """As many bytes are pinned in no file as have moved, so the pool's charge is what the books have."""
    owner, mover = tenants.make("owner"), tenants.make("mover")
    path = pool.path / "f"
    write(owner, path)
    pinner = tenants.make("pinner")
    pinner.do(f"fd = os.open('{pool.path}/pinned', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'x' * {SIZE}, 0)")
    Pin(pinner.agent(), pool.path / "pinned", SIZE)
    pinner.do("os.ftruncate(fd, 0)")
    agent = mover.agent()
    map_aligned(agent, path)
    pool.wait_for_scan()
    assert agent.do(collapse()) == 0
    agent.do(UNMAP)
    wait_until(lambda: charged_to(pool, tenants, path) == (SIZE, 0), "the kernel charges the pool", 120)


# -- what the kernel tells ---------------------------------------------------------------------------------------------


def test_the_pools_charge_tells_of_charges_that_left_it(pool: MountedPool, tenants: Tenants) -> None:
    """Less other memory it is what the books have, and as much smaller as charges have moved."""
    memory = CgroupMemory(tenants.hierarchy, pool.status().pool_cgroup)
    owner, mover = tenants.make("owner"), tenants.make("mover")
    path = pool.path / "f"
    write(owner, path)

    def lacks() -> int:
        return SIZE + pool.state_bytes() - (memory.tmpfs_bytes() or 0)

    slack = moved_charges.SLACK_BYTES
    assert -batch_bytes() < lacks() < slack, "the kernel charges for some pages ahead"
    agent = mover.agent()
    map_aligned(agent, path)

    def are_seen_to_lack() -> bool:
        assert agent.do(replace()) == 0
        return lacks() > SIZE - slack - batch_bytes()

    wait_until(are_seen_to_lack, "the charge is smaller, before the daemon has looked")
    memory.close()
