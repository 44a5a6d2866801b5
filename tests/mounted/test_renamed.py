"""A cgroup that is renamed (v1, rename(2) on its directory) is the same tenant under another name.

It was taken for one that exits and one that comes: its pages were unclaimed, its lowered limit became its budget, and
the limit that its manager had set was lost.
"""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sharedfs.linux.cgroups import CgroupVersion, find_memory_hierarchy
from tests.support.controller import bill_of, bills, run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, Tenants, wait_until

pytestmark = pytest.mark.skipif(
    find_memory_hierarchy().version is not CgroupVersion.V1, reason="cgroup v2 renames nothing"
)

MIB = 1 << 20
BUDGET = 256 * MIB
FILE_BYTES = 100 * MIB
PATIENCE = 20.0


@pytest.fixture
def maker(pool: MountedPool, tenants: Tenants) -> Tenant:
    """It holds 100 MiB of the pool, in a cgroup below another one with a limit."""
    above = tenants.make("above", 2 * BUDGET)
    maker = Tenant(tenants.hierarchy, f"{above.path}/maker")
    tenants.made.append(maker)
    maker.set_limit(BUDGET)
    maker.do(
        f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666)\n"
        f"for _ in range({FILE_BYTES // MIB}): os.write(fd, b'x' * {MIB})"
    )
    return maker


@contextmanager
def renamed(tenant: Tenant, whole: Tenant, name: str) -> Iterator[None]:
    """The directory of `whole`, which is the tenant's or one above it, has another name meanwhile."""
    old_path, old_whole = tenant.path, whole.path
    new_whole = f"{old_whole.rpartition('/')[0]}/{name}"
    new_path = new_whole + old_path.removeprefix(old_whole)
    hierarchy = tenant.hierarchy
    hierarchy.directory(old_whole).rename(hierarchy.directory(new_whole))
    tenant.path, tenant.directory = new_path, hierarchy.directory(new_path)
    try:
        yield
    finally:
        hierarchy.directory(new_whole).rename(hierarchy.directory(old_whole))
        tenant.path, tenant.directory = old_path, hierarchy.directory(old_path)


def is_settled(tenant: Tenant) -> bool:
    """It pays for all that it made, under its name of now, and its limit is as much lower."""
    told = bills()
    if tenant.path not in [line["tenant"] for line in told["tenants"]]:
        return False
    line = bill_of(tenant.path, told)
    return (line["share_bytes"], line["budget_bytes"], tenant.limit(), told["unclaimed_bytes"]) == (
        FILE_BYTES,
        BUDGET,
        BUDGET - FILE_BYTES,
        0,
    )


@pytest.mark.parametrize("what", ["maker", "above"])
def test_a_renamed_tenant_keeps_its_pages_its_budget_and_its_managers_limit(
    maker: Tenant, tenants: Tenants, what: str
) -> None:
    whole = maker if what == "maker" else tenants.made[0]
    with running_controller():
        wait_until(lambda: is_settled(maker), "the maker pays", PATIENCE)
        with renamed(maker, whole, "another"):
            wait_until(lambda: is_settled(maker), "the same under the new name", PATIENCE)
            maker.do("os.pread(fd, 10, 0)")
            sharedctl("bills")
            assert is_settled(maker), "also after it has asked for something"
            names = [line["tenant"] for line in bills()["tenants"]]
            assert names == [maker.path], "nobody has come or gone"
        wait_until(lambda: is_settled(maker), "and back", PATIENCE)
    assert maker.limit() == BUDGET


def test_a_limit_is_put_back_on_a_cgroup_that_was_renamed_when_nobody_looked(maker: Tenant) -> None:
    with running_controller() as controller:
        wait_until(lambda: is_settled(maker), "the maker pays", PATIENCE)
        controller.send_signal(signal.SIGKILL)
        controller.wait()
    with renamed(maker, maker, "another"):
        done: subprocess.CompletedProcess[str] = run_sharedctl("restore")
        assert done.returncode == 0, done.stderr
        assert maker.limit() == BUDGET


def test_another_cgroup_of_the_old_name_is_another_tenant(maker: Tenant, tenants: Tenants, pool: MountedPool) -> None:
    with running_controller():
        wait_until(lambda: is_settled(maker), "the maker pays", PATIENCE)
        with renamed(maker, maker, "another"):
            follower = Tenant(tenants.hierarchy, f"{maker.path.rpartition('/')[0]}/maker")
            follower.set_limit(BUDGET)
            try:
                follower.do(f"own = os.open('{pool.path}/g', os.O_RDWR | os.O_CREAT); os.write(own, b'y' * {MIB})")
                wait_until(lambda: is_settled(maker), "the maker pays under its new name", PATIENCE)
                assert bill_of(follower.path, bills())["share_bytes"] == MIB
                assert bill_of(follower.path, bills())["budget_bytes"] == BUDGET
            finally:
                follower.exit()
    assert maker.limit() == BUDGET
