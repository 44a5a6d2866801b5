"""What is mapped for less than a scan: who maps, reads and unmaps, or exits, pays for the range."""

import os
from pathlib import Path

import pytest

from sharedfs.common.errors import HostFault
from sharedfs.linux.mapping_events import MappingEvents
from tests.support.controller import run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, Tenants, wait_until

MIB = 1 << 20
PAGE = 4096
SIZE = 8 * MIB
PATIENCE = 20.0


@pytest.fixture(scope="module", autouse=True)
def _kernel_tells() -> None:
    try:
        MappingEvents([]).close()
    except HostFault as fault:
        pytest.skip(str(fault))


def make(pool: MountedPool, tenants: Tenants, size: int = SIZE) -> tuple[Path, Tenant]:
    path, owner = pool.path / "f", tenants.make("owner")
    owner.do(f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666); os.write(fd, b'x' * {size}); os.close(fd)")
    return path, owner


def map_and_read(path: Path, size: int = SIZE, offset: int = 0) -> str:
    return (
        f"fd = os.open('{path}', os.O_RDONLY); m = mmap.mmap(fd, {size}, prot=mmap.PROT_READ, offset={offset})\n"
        f"os.close(fd); result = sum(m[at] for at in range(0, {size}, {PAGE})); m.close()"
    )


def test_who_maps_reads_and_unmaps_between_two_scans_pays(pool: MountedPool, tenants: Tenants) -> None:
    path, owner = make(pool, tenants)
    reader = tenants.make("reader")
    assert reader.do(map_and_read(path)) == ord("x") * SIZE // PAGE
    wait_until(lambda: pool.used(reader) == SIZE, "the range is billed", PATIENCE)
    assert pool.mapped(reader) == 0
    assert pool.used(owner) == SIZE


def test_a_process_that_lives_for_a_moment_is_billed(pool: MountedPool, tenants: Tenants) -> None:
    """Its cgroup is there, and the process is not when anybody looks."""
    path, _ = make(pool, tenants)
    reader = tenants.make("reader")
    agent = reader.agent()
    agent.do(
        f"child = os.fork()\nif not child:\n    exec({map_and_read(path)!r})\n    os._exit(0)\nos.waitpid(child, 0)"
    )
    wait_until(lambda: pool.used(reader) == SIZE, "the range is billed", PATIENCE)


def test_explain_says_that_it_is_by_the_range(pool: MountedPool, tenants: Tenants) -> None:
    path, _ = make(pool, tenants)
    reader, other = tenants.make("reader"), tenants.make("other")
    other.do(f"fd = os.open('{path}', os.O_RDONLY); result = len(os.pread(fd, {PAGE}, 0))")
    with running_controller():
        reader.do(map_and_read(path))
        wait_until(lambda: pool.used(reader) == SIZE, "the range is billed", PATIENCE)
        assert [file["by_range"] for file in sharedctl("explain", reader.path)["files"]] == [True]
        assert [file["by_range"] for file in sharedctl("explain", other.path)["files"]] == [False]
        shown = run_sharedctl("explain", reader.path).stdout
        assert "8.00M *" in shown
        assert "too short a time" in shown


def test_the_range_is_billed_and_no_more(pool: MountedPool, tenants: Tenants) -> None:
    path, _ = make(pool, tenants)
    reader = tenants.make("reader")
    reader.do(map_and_read(path, 2 * MIB, MIB))
    wait_until(lambda: pool.used(reader) == 2 * MIB, "the range is billed", PATIENCE)
    reader.do(map_and_read(path, MIB, 7 * MIB))
    wait_until(lambda: pool.used(reader) == 3 * MIB, "and another one", PATIENCE)


def test_what_is_still_mapped_is_billed_by_its_pages(pool: MountedPool, tenants: Tenants) -> None:
    """A scan sees in page tables what was touched: of what it finds no range is billed."""
    path, _ = make(pool, tenants)
    reader = tenants.make("reader")
    reader.do(f"fd = os.open('{path}', os.O_RDONLY); m = mmap.mmap(fd, {SIZE}, prot=mmap.PROT_READ); result = m[0]")
    scans = pool.status().mapping_scans
    wait_until(lambda: pool.status().mapping_scans >= scans + 2, "two scans", PATIENCE)
    assert 0 < pool.used(reader) <= 64 << 10, "what the kernel maps around one page"


def test_a_flood_of_mappings_is_bounded_and_told(pool: MountedPool, tenants: Tenants) -> None:
    """Mappings of other files by the hundred thousand: the one that counts is seen, for rings are emptied in time."""
    path, _ = make(pool, tenants)
    flooder, reader = tenants.make("flooder"), tenants.make("reader")
    flooder.do(
        "import threading\nstop = False\n"
        "def flood():\n    while not stop: mmap.mmap(-1, 4096).close()\n"
        "thread = threading.Thread(target=flood, daemon=True); thread.start()"
    )
    reader.do(map_and_read(path))
    wait_until(lambda: pool.used(reader) == SIZE, "the range is billed", PATIENCE)
    flooder.do("stop = True; thread.join()")


def test_a_mapping_of_the_daemons_own_is_nobodys(pool: MountedPool, tenants: Tenants) -> None:
    path, owner = make(pool, tenants)
    holdings = pool.holdings()
    assert {held.payers for held in holdings.classes} == {(1,)}, holdings
    assert os.stat(path).st_size == SIZE
    assert pool.used(owner) == SIZE
