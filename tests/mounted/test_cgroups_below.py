"""Who may make cgroups below its own (`systemd --user`, Delegate=yes) pays for what they leave.

Each of them is a tenant without a limit of its own for as long as it lives. What it leaves is the nearest cgroup's
above it that is bounded, and what they make together is bounded by that one, however short they live. The control is
the same below a cgroup that nobody bounds: there what is left is nobody's.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from sharedfs.linux.cgroups import CgroupVersion
from tests.support.controller import bill_of, bills, run_sharedctl, running_controller, sharedctl
from tests.support.deaths import kill_daemon
from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import AgentError, Tenant, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
LIMIT = 64 * MIB
PART = 12 * MIB
PATIENCE = 30.0

Mount = Callable[..., AbstractContextManager[MountedPool]]


@pytest.fixture
def mount(run_dir: Path, unique_name: str, tenants: Tenants) -> Mount:
    @contextmanager
    def mounted(*options: str) -> Iterator[MountedPool]:
        common = ("--cgroup-parent", f"{unique_name}-pools", "--idle", "0.5")
        with mounted_pool(run_dir / "mnt", unique_name, "--size", "512M", *common, *options) as pool:
            try:
                yield pool
            finally:
                for tenant in tenants.made:
                    tenant.end_processes()

    return mounted


def above(tenants: Tenants, limit_bytes: int | None = LIMIT) -> Tenant:
    """A cgroup that hands memory down; on v2 such a one can have no processes of its own."""
    user = tenants.make("user", limit_bytes)
    if user.hierarchy.version is CgroupVersion.V2:
        (user.directory / "cgroup.subtree_control").write_text("+memory")
    return user


def write_and_go(pool: MountedPool, tenants: Tenants, number: int, size: int = PART) -> int:
    """A cgroup below writes a file of its own and is removed; how much of it there is."""
    child = tenants.make(f"user/child{number}")
    child.do(f"fd = os.open('{pool.path}/f{number}', os.O_WRONLY | os.O_CREAT, 0o666)")
    with suppress(AgentError):  # EDQUOT
        for _ in range(size // MIB):
            child.do(f"os.write(fd, b'x' * {MIB})")
    child.exit()
    return (pool.path / f"f{number}").stat().st_size


def shares(pool: MountedPool, tenant: Tenant) -> int:
    """What the pool says that a tenant pays for alone."""
    told = pool.holdings()
    numbers = [one.id for one in told.tenants if one.path == tenant.path]
    return sum(held.bytes for held in told.classes if held.payers == tuple(numbers) and numbers)


def unpaid(pool: MountedPool) -> int:
    return sum(held.bytes for held in pool.holdings().classes if not held.payers)


def test_what_they_leave_is_on_the_bill_of_who_is_above(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool, running_controller():
        user = above(tenants)
        for number in range(2):
            assert write_and_go(pool, tenants, number) == PART
        wait_until(lambda: shares(pool, user) == 2 * PART, "it has what they left", PATIENCE)
        told = bills()
        assert told["unclaimed_bytes"] == 0
        assert bill_of(user.path, told)["share_bytes"] == 2 * PART
        wait_until(lambda: user.limit() == LIMIT - 2 * PART, "it is off its limit", PATIENCE)
        assert [file["path"] for file in sharedctl("explain", user.path)["files"]] == ["f0", "f1"]
        assert run_sharedctl("audit").returncode == 0
        other = tenants.make("other")
        other.do(f"os.unlink('{pool.path}/f0')")
        wait_until(lambda: user.limit() == LIMIT - PART, "what is gone is given back", PATIENCE)


def test_they_make_no_more_than_the_one_above_can_bear(mount: Mount, tenants: Tenants) -> None:
    """As fast as they can: all of it within a settlement or two."""
    with mount() as pool, running_controller():
        user = above(tenants)
        write_and_go(pool, tenants, 0, MIB)  # the controller has seen it once
        wait_until(lambda: any(line["tenant"] == user.path for line in bills()["tenants"]), "it is known", PATIENCE)
        made = MIB + sum(write_and_go(pool, tenants, number, 20 * MIB) for number in range(1, 11))
        assert LIMIT // 2 <= made <= LIMIT, "EDQUOT, and at what the limit has room for"
        wait_until(lambda: shares(pool, user) == made, "all of it is paid", PATIENCE)


def test_also_before_the_controller_has_seen_one_of_them(mount: Mount, tenants: Tenants, tmp_path: Path) -> None:
    slow = tmp_path / "slow.toml"
    slow.write_text("interval_seconds = 20\n")
    with mount() as pool, running_controller("--config", str(slow)):
        watcher = tenants.make("watcher", LIMIT)
        watcher.do(f"os.listdir('{pool.path}')")
        bills()  # settles: allowances are in force
        user = above(tenants)
        made = sum(write_and_go(pool, tenants, number, 20 * MIB) for number in range(10))
        assert LIMIT // 2 <= made <= LIMIT
        wait_until(lambda: shares(pool, user) == made, "all of it is paid", PATIENCE)


def test_control_where_nobody_above_is_bounded_it_is_nobodys(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool, running_controller():
        above(tenants, None)
        made = sum(write_and_go(pool, tenants, number, 20 * MIB) for number in range(5))
        assert made == 100 * MIB > LIMIT
        wait_until(lambda: unpaid(pool) == made, "nobody pays", PATIENCE)
        assert bills()["unclaimed_bytes"] == made


def test_a_budget_of_the_operators_bounds_as_a_limit_does(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool, running_controller():
        user = above(tenants, None)
        assert run_sharedctl("budget", user.path, "64M").returncode == 0
        keeper = tenants.make("user/stays")
        keeper.do(f"with open('{pool.path}/k', 'w') as file: file.write('x')")
        wait_until(lambda: any(line["tenant"] == keeper.path for line in bills()["tenants"]), "it is known", PATIENCE)
        made = sum(write_and_go(pool, tenants, number, 20 * MIB) for number in range(10))
        assert LIMIT // 2 <= made <= LIMIT
        wait_until(lambda: shares(pool, user) == made, "all of it is paid", PATIENCE)


def test_who_uses_it_pays_before_the_heir_does(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        user, reader = above(tenants), tenants.make("reader")
        write_and_go(pool, tenants, 0)
        wait_until(lambda: shares(pool, user) == PART, "it has what was left", PATIENCE)
        reader.do(
            f"import mmap\nfd = os.open('{pool.path}/f0', os.O_RDONLY)\n"
            f"view = mmap.mmap(fd, {PART}, prot=mmap.PROT_READ)\n"
            f"sum(view[at] for at in range(0, {PART}, {PAGE}))"
        )
        wait_until(lambda: shares(pool, reader) == PART, "the user pays alone", PATIENCE)
        assert shares(pool, user) == 0
        reader.do("view.close(); os.close(fd)")
        wait_until(lambda: shares(pool, user) == PART, "the heir again, when nobody uses it", PATIENCE)


def test_an_heir_that_goes_has_an_heir_itself(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        user = above(tenants)
        session = tenants.make("user/session", LIMIT // 2)
        if session.hierarchy.version is CgroupVersion.V2:
            (session.directory / "cgroup.subtree_control").write_text("+memory")
        write_and_go(pool, tenants, 0)  # beside it
        child = tenants.make("user/session/child")
        child.do(f"fd = os.open('{pool.path}/g', os.O_WRONLY | os.O_CREAT, 0o666); os.write(fd, b'x' * {PART})")
        child.exit()
        wait_until(lambda: shares(pool, session) == PART, "the nearest", PATIENCE)
        assert shares(pool, user) == PART
        session.exit()
        wait_until(lambda: shares(pool, user) == 2 * PART, "the next one", PATIENCE)
        user.exit()
        wait_until(lambda: unpaid(pool) == 2 * PART, "nobody is left", PATIENCE)


def test_the_rule_for_unclaimed_files_goes_on(mount: Mount, tenants: Tenants) -> None:
    """An heir pays; whose file it was is gone all the same."""
    with mount("--unclaimed", "delete", "--grace", "0.5") as pool:
        above(tenants)
        write_and_go(pool, tenants, 0)
        watcher = tenants.make("watcher")
        wait_until(lambda: watcher.do(f"result = os.listdir('{pool.path}')") == [], "it is deleted", PATIENCE)


def test_another_daemon_knows_the_heirs(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        user = above(tenants)
        write_and_go(pool, tenants, 0)
        wait_until(lambda: shares(pool, user) == PART, "it has what was left", PATIENCE)
        kill_daemon(pool)
        wait_until(lambda: pool.status_or_none() is not None, "another daemon serves", PATIENCE)
        assert shares(pool, user) == PART


def test_names_that_they_leave_are_paid_for_as_well(mount: Mount, tenants: Tenants) -> None:
    """Beyond those that come with the size: each gone child has no even part of these to itself."""
    with mount("--size", "64M") as pool:
        user = above(tenants)
        for number in range(4):
            child = tenants.make(f"user/child{number}")
            child.do(f"for i in range(500): os.close(os.open(f'{pool.path}/{number}-{{i}}', os.O_CREAT | os.O_WRONLY))")
            child.exit()

        def paid() -> int:
            told = pool.holdings()
            numbers = {one.id for one in told.tenants if one.path == user.path}
            return sum(part.bytes for part in told.inodes if part.tenant in numbers)

        wait_until(lambda: paid() == pool.holdings().inode_bytes > 900 * 1500, "all that is billed", PATIENCE)
