"""I3 for pages that the kernel charged to a tenant in spite of us: they become the pool's when its cgroup is gone."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from deploy.demo.host import kernel_release, zombies_stay
from sharedfs.kernel.cgroups import dying_memcgs
from tests.support.holes import content_is_there, fault_holes, sparse
from tests.support.mount import MountedPool
from tests.support.tenants import Tenants, wait_until

pytestmark = pytest.mark.alone

PAGE = 4096
MIB = 1 << 20
PATIENCE = 30.0
_PTRACE_SEIZE, _PTRACE_DETACH, _PTRACE_INTERRUPT = 0x4206, 17, 0x4207


@contextmanager
def traced(process: int) -> Iterator[None]:
    """A debugger is attached: nobody else can stop the process. The tracer is a thread, and lets go with its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    attached, done = threading.Event(), threading.Event()
    results: list[int] = []

    def trace() -> None:
        results.append(libc.ptrace(_PTRACE_SEIZE, process, None, None))
        attached.set()
        done.wait()

    thread = threading.Thread(target=trace)
    thread.start()
    attached.wait()
    try:
        assert results == [0]
        yield
    finally:
        done.set()
        thread.join()


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
    wait_until(lambda: charged_below(tenants) == 0, "nothing keeps the zombie", PATIENCE)


def charged_below(tenants: Tenants) -> int:
    """Shared memory that the kernel charges to cgroups below the tenants' directory, removed ones among them."""
    directory = tenants.hierarchy.directory(tenants.path)
    lines = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    return int(lines.get("total_shmem", lines["shmem"]))


def test_what_others_map_and_write_to_becomes_the_pools_and_no_write_is_lost(
    pool: MountedPool, tenants: Tenants
) -> None:
    """The control is in it: while a debugger keeps the mapper from being stopped, the pages and the zombies stay."""
    path, leavers, each = pool.path / "f", 12, 128
    pages = leavers * each
    survivor = tenants.make("survivor")
    survivor.do(
        f"{sparse(path, 64 * MIB)}\n"
        f"m = mmap.mmap(fd, {pages * PAGE}); go_on, lost, rounds = True, [], [0, 0]\n"
        # Each thread counts in words of its own, all over the file, and looks for what it wrote the last time.
        "def hammer(number):\n"
        "    count = 0\n"
        "    while go_on:\n"
        "        count += 1\n"
        f"        for place in range(number * 64 + 64, {pages * PAGE}, {PAGE}):\n"
        "            was = int.from_bytes(m[place:place + 4], 'little')\n"
        "            if was != count - 1: lost.append((place, was, count))\n"
        "            m[place:place + 4] = count.to_bytes(4, 'little')\n"
        "        rounds[number] = count"
    )
    before = dying_memcgs(tenants.hierarchy)
    for number in range(leavers):
        leaver = tenants.make(f"leaver-{number}")
        fault_holes(leaver, path, range(number * each, (number + 1) * each))
    wait_until(lambda: pool.holdings().foreign_bytes == pages * PAGE, "the pages are foreign", PATIENCE)
    assert charged_below(tenants) == pages * PAGE
    survivor.do(
        "workers = [threading.Thread(target=hammer, args=(number,)) for number in range(2)]\n"
        "for worker in workers: worker.start()"
    )
    with traced(survivor.agents[0].pid):
        for tenant in tenants.made[1:]:
            tenant.exit()
        wait_until(lambda: "traced already" in pool.status().recharge_refusal, "the refusal is shown", PATIENCE)
        assert pool.holdings().foreign_bytes == charged_below(tenants) == pages * PAGE
        with suppress(AssertionError):
            wait_until(lambda: dying_memcgs(tenants.hierarchy) <= before, "the zombies go", 2)
        zombies = dying_memcgs(tenants.hierarchy)
        if zombies_stay(kernel_release()):
            assert zombies >= before + leavers - 2, "the control: foreign pages keep removed cgroups"
    wait_until(lambda: pool.holdings().foreign_bytes == 0, "the pool has taken them over", PATIENCE)
    assert charged_below(tenants) == 0
    if zombies_stay(kernel_release()):
        wait_until(lambda: dying_memcgs(tenants.hierarchy) <= zombies - leavers + 2, "the zombies go", PATIENCE)
    first = max(survivor.do("result = rounds"))
    wait_until(lambda: min(survivor.do("result = rounds")) > first + 1, "both threads go on", PATIENCE)
    survivor.do("go_on = False\nfor worker in workers: worker.join()")
    assert survivor.do("result = lost[:5]") == []
    assert survivor.do(f"result = all(m[page * {PAGE}] == 1 + page % 251 for page in range({pages}))")
    assert pool.status().recharge_refusal == ""
    pool.check_conservation()
