"""Processes that hang in execve: who looks at one waits for as long as it likes. They stop nobody else's service."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sharedfs.linux.mountinfo import mount_at
from tests.support.hanging import hanging
from tests.support.holes import fault_holes
from tests.support.mount import MountedPool, mounted_pool, sharedfs, unmount
from tests.support.tenants import Tenants, wait_until

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        "User Mode Linux" in Path("/proc/cpuinfo").read_text(),
        reason="the kernel of the User-Mode Linux guest lets readers go on: tried with maps, stat and links",
    ),
]

PAGE = 4096
MIB = 1 << 20
PATIENCE = 30.0
COUNTS = pytest.mark.parametrize("count", [1, 3, 40])


@pytest.fixture
def pool(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("--size", "256M", "--cgroup-parent", f"{unique_name}-pools", "--unclaimed", "delete", "--grace", "1")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def reads(file: str) -> bool:
    """Whether a process that reads it returns within a second. It is killed then."""
    process = subprocess.Popen([sys.executable, "-S", "-c", f"open({file!r}, 'rb').read()"], stderr=subprocess.DEVNULL)
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        return False
    finally:
        process.kill()
        process.wait()
    return True


def test_the_control_whoever_reads_its_maps_waits(tenants: Tenants) -> None:
    with hanging(tenants.make("hostile"), 1) as (hung,):
        assert not reads(f"/proc/{hung}/maps")
        assert reads(f"/proc/{hung}/cgroup")
        assert reads(f"/proc/{hung}/mountinfo")
    assert reads("/proc/self/maps")


@COUNTS
def test_all_goes_on_for_the_others(count: int, pool: MountedPool, tenants: Tenants) -> None:
    hostile, other, gone, maker = (tenants.make(name) for name in ("hostile", "other", "gone", "maker"))
    pages = range(3, 3000, 7)
    fault_holes(gone, pool.path / "foreign", pages)
    wait_until(lambda: pool.holdings().foreign_bytes == len(pages) * PAGE, "the pages are foreign", PATIENCE)
    maker.do(f"os.close(os.open('{pool.path}/unused', os.O_RDWR | os.O_CREAT))")
    maker.do(f"fd = os.open('{pool.path}/unused', os.O_RDWR); os.pwrite(fd, bytes({MIB}), 0); os.close(fd)")
    with hanging(hostile, count) as hung:
        wait_until(lambda: set(pool.status().unseen) & set(hung), "they are shown", PATIENCE)
        wait_until(lambda: pool.status().unseen_processes >= count, "all of them are known", PATIENCE)
        status = pool.status()
        assert all(status.unseen[process] == hostile.path for process in set(status.unseen) & set(hung))
        assert f"cannot be looked at, what they map stays as it was: {min(status.unseen)}" in sharedfs("status").stdout

        other.do(f"fd = os.open('{pool.path}/new', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, {20 * PAGE})")
        other.do(f"m = mmap.mmap(fd, {20 * PAGE}); sum(m[::{PAGE}])")
        wait_until(lambda: pool.mapped(other) == 20 * PAGE, "another's mapping is billed", PATIENCE)
        other.do("m.close()")
        wait_until(lambda: pool.mapped(other) == 0, "and no longer when it is gone", PATIENCE)

        gone.exit()
        maker.exit()
        wait_until(lambda: not (pool.path / "unused").exists(), "the file that nobody uses goes", PATIENCE)
        wait_until(
            lambda: pool.holdings().foreign_bytes == 0, "what a removed cgroup was charged for is moved", PATIENCE
        )
        pool.check_conservation()

        refused = sharedfs("umount", str(pool.path), check=False)
        assert refused.returncode == 2
        assert other.path in refused.stderr
        assert hostile.path not in refused.stderr
        other.exit()
        unmount(str(pool.path))
        assert mount_at(str(pool.path)) is None
        assert not tenants.hierarchy.directory(status.pool_cgroup).exists()


def test_many_in_cgroups_of_their_own_delay_nobody_who_was_seen_before(pool: MountedPool, tenants: Tenants) -> None:
    """Each costs a quarter of a second once, and a scan waits for a second of them at most."""
    other = tenants.make("other")
    other.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, {20 * PAGE})")
    other.do(f"m = mmap.mmap(fd, {20 * PAGE})")
    pool.wait_for_scan()
    with ExitStack() as all_hang:
        hung = [all_hang.enter_context(hanging(tenants.make(f"hostile{number}"), 1))[0] for number in range(12)]
        scans = pool.status().mapping_scans
        other.do(f"sum(m[::{PAGE}])")
        wait_until(lambda: pool.mapped(other) == 20 * PAGE, "it is billed", PATIENCE)
        assert pool.status().mapping_scans <= scans + 3
        wait_until(lambda: set(pool.status().unseen) >= set(hung), "all are known", PATIENCE)


def test_what_they_mapped_stays_billed(pool: MountedPool, tenants: Tenants) -> None:
    hostile, other = tenants.make("hostile"), tenants.make("other")
    path = pool.path / "f"
    other.do(f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({20 * PAGE}), 0)")

    def is_seen() -> None:
        wait_until(lambda: pool.mapped(hostile) == 20 * PAGE, "it is seen to map the file", PATIENCE)

    with hanging(hostile, 3, path, is_seen) as hung:
        wait_until(lambda: set(pool.status().unseen) >= set(hung), "they are shown", PATIENCE)
        for _ in range(3):
            pool.wait_for_scan()
        assert pool.mapped(hostile) == 20 * PAGE
        other.do(f"os.ftruncate(fd, {4 * PAGE}); os.pwrite(fd, bytes({20 * PAGE}), 0)")
        pool.wait_for_scan()
        pool.wait_for_scan()
        assert pool.mapped(hostile) == 4 * PAGE, "pages that came later are not taken for mapped"
        pool.check_conservation()
    wait_until(lambda: pool.mapped(hostile) == 0, "it is over when they are", PATIENCE)


def test_what_they_mapped_is_not_moved(pool: MountedPool, tenants: Tenants) -> None:
    """To move a page takes it out of their page tables, and who cannot be looked at is not seen to have had it."""
    hostile, gone = tenants.make("hostile"), tenants.make("gone")
    path, pages = pool.path / "f", range(3, 3000, 7)
    fault_holes(gone, path, pages, 16 * MIB)
    wait_until(lambda: pool.holdings().foreign_bytes == len(pages) * PAGE, "the pages are foreign", PATIENCE)

    def is_seen() -> None:
        wait_until(lambda: pool.mapped(hostile) >= len(pages) * PAGE, "it is seen to map the file", PATIENCE)

    with hanging(hostile, 1, path, is_seen) as (hung,), path.open("rb"):
        wait_until(lambda: hung in pool.status().unseen, "it is shown", PATIENCE)
        gone.exit()
        refusal = f"the file is in use, and process {hung}, which maps it, cannot be looked at"
        wait_until(lambda: pool.status().recharge_refusal == refusal, "it is said why", PATIENCE)
        assert pool.mapped(hostile) >= len(pages) * PAGE
    wait_until(lambda: pool.status().stranded_bytes == 0, "it is moved when they are gone", PATIENCE)


def test_what_an_earlier_daemon_saw_of_them_stays_billed(pool: MountedPool, tenants: Tenants) -> None:
    hostile, other = tenants.make("hostile"), tenants.make("other")
    path = pool.path / "f"
    other.do(f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({20 * PAGE}), 0)")

    def is_seen() -> None:
        wait_until(lambda: pool.mapped(hostile) == 20 * PAGE, "it is seen to map the file", PATIENCE)

    with hanging(hostile, 1, path, is_seen):
        wait_until(lambda: pool.status().unseen, "it is shown", PATIENCE)
        restart(pool)
        for _ in range(3):
            pool.wait_for_scan()
        assert pool.mapped(hostile) == 20 * PAGE


def restart(pool: MountedPool) -> None:
    before = pool.status()
    with suppress(ProcessLookupError):
        os.kill(before.daemon_pid, signal.SIGKILL)

    def is_served() -> bool:
        status = pool.status_or_none()
        return status is not None and status.daemon_pid != before.daemon_pid

    wait_until(is_served, "another daemon serves", PATIENCE)


def looker_that_hangs(daemon: int) -> int | None:
    """The child of a daemon that looks at others, while it waits for a lock (D) and not for a question (S)."""
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal():
                status = Path(f"/proc/{name}/status").read_text(errors="replace")
                waits = f"\nPPid:\t{daemon}\n" in status and "\nState:\tD" in status
                if waits and b"sharedfs.linux.looker" in Path(f"/proc/{name}/cmdline").read_bytes():
                    return int(name)
    return None


def test_a_daemon_that_is_killed_while_its_child_hangs_leaves_nothing(pool: MountedPool, tenants: Tenants) -> None:
    hostile = tenants.make("hostile")
    with hanging(hostile, 3):
        daemon = pool.status().daemon_pid
        child = wait_until(lambda: looker_that_hangs(daemon), "the child hangs", PATIENCE)
        os.kill(daemon, signal.SIGSTOP)  # else it would kill the child in a moment
        is_left = looker_that_hangs(daemon) == child
        os.kill(daemon, signal.SIGKILL)

        def is_served() -> bool:
            status = pool.status_or_none()
            return status is not None and status.daemon_pid != daemon

        wait_until(is_served, "another daemon serves", PATIENCE)
        assert is_left, "the control: it hung on when the daemon was stopped"
        wait_until(lambda: not Path(f"/proc/{child}").exists(), "the child is gone", PATIENCE)
        cgroup = pool.status().pool_cgroup
        unmount(str(pool.path))
        assert not tenants.hierarchy.directory(cgroup).exists()


@COUNTS
def test_zombies_says_what_it_could_not_look_at(count: int, tenants: Tenants, plain_tmpfs: Path) -> None:
    hostile, gone = tenants.make("hostile"), tenants.make("gone")
    gone.do(f"fd = os.open('{plain_tmpfs}/f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({MIB}), 0); os.close(fd)")
    gone.exit()
    command = [sys.executable, "-m", "controller.cli.main", "zombies"]
    with hanging(hostile, count):
        told = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=120)
        found = json.loads(told.stdout)
        assert found["unseen_processes"] >= count
        assert f"{plain_tmpfs}/f" in {holder["path"] for holder in found["holders"]}
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        assert "not looked at: " in shown
