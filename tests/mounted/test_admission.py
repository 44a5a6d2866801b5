"""Growth beyond what a tenant's budget can bear is refused with EDQUOT, and the file is as it was.

Kubernetes' KEP-6030 tells the pain: a memory-backed volume whose size limit is above the container's memory limit turns
"no space left" into an OOM kill. Here the writer gets an error that it can handle.
"""

import os
from collections.abc import Iterator
from errno import EDQUOT

import pytest

from sharedfs.common.headroom import DEFAULT_ROOM
from tests.support.controller import bill_of, bills, running_controller
from tests.support.mount import MountedPool
from tests.support.tenants import AgentError, Tenant, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
BUDGET = 64 * MIB


@pytest.fixture
def controller(pool: MountedPool) -> Iterator[None]:
    with running_controller():
        yield


def refused(tenant: Tenant, statements: str) -> bool:
    try:
        tenant.do(statements)
    except AgentError as error:
        if error.errno != EDQUOT:
            raise
        return True
    return False


def fill(tenant: Tenant, pool: MountedPool) -> int:
    """Write until it is refused; how long the file is then."""
    tenant.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666); size = 0")
    for _ in range(pool.status().size_bytes // MIB):
        if refused(tenant, f"size += os.pwrite(fd, b'x' * {MIB}, size)"):
            size = tenant.do("result = size")
            assert isinstance(size, int)
            return size
    raise AssertionError("the pool was full before the tenant's budget was")


def test_kep_6030_who_writes_past_its_budget_gets_an_error_and_no_kill(
    pool: MountedPool, controller: None, tenants: Tenants
) -> None:
    """The pool has 256 MiB, the container 64 MiB and some in use already: it gets EDQUOT and lives."""
    tenant = tenants.make("tenant", BUDGET)
    tenant.do(f"private = bytearray(16 * {MIB})")
    tenant.do(f"seen = open('{pool.path}/seen', 'wb', 0); seen.write(b'x')")
    size = fill(tenant, pool)
    assert os.stat(pool.path / "f").st_size == size
    pages_bytes = -(-size // PAGE) * PAGE  # the kernel may have cut the last write in two, and only one went in
    assert os.stat(pool.path / "f").st_blocks * 512 == pages_bytes
    assert 16 * MIB < size <= BUDGET
    assert tenant.do("result = 'alive'") == "alive"
    wait_until(lambda: bill_of(tenant.path, bills())["share_bytes"] == pages_bytes + PAGE, "it is billed")
    pool.check_conservation()
    assert pool.status().refused >= 1

    for way in (
        f"os.posix_fallocate(fd, 0, {BUDGET * 2})",
        f"other = os.open('{pool.path}/copy', os.O_RDWR | os.O_CREAT); os.copy_file_range(fd, other, {BUDGET})",
    ):
        before = pool.check_conservation().resident_bytes
        wait_until(lambda way=way: refused(tenant, way), f"{way} is refused")  # type: ignore[misc]
        assert os.stat(pool.path / "f").st_size == size
        assert pool.check_conservation().resident_bytes - before < 16 * MIB  # a copy does what it may


def test_what_a_new_tenant_fills_before_the_controller_has_seen_it_is_no_debt(
    pool: MountedPool, controller: None, tenants: Tenants
) -> None:
    """What it has of its own, and the room that is always left, fit beside its first pages."""
    tenant = tenants.make("tenant", BUDGET)
    tenant.do(f"private = bytearray(16 * {MIB}); private[::4096] = bytes(16 * {MIB} // 4096)")
    assert 16 * MIB < fill(tenant, pool) <= BUDGET - 16 * MIB - DEFAULT_ROOM.of(BUDGET)
    wait_until(lambda: bill_of(tenant.path, bills())["share_bytes"] > 16 * MIB, "it is billed")
    # For two seconds nothing is known of its swing, and an eighth of what it has is left on top. What its own memory
    # has grown by since its first request (the buffer that it writes from) nobody could know.
    wait_until(lambda: bill_of(tenant.path, bills())["debt_bytes"] <= 2 * MIB, "it bears all of it", 10)


def test_what_nobody_asked_for_stays_a_hole_beyond_the_budget(
    pool: MountedPool, controller: None, tenants: Tenants
) -> None:
    """A longer file, as ftruncate(2) or a write beyond the end makes one, is no promise of memory. fallocate(2) is."""
    tenant = tenants.make("tenant", BUDGET)
    tenant.do(f"seen = open('{pool.path}/seen', 'wb', 0); seen.write(b'x')")
    wait_until(lambda: any(line["tenant"] == tenant.path for line in bills()["tenants"]), "the controller knows it", 20)
    fill(tenant, pool)
    for number, grow in enumerate((f"os.ftruncate(fd, {BUDGET * 2})", f"os.pwrite(fd, b'x', {BUDGET * 2 - 1})")):
        tenant.do(f"os.ftruncate(fd, {MIB}); fd = os.open('{pool.path}/{number}', os.O_RDWR | os.O_CREAT)")
        tenant.do(grow)
        assert os.stat(pool.path / str(number)).st_size == 2 * BUDGET
        assert os.stat(pool.path / str(number)).st_blocks * 512 <= PAGE
        assert refused(tenant, f"os.posix_fallocate(fd, 0, {BUDGET * 2})")
        tenant.do(f"os.close(fd); fd = os.open('{pool.path}/f', os.O_RDWR)")
    tenant.do(f"fd = os.open('{pool.path}/fits', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'x', {MIB // 2 - 1})")
    assert os.stat(pool.path / "fits").st_blocks * 512 == MIB // 2
    pool.check_conservation()


def test_what_a_tenant_frees_it_may_use_again_at_once(pool: MountedPool, controller: None, tenants: Tenants) -> None:
    tenant = tenants.make("tenant", BUDGET)
    size = fill(tenant, pool)
    for _ in range(3):
        tenant.do(f"os.ftruncate(fd, {size - 4 * MIB}); os.pwrite(fd, b'y' * {3 * MIB}, {size - 4 * MIB})")
    assert refused(tenant, f"for at in range(16): os.pwrite(fd, b'y' * {MIB}, {size} + at * {MIB})")


def test_others_and_those_without_a_budget_are_not_held_back(
    pool: MountedPool, controller: None, tenants: Tenants
) -> None:
    tenant, other, free = tenants.make("tenant", BUDGET), tenants.make("other", BUDGET), tenants.make("free")
    fill(tenant, pool)
    for name, writer in (("other", other), ("free", free)):
        writer.do(f"fd = os.open('{pool.path}/{name}', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'x' * {8 * MIB}, 0)")
    free.do(f"os.posix_fallocate(fd, 0, {96 * MIB})")
    # Touching what is there is not refused: a share that is more than the tenant can bear is its debt.
    tenant.do(f"big = os.open('{pool.path}/free', os.O_RDONLY)\nwhile os.read(big, {MIB}): pass")
    wait_until(lambda: bill_of(tenant.path, bills())["debt_bytes"] > 0, "the reader is in debt")


def test_without_a_controller_nobody_is_refused(pool: MountedPool, tenants: Tenants) -> None:
    """Allowances end on their own: a controller that died does not strangle anybody."""
    tenant = tenants.make("tenant", BUDGET)
    with running_controller() as process:
        fill(tenant, pool)
        process.kill()
        process.wait()
        wait_until(lambda: not refused(tenant, f"size += os.pwrite(fd, b'x' * {MIB}, size)"), "it may write again", 20)
        with running_controller():  # puts the limit back at its end
            pass
