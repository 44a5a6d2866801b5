"""Tenants with names that are hard to say, and tenants that share one: the right one pays, and nobody else suffers."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.controller import bill_of, bills, run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool, mounted_pool
from tests.support.posix import in_child, own_mount_namespace
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
# As `sharedctl` shows them: what is no UTF-8 or not to be printed is %XX.
NAMES = ["%FF%FE", "gone (deleted)", "50%25", "%1B[31mred", "%E2%80%AEright-to-left", "[ünicöde]"]


def writes(path: object, size: int) -> str:
    return f"fd = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({size}), 0)"


def test_any_name_is_billed_and_shown(pool: MountedPool, tenants: Tenants) -> None:
    """A cgroup's name is bytes. One that is no text must not take the bills of all others away."""
    made = [tenants.make(name, limit_bytes=64 * MIB) for name in NAMES]
    with running_controller():
        for number, tenant in enumerate(made, 1):
            tenant.do(writes(pool.path / f"file{number}\x1b", number * MIB))
        told = bills()
        for number, tenant in enumerate(made, 1):
            bill = bill_of(tenant.path, told)
            assert (bill["share_bytes"], bill["limit_bytes"]) == (number * MIB, (64 - number) * MIB)
        for number, tenant in list(enumerate(made, 1))[:3]:
            assert sharedctl("explain", tenant.path)["share_bytes"] == number * MIB
            assert sharedctl("explain", str(tenant.directory))["share_bytes"] == number * MIB
        shown = run_sharedctl("explain", made[3].path)
        assert shown.returncode == 0
        assert "\x1b" not in shown.stdout
        assert "\x1b" not in run_sharedctl("bills").stdout
    assert [tenant.limit() for tenant in made] == [64 * MIB] * len(made)
    pool.check_conservation()


def test_names_that_end_as_those_of_removed_groups_do_are_told_apart(pool: MountedPool, tenants: Tenants) -> None:
    plain, other = tenants.make("a"), tenants.make("a (deleted)")
    plain.do(writes(pool.path / "plain", PAGE))
    other.do(writes(pool.path / "other", 2 * PAGE))
    assert (pool.used(plain), pool.used(other)) == (PAGE, 2 * PAGE)


def test_a_name_that_is_used_again_owes_nothing(pool: MountedPool, tenants: Tenants) -> None:
    """Faster than anybody looks: the new group has the old one's path, and pays for its own pages only."""
    for turn in range(10):
        tenant = tenants.make("again")
        tenant.do(writes(pool.path / f"f{turn}", (turn + 1) * PAGE))
        assert pool.used(tenant) % PAGE == 0
        if turn < 9:
            tenant.exit()
    wait_until(
        lambda: [ref.path for ref in pool.holdings().tenants].count(tenant.path) == 1, "the others' exits are noticed"
    )
    assert pool.used(tenant) == 10 * PAGE
    holdings = pool.check_conservation()
    unclaimed = sum(held.bytes for held in holdings.classes if not held.payers)
    assert unclaimed == sum(range(1, 10)) * PAGE


@contextmanager
def deep_below(directory: object) -> Iterator[int]:
    """The descriptor of a cgroup whose path is longer than the kernel tells: it is cut, or an error."""
    fds = [os.open(str(directory), os.O_RDONLY | os.O_DIRECTORY)]
    name = "x" * 250
    try:
        for _ in range(17):
            os.mkdir(name, dir_fd=fds[-1])
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        yield fds[-1]
    finally:
        while len(fds) > 1:
            os.close(fds.pop())
            os.rmdir(name, dir_fd=fds[-1])
        os.close(fds[0])


def test_a_path_that_the_kernel_does_not_tell_is_nobodys(pool: MountedPool, tenants: Tenants) -> None:
    """It used to give ENAMETOOLONG for a write that was done, and pages that the books did not have."""
    tenant = tenants.make("a")
    with deep_below(tenant.directory) as fd:
        agent = tenant.agent()
        try:
            agent.do("pass")  # it has joined its own cgroup by now
            procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=fd)
            os.write(procs, str(agent.pid).encode())
            os.close(procs)
            agent.do(writes(pool.path / "f", 3 * PAGE))
            agent.do(f"m = mmap.mmap(fd, {3 * PAGE}); m[0]")
            pool.wait_for_scan()
            assert pool.used(tenant) == 0
            holdings = pool.check_conservation()
            assert sum(held.bytes for held in holdings.classes if not held.payers) == 3 * PAGE
        finally:
            agent.end()


def test_a_hierarchy_that_is_taken_away_is_no_exit(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    """Somebody covers the cgroup filesystem that the daemon sees: who paid goes on paying; exits count later."""
    hierarchy = str(tenants.hierarchy.mount)
    a, b = tenants.make("a"), tenants.make("b")

    def without_cgroups() -> list[tuple[int, int]]:
        own_mount_namespace()
        used = []
        options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
        with mounted_pool(run_dir / "mnt", unique_name, *options) as pool:
            for tenant in (a, b):
                tenant.do(writes(pool.path / "f", 3 * PAGE))
            b.end_processes()
            subprocess.run(["mount", "-t", "tmpfs", "none", hierarchy], check=True)
            pool.wait_for_scan()
            used.append((pool.used(a), pool.used(b)))
            a.do(writes(pool.path / "f", 5 * PAGE))
            used.append((pool.used(a), pool.used(b)))
            subprocess.run(["umount", hierarchy], check=True)
            b.exit()
            wait_until(lambda: pool.used(b) == 0, "an exit is noticed again")
            used.append((pool.used(a), pool.check_conservation().resident_bytes))
            a.end_processes()
        return used

    assert in_child(without_cgroups) == [(3 * PAGE, 3 * PAGE), (5 * PAGE, 3 * PAGE), (5 * PAGE, 5 * PAGE)]
