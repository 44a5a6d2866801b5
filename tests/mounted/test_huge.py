"""`huge=`: pages that two tenants share are huge, the pool pays for them, and the books still have each small one."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedfs.linux import cachestat, huge_pages
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE, HUGE, MIB = 4096, 2 << 20, 1 << 20

pytestmark = pytest.mark.skipif(
    huge_pages.page_bytes() != HUGE or huge_pages.are_denied() or not cachestat.can_be_asked(),
    reason="no huge pages of 2 MiB for tmpfs, or no cachestat(2)",
)

# How much of its mappings a tenant has in huge pages.
PMD_MAPPED = (
    "result = sum(int(line.split()[1]) << 10 for line in open('/proc/self/smaps') if line.startswith('ShmemPmdMapped'))"
)


both = pytest.mark.parametrize("huge", ["within_size", "always"])


@pytest.fixture
def huge() -> str:
    return "within_size"


@pytest.fixture
def pool(huge: str, run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("--size", "128M", "--cgroup-parent", f"{unique_name}-pools", "-o", f"huge={huge},reserve=64m")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def charged(pool: MountedPool, *tenants: Tenant) -> int:
    """Bytes that the kernel charges to tenants for the pool's pages, once the books have them as foreign."""

    def agree() -> bool:
        return pool.check_conservation().foreign_bytes == sum(tenant.statistic("shmem") for tenant in tenants)

    wait_until(agree, "what is charged to tenants is foreign in the books", 30)
    return pool.holdings().foreign_bytes


@both
def test_what_is_reserved_is_huge_and_the_pools(pool: MountedPool, tenants: Tenants, huge: str) -> None:
    maker, mapper = tenants.make("maker"), tenants.make("mapper")
    maker.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666); os.ftruncate(fd, {8 * MIB + PAGE})")
    expected = 10 * MIB if huge == "always" else 8 * MIB + PAGE
    assert pool.check_conservation().resident_bytes == expected
    mapper.do(f"fd = os.open('{pool.path}/f', os.O_RDWR); m = mmap.mmap(fd, {8 * MIB}); m[{3 * MIB}] = 1")
    assert mapper.do(PMD_MAPPED) == HUGE
    wait_until(lambda: pool.mapped(mapper) == HUGE, "what one page table entry maps is in use", 30)
    assert charged(pool, maker, mapper) == 0
    maker.exit()
    wait_until(lambda: not pool.knows(maker), "its exit is seen", 30)
    assert pool.used(mapper) == HUGE
    assert pool.check_conservation().resident_bytes == expected


def test_small_pages_that_are_mapped_become_huge_on_the_pools_account(pool: MountedPool, tenants: Tenants) -> None:
    writer, mapper = tenants.make("writer"), tenants.make("mapper")
    writer.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT)\nfor _ in range(5): os.write(fd, b'x' * {MIB})")
    assert pool.check_conservation().resident_bytes == 5 * MIB, "a write brings what it wrote"
    mapper.do(f"fd = os.open('{pool.path}/f', os.O_RDWR); m = mmap.mmap(fd, {5 * MIB})")

    def is_mapped_huge() -> bool:
        return mapper.do(f"m[{HUGE}] = 120; {PMD_MAPPED}") == HUGE

    wait_until(is_mapped_huge, "the window that is used is huge", 30)
    assert mapper.do(f"result = m[:] == b'x' * {5 * MIB}")
    assert charged(pool, writer, mapper) == 0


def test_a_fault_that_asks_for_a_huge_page_in_a_hole_is_foreign_to_the_byte(
    pool: MountedPool, tenants: Tenants
) -> None:
    tenant = tenants.make("tenant")
    tenant.do(
        f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 1 << 30)\n"
        f"m = mmap.mmap(fd, {4 * HUGE}); m.madvise(mmap.MADV_HUGEPAGE); m[{HUGE} + 5] = 1"
    )
    wait_until(lambda: pool.holdings().foreign_bytes == HUGE, "the fault's pages are found", 30)
    assert pool.used(tenant) == HUGE
    assert charged(pool, tenant) == HUGE
    # A mapping that cannot hold a huge page whole brings one all the same, but for this page table.
    tenant.do(f"n = mmap.mmap(fd, {3 * HUGE}, offset={4 * HUGE + PAGE}); n.madvise(mmap.MADV_HUGEPAGE); n[{HUGE}] = 1")
    wait_until(lambda: pool.holdings().foreign_bytes > HUGE, "these too", 30)
    assert charged(pool, tenant) > HUGE
    tenant.do("m.close(); n.close(); os.ftruncate(fd, 0)")
    assert charged(pool, tenant) == 0


def test_a_huge_page_that_is_held_cannot_be_split_and_stays_in_the_books(pool: MountedPool, tenants: Tenants) -> None:
    """vmsplice(2) holds on to a page, so that a cut of the file leaves all of the huge page where it is."""
    tenant = tenants.make("tenant")
    tenant.do(
        f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, {2 * HUGE}); import ctypes\n"
        f"m = mmap.mmap(fd, {2 * HUGE}); m[0] = m[{HUGE}] = 1; reader, writer = os.pipe()\n"
        f"part = (ctypes.c_uint64 * 2)(ctypes.addressof(ctypes.c_char.from_buffer(m)), {PAGE})\n"
        "result = ctypes.CDLL(None).vmsplice(writer, part, 1, 0)"
    )
    tenant.do(f"os.ftruncate(fd, {3 * PAGE + 1}); os.pwrite(fd, b'x', 0)")
    held = pool.check_conservation().resident_bytes
    assert held == HUGE, "the case is as the test wants it"
    tenant.do(f"os.read(reader, {PAGE}); os.ftruncate(fd, {2 * PAGE})")
    assert pool.check_conservation().resident_bytes == 2 * PAGE


@both
def test_random_operations_of_two_tenants_keep_the_books(pool: MountedPool, tenants: Tenants) -> None:
    """Written, cut, punched, allocated, mapped and asked to be huge: at each look the books have what the tmpfs has."""
    choose = random.Random(11)
    pair = [tenants.make("one"), tenants.make("other")]
    names = ["a", "b"]
    for tenant in pair:
        opened = ", ".join(f"'{name}': os.open('{pool.path}/{name}', os.O_RDWR | os.O_CREAT, 0o666)" for name in names)
        tenant.do(f"import ctypes; fds = {{{opened}}}; held = []; fallocate = ctypes.CDLL(None).fallocate\nx = 0")
    for number in range(120):
        start = choose.randrange(5 * HUGE)
        length = choose.randrange(1, choose.choice([PAGE, MIB, 2 * HUGE]))
        size, fd = choose.randrange(6 * HUGE), f"fds['{choose.choice(names)}']"
        range_of = f"ctypes.c_int64({start}), ctypes.c_int64({length})"
        mapping = f"m = mmap.mmap({fd}, os.fstat({fd}).st_size)"
        beyond = f"os.fstat({fd}).st_size > {start}"
        actions = [
            f"os.pwrite({fd}, bytes({min(length, MIB)}), {start})",
            f"os.ftruncate({fd}, {size})",
            f"fallocate({fd}, 0, {range_of})",
            f"fallocate({fd}, 1, {range_of})",
            f"fallocate({fd}, 3, {range_of})",
            f"if {beyond}: {mapping}; m[{start}] = 1; held.append(m)",
            f"if {beyond}: {mapping}; m.madvise(mmap.MADV_HUGEPAGE); m[{start}] = 1",
            "m = None; held.clear()",
        ]
        choose.choice(pair).do(choose.choice(actions))
        if number % 10 == 9:
            pool.check_conservation()
    for tenant in pair:
        tenant.do("m = None; held.clear()")
        assert tenant.do("result = all(os.pread(fd, 1, 0) in (b'', b'\\0', b'\\1') for fd in fds.values())")
    pair[0].exit()
    wait_until(lambda: not pool.knows(pair[0]), "its exit is seen", 30)
    pool.check_conservation()
    pair[1].do("for fd in fds.values(): os.ftruncate(fd, 0)")
    assert pool.check_conservation().resident_bytes == 0


def test_what_cannot_be_is_refused(run_dir: Path) -> None:
    done = sharedfs("mount", str(run_dir), "-o", "huge=often", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "write one of always, within_size, advise, never" in done.stderr
