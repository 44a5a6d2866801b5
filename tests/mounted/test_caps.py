"""No tenant takes all of a pool: a cap on each one's share, and a remainder for those who have little.

The hogs have no limit of memory, and no controller runs: the pool alone bounds them.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

import pytest

from tests.support.controller import run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.tenants import AgentError, Tenant, Tenants, wait_until

MIB = 1 << 20
SIZE = 128 * MIB
NEAR = 2 * MIB
"""A write is refused whole, and several are under way."""

WRITE = f"size += os.pwrite(fd, b'x' * {MIB}, size)"
GROW = f"os.posix_fallocate(fd, size, {MIB}); size += {MIB}"


@contextmanager
def capped(run_dir: Path, name: str, tenants: Tenants, *options: str) -> Iterator[MountedPool]:
    with mounted_pool(run_dir / "mnt", name, "--size", str(SIZE), "--cgroup-parent", f"{name}-pools", *options) as pool:
        yield pool
        pool.check_conservation()
        for tenant in tenants.made:
            tenant.end_processes()


def fill(tenant: Tenant, pool: MountedPool, act: str = WRITE) -> tuple[int, int]:
    """Grow a file until it is refused: by how much it grew, and with which error."""
    tenant.do(f"fd = os.open('{pool.path}/{tenant.directory.name}', os.O_RDWR | os.O_CREAT, 0o666)")
    tenant.do("size = before = os.fstat(fd).st_size")
    try:
        tenant.do(f"while True: {act}")
    except AgentError as error:
        grown = tenant.do("result = size - before")
        assert isinstance(grown, int)
        return grown, error.errno or 0
    raise AssertionError("it is never refused")


@pytest.fixture(params=[WRITE, GROW], ids=["write", "fallocate"])
def act(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_control_without_caps_one_takes_it_all(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    with capped(run_dir, unique_name, tenants) as pool:
        assert fill(tenants.make("hog"), pool) == (SIZE, ENOSPC)
        assert fill(tenants.make("late"), pool) == (0, ENOSPC)


def test_a_cap_bounds_each_tenant(run_dir: Path, unique_name: str, tenants: Tenants, act: str) -> None:
    with capped(run_dir, unique_name, tenants, "--tenant-cap", "75%") as pool:
        grown, error = fill(tenants.make("hog"), pool, act)
        assert error == EDQUOT
        assert SIZE * 3 // 4 - NEAR < grown <= SIZE * 3 // 4
        grown, error = fill(tenants.make("late"), pool, act)
        assert error == ENOSPC
        assert grown >= SIZE // 4
        assert pool.status().refused >= 1


def test_what_others_use_too_counts_by_its_parts(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    with capped(run_dir, unique_name, tenants, "--tenant-cap", "48M") as pool:
        hog, reader = tenants.make("hog"), tenants.make("reader")
        assert fill(hog, pool) == (48 * MIB, EDQUOT)
        reader.do(f"f = open('{pool.path}/hog', 'rb')\nwhile f.read({MIB}): pass")
        grown, error = fill(hog, pool)
        assert error == EDQUOT
        assert 24 * MIB - NEAR < grown <= 24 * MIB


def test_a_remainder_is_for_those_who_have_little(run_dir: Path, unique_name: str, tenants: Tenants, act: str) -> None:
    with capped(run_dir, unique_name, tenants, "--remainder", "25%") as pool:
        hogs = [tenants.make("hog"), tenants.make("other")]
        first, error = fill(hogs[0], pool, act)
        assert error == EDQUOT
        assert SIZE * 3 // 4 - NEAR < first <= SIZE * 3 // 4 + NEAR
        second, error = fill(hogs[1], pool, act)
        assert error in (EDQUOT, ENOSPC)
        assert second <= SIZE // 4, "it had little, and may have the remainder"
        os.truncate(pool.path / "other", 0)
        assert fill(hogs[0], pool, act)[0] <= NEAR
        late, error = fill(tenants.make("late"), pool, act)
        assert error in (EDQUOT, ENOSPC)
        assert late >= SIZE // 4 - NEAR


def test_two_hogs_leave_the_remainder(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    with capped(run_dir, unique_name, tenants, "--remainder", "16M") as pool:
        hogs = [tenants.make("hog"), tenants.make("other")]
        for hog in hogs:
            hog.do(f"fd = os.open('{pool.path}/{hog.directory.name}', os.O_RDWR | os.O_CREAT, 0o666); size = 0")
            hog.do(f"for _ in range({40 * MIB // MIB}): {WRITE}")
        for hog in hogs:
            fill(hog, pool)
        assert pool.check_conservation().resident_bytes <= SIZE - 16 * MIB + NEAR
        late, error = fill(tenants.make("late"), pool)
        assert error in (EDQUOT, ENOSPC)
        assert late >= 16 * MIB - NEAR


def test_what_becomes_free_is_for_all_again(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    with capped(run_dir, unique_name, tenants, "--remainder", "25%") as pool:
        hog = tenants.make("hog")
        fill(hog, pool)
        (pool.path / "hog").unlink()
        hog.do("os.close(fd)")
        wait_until(lambda: fill(hog, pool)[0] > SIZE // 2 or (pool.path / "hog").unlink(), "it may write again", 20)


def test_a_remount_changes_caps_and_a_killed_daemon_keeps_them(
    run_dir: Path, unique_name: str, tenants: Tenants
) -> None:
    with capped(run_dir, unique_name, tenants) as pool:
        hog = tenants.make("hog")
        hog.do(f"fd = os.open('{pool.path}/hog', os.O_RDWR | os.O_CREAT, 0o666); size = os.write(fd, b'x' * {MIB})")
        sharedfs("mount", str(pool.path), "-o", "remount,tenant_cap=32m")
        daemon = pool.status().daemon_pid
        wait_until(lambda: refused_at(hog, pool, 40 * MIB), "the cap is in force")
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: pool.status().daemon_pid != daemon, "another daemon", 20)
        wait_until(lambda: refused_at(hog, pool, 40 * MIB), "and keeps it")
        sharedfs("mount", str(pool.path), "-o", "remount,tenant_cap=100%")
        wait_until(lambda: not refused_at(hog, pool, 40 * MIB), "and it is taken back")


def refused_at(tenant: Tenant, pool: MountedPool, size: int) -> bool:
    """Whether a file of this size is refused; it is gone afterwards."""
    try:
        tenant.do(f"probe = os.open('{pool.path}/probe', os.O_RDWR | os.O_CREAT); os.posix_fallocate(probe, 0, {size})")
    except AgentError as error:
        if error.errno != EDQUOT:
            raise
        return True
    finally:
        tenant.do(f"os.close(probe); os.unlink('{pool.path}/probe')")
    return False


# -- by order of the operator ------------------------------------------------------------------------------------------


def test_a_cap_of_the_operator_bounds_a_tenant_and_what_is_below_it(
    run_dir: Path, unique_name: str, tenants: Tenants
) -> None:
    job = tenants.make("job")
    steps = [tenants.make("job/one"), tenants.make("job/two")]
    with capped(run_dir, unique_name, tenants) as pool:
        with running_controller():
            told = sharedctl("cap", job.path, "25%", "--pool", unique_name)
            assert told["caps"] == [{"tenant": job.path, "pool": unique_name, "cap": "25%"}]
            for step in steps:  # from its second settlement on it is bounded
                step.do(f"first = os.open('{pool.path}/first', os.O_RDWR | os.O_CREAT, 0o666); os.write(first, b'x')")
            sharedctl("bills")
            assert fill(steps[0], pool) == (31 * MIB, EDQUOT)
            sharedctl("bills")
            assert fill(steps[1], pool) == (0, EDQUOT), "what the other one has counts, too"
            others, error = fill(tenants.make("other"), pool)
            assert error == ENOSPC
            assert others > SIZE * 3 // 4 - NEAR
        with running_controller():
            assert len(sharedctl("cap")["caps"]) == 1, "it outlives the controller"
            assert job.path in run_sharedctl("cap").stdout
            os.truncate(pool.path / "other", 0)
            assert fill(steps[0], pool) == (0, EDQUOT)
            assert sharedctl("cap", job.path, "clear", "--pool", unique_name)["caps"] == []
            wait_until(lambda: fill(steps[0], pool)[0] > SIZE // 2, "it is taken back")


def test_a_cap_that_makes_no_sense_is_refused(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    with running_controller():
        for order in (
            (tenant.path, "150%"),
            (tenant.path, "much"),
            (tenant.path,),
            (f"{tenant.path}/none", "1G"),
            (tenant.path, "1G", "--pool", "no-such-pool"),
        ):
            done = run_sharedctl("cap", *order)
            assert done.returncode == 2, done
            assert done.stderr.count("\n") == 1, done.stderr
        assert sharedctl("cap")["caps"] == []


@pytest.mark.parametrize("option", ["--tenant-cap=101%", "--remainder=ten", "--tenant-cap=-1"])
def test_what_is_no_part_is_refused(run_dir: Path, unique_name: str, option: str) -> None:
    (run_dir / "mnt").mkdir()
    done = sharedfs("mount", str(run_dir / "mnt"), "--name", unique_name, "--check", option, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
