"""Pages that the kernel swapped out are known, shared out, and never read in to be freed. Needs a host that swaps."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sharedfs.linux.cgroups import CgroupVersion, find_memory_hierarchy
from tests.support.controller import bill_of, bills, running_controller
from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
PATIENCE = 60.0


def swap_is_there() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


pytestmark = [
    pytest.mark.skipif(not swap_is_there(), reason="this host has no swap"),
    pytest.mark.skipif(
        os.geteuid() == 0 and find_memory_hierarchy().version is CgroupVersion.V1,
        reason="only cgroup v2 has memory.reclaim",
    ),
]


def swapped_in() -> int:
    """Pages that the host has read back from swap, ever."""
    lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(lines["pswpin"])


def push_out(pool: MountedPool, tenants: Tenants, left_bytes: int) -> None:
    """Have the kernel swap out pages of the pool, until no more than so many bytes of files are in memory."""
    directory = tenants.hierarchy.directory(pool.status().pool_cgroup)

    def in_memory() -> int:
        lines = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        return int(lines["shmem"])

    deadline = time.monotonic() + PATIENCE
    while in_memory() > left_bytes:
        assert time.monotonic() < deadline, "the kernel does not swap"
        with suppress(BlockingIOError):  # less than asked for
            (directory / "memory.reclaim").write_text(str(8 * MIB))


def test_pages_in_swap_are_known_and_shared_out(pool: MountedPool, tenants: Tenants) -> None:
    a, b = tenants.make("a", 256 * MIB), tenants.make("b", 256 * MIB)
    a.do(f"content = os.urandom({16 * MIB}); fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666)")
    a.do("os.pwrite(fd, content, 0)")
    b.do(f"fd = os.open('{pool.path}/f', os.O_RDONLY); os.pread(fd, {8 * MIB}, {8 * MIB})")
    bound = a.directory / "memory.swap.max"
    bound.write_text(str(128 * MIB))
    push_out(pool, tenants, 4 * MIB)

    def in_swap() -> int:
        return pool.holdings().swapped_bytes

    wait_until(lambda: in_swap() >= 8 * MIB, "the books know", PATIENCE)
    holdings = pool.check_conservation()
    assert holdings.resident_bytes == 16 * MIB, "pages in swap are the pool's as before"
    assert sum(held.bytes for held in holdings.classes if held.swapped) == holdings.swapped_bytes
    pool.wait_for_scan()
    assert in_swap() == holdings.swapped_bytes, "to look reads nothing in"
    with running_controller():
        told = bills()
        assert told["pool_resident_bytes"] == 16 * MIB
        swapped = [bill_of(tenant.path, told)["swapped_bytes"] for tenant in (a, b)]
        assert sum(swapped) == told["swapped_bytes"] > 8 * MIB
        assert 0 < swapped[1] <= swapped[0]
        share = bill_of(b.path, told)["share_bytes"]
        assert share == 4 * MIB

        def limit_is_right() -> bool:
            bill = bill_of(b.path, bills())
            in_memory = bill["share_bytes"] - bill["swapped_bytes"]
            return bool(256 * MIB - bill["limit_bytes"] == -(-in_memory // PAGE) * PAGE)

        wait_until(limit_is_right, "what is in swap comes off no memory limit", PATIENCE)

        def swap_limit_is_right() -> bool:
            bill = bill_of(a.path, bills())
            kept = bill["swap_budget_bytes"] == 128 * MIB and not bill["swap_debt_bytes"]
            target = (128 * MIB - bill["swapped_bytes"]) // PAGE * PAGE
            return bool(kept and int(bound.read_text()) == bill["swap_limit_bytes"] == target < 128 * MIB)

        wait_until(swap_limit_is_right, "but off the limit of swap", PATIENCE)
        told = bills()
        assert bill_of(b.path, told)["swap_limit_bytes"] is None, "whose manager bounds no swap has no bound"
    assert int(bound.read_text()) == 128 * MIB, "put back as it was found"
    assert a.do(f"result = os.pread(fd, {16 * MIB}, 0) == content")
    wait_until(lambda: in_swap() < 4 * MIB, "what was read is in memory", PATIENCE)


def test_nothing_is_read_in_to_be_freed(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    """The daemon's own memory comes back from swap as it works: a file is more than that."""
    tenant, file_bytes = tenants.make("a"), 48 * MIB
    options = ("--size", "192M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool:
        for name in "fgh":
            tenant.do(f"open('{pool.path}/{name}', 'wb').write(os.urandom({file_bytes}))")
        push_out(pool, tenants, 8 * MIB)
        wait_until(lambda: pool.holdings().swapped_bytes >= 2 * file_bytes, "the books know", PATIENCE)
        before = swapped_in()
        os.unlink(pool.path / "f")
        os.truncate(pool.path / "g", 0)
        wait_until(lambda: pool.holdings().resident_bytes == file_bytes, "two are freed", PATIENCE)
        assert (swapped_in() - before) * PAGE < file_bytes, "not those two"
        tenant.exit()
        before = swapped_in()
    assert (swapped_in() - before) * PAGE < file_bytes // 2, "nor the pool's last"
    wait_until(lambda: swap_used() < file_bytes // 2, "the swap is free", PATIENCE)


def swap_used() -> int:
    used_kib = sum(int(line.split()[3]) for line in Path("/proc/swaps").read_text().splitlines()[1:])
    return used_kib << 10
