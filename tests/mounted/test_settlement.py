"""The main job, end to end: tenants share a file, each pays its part, one exits, the others' limits move."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.controller import bill_of, bills, run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool, mounted_pool, unmount
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
FILE_BYTES = 32 * MIB
BUDGET = 256 * MIB
SETTLED_SECONDS = 2.0


@pytest.fixture
def controller(pool: MountedPool) -> Iterator[None]:
    with running_controller():
        yield


def write_and_hold(tenant: Tenant, pool: MountedPool, name: str = "f") -> None:
    tenant.do(
        f"fd = os.open('{pool.path}/{name}', os.O_RDWR | os.O_CREAT, 0o666)\n"
        f"for _ in range({FILE_BYTES // MIB}): os.write(fd, b'x' * {MIB})"
    )


def map_and_read(tenant: Tenant, pool: MountedPool, name: str = "f") -> None:
    tenant.do(
        f"fd = os.open('{pool.path}/{name}', os.O_RDONLY); m = mmap.mmap(fd, {FILE_BYTES}, prot=mmap.PROT_READ)\n"
        f"result = sum(m[at] for at in range(0, {FILE_BYTES}, {PAGE}))"
    )


def test_each_pays_its_part_and_an_exit_moves_the_others_limits(
    pool: MountedPool, controller: None, tenants: Tenants
) -> None:
    owner, second, third = (tenants.make(name, BUDGET) for name in ("owner", "second", "third"))
    write_and_hold(owner, pool)
    wait_until(lambda: owner.limit() == BUDGET - FILE_BYTES, "the owner alone pays all", SETTLED_SECONDS)
    map_and_read(second, pool)
    half = FILE_BYTES // 2
    wait_until(lambda: {owner.limit(), second.limit()} == {BUDGET - half}, "two pay a half each", SETTLED_SECONDS)
    third.do(f"result = len(open('{pool.path}/f', 'rb').read())")
    wait_until(lambda: third.limit() != BUDGET, "the third is settled", SETTLED_SECONDS)

    told = bills()
    assert told["pool_resident_bytes"] == FILE_BYTES == pool.check_conservation().resident_bytes
    assert told["unclaimed_bytes"] == told["foreign_bytes"] == 0
    for tenant in (owner, second, third):
        bill = bill_of(tenant.path, told)
        assert bill["share_bytes"] in (FILE_BYTES // 3, FILE_BYTES // 3 + 1)
        assert bill["used_bytes"] == FILE_BYTES
        assert bill["budget_bytes"] == BUDGET
        assert bill["limit_bytes"] == tenant.limit() == (BUDGET - bill["share_bytes"]) // PAGE * PAGE
        assert bill["debt_bytes"] == 0
        assert bill["state"] == "live"
        assert tenant.statistic("shmem") == 0

    forecast = sharedctl("what-if", "exit", owner.path)
    owner.exit()
    wait_until(lambda: {second.limit(), third.limit()} == {BUDGET - half}, "halves again", SETTLED_SECONDS)
    told = bills()
    assert [tenant["tenant"] for tenant in told["tenants"]] == [second.path, third.path]
    expected = {tenant["tenant"]: tenant["share_after_bytes"] for tenant in forecast["tenants"]}
    assert {tenant["tenant"]: tenant["share_bytes"] for tenant in told["tenants"]} == expected

    third.exit()
    wait_until(lambda: second.limit() == BUDGET - FILE_BYTES, "the last one pays all", SETTLED_SECONDS)
    bills()
    second.exit()
    wait_until(lambda: not bills()["tenants"], "nobody pays", SETTLED_SECONDS)
    assert bills()["unclaimed_bytes"] == FILE_BYTES


def test_limits_are_put_back_when_the_controller_stops(pool: MountedPool, tenants: Tenants) -> None:
    limited, unlimited = tenants.make("limited", BUDGET), tenants.make("unlimited")
    with running_controller():
        write_and_hold(limited, pool, "a")
        write_and_hold(unlimited, pool, "b")
        wait_until(lambda: limited.limit() == BUDGET - FILE_BYTES, "settled", SETTLED_SECONDS)
        assert unlimited.limit() is None
        assert run_sharedctl("budget", unlimited.path, "512M").returncode == 0
        wait_until(lambda: unlimited.limit() == 512 * MIB - FILE_BYTES, "an operator's budget", SETTLED_SECONDS)
    assert limited.limit() == BUDGET
    assert unlimited.limit() is None


@pytest.mark.parametrize("order", [("budget", "64M"), ("cap", "10%")], ids=lambda order: order[0])
def test_a_pools_own_cgroup_is_no_tenant(pool: MountedPool, order: tuple[str, str]) -> None:
    """It was taken, and never came into force: no page is billed to a pool."""
    own = pool.status().pool_cgroup
    with running_controller():
        command, size = order
        done = run_sharedctl(command, own, size)
        assert done.returncode == 2
        assert f"{own} is pool {pool.name}'s own cgroup" in done.stderr
        assert done.stderr.count("\n") == 1


def test_limits_are_put_back_after_a_crash_of_the_controller(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant", BUDGET)
    with running_controller() as controller:
        write_and_hold(tenant, pool)
        wait_until(lambda: tenant.limit() == BUDGET - FILE_BYTES, "settled", SETTLED_SECONDS)
        controller.kill()
    assert tenant.limit() == BUDGET - FILE_BYTES
    with running_controller():
        assert bill_of(tenant.path, bills())["budget_bytes"] == BUDGET
    assert tenant.limit() == BUDGET


def test_questions_about_tenants_and_files(pool: MountedPool, controller: None, tenants: Tenants) -> None:
    owner, reader = tenants.make("owner", BUDGET), tenants.make("reader")
    write_and_hold(owner, pool, "a")
    write_and_hold(owner, pool, "b")
    reader.do(f"fd = os.open('{pool.path}/b', os.O_RDONLY); result = len(os.pread(fd, {MIB}, 0))")

    told = sharedctl("explain", owner.path)
    assert {(part["path"], part["used_bytes"]) for part in told["files"]} == {("a", FILE_BYTES), ("b", FILE_BYTES)}
    assert sum(part["share_bytes"] for part in told["files"]) == told["share_bytes"]
    assert sum(part["share_bytes"] for part in told["classes"]) == told["share_bytes"]

    told = sharedctl("users", str(pool.path / "b"))
    assert {(user["tenant"], user["used_bytes"], user["share_bytes"]) for user in told["tenants"]} == {
        (owner.path, FILE_BYTES, FILE_BYTES - MIB // 2),
        (reader.path, MIB, MIB // 2),
    }

    told = sharedctl("what-if", "exit", owner.path)
    assert told["freed_bytes"] == 2 * FILE_BYTES - MIB
    for arguments in (("explain", "/no/such"), ("users", f"{pool.path}/none"), ("what-if", "exit", "/no/such")):
        done = run_sharedctl(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_second_pool_is_found_and_bills_add_up(
    pool: MountedPool, controller: None, tenants: Tenants, unique_name: str
) -> None:
    tenant = tenants.make("tenant", BUDGET)
    write_and_hold(tenant, pool)
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(pool.path.with_name("mnt2"), f"{unique_name}-2", *options) as second:
        write_and_hold(tenant, second)
        wait_until(lambda: tenant.limit() == BUDGET - 2 * FILE_BYTES, "both pools count", SETTLED_SECONDS + 1)
        assert bill_of(tenant.path, bills())["used_bytes"] == 2 * FILE_BYTES
        tenant.do("os.close(fd)")
    wait_until(lambda: tenant.limit() == BUDGET - FILE_BYTES, "a pool that is gone costs nothing", SETTLED_SECONDS)


def test_the_umount_of_the_last_pool_puts_back_what_a_dead_controller_left(
    run_dir: Path, unique_name: str, tenants: Tenants
) -> None:
    """I6 for a controller that died for good; while another pool is mounted, limits are not the umount's to touch."""
    parent = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    a = tenants.make("a", BUDGET)
    with (
        mounted_pool(run_dir / "first", f"{unique_name}-1", *parent) as first,
        mounted_pool(run_dir / "second", f"{unique_name}-2", *parent) as second,
    ):
        with running_controller() as controller:
            a.do(f"open('{first.path}/f', 'wb').write(bytes({MIB}))")
            a.do(f"open('{second.path}/f', 'wb').write(bytes({MIB}))")
            wait_until(lambda: a.limit() == BUDGET - 2 * MIB, "the writer is settled", SETTLED_SECONDS)
            controller.kill()
            controller.wait()
        unmount(str(first.path))
        assert a.limit() == BUDGET - 2 * MIB
        unmount(str(second.path))
        assert a.limit() == BUDGET
