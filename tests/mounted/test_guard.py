"""Somebody else's act cannot kill: what a tenant inherits by an exit yields to its own demand before the kernel kills.

The victim reads a stranger's file and pays half of it. The stranger's cgroup goes, the victim owes all of it, and its
limit is lowered to what it needs just then, which is little. At its next burst the guard gives the inherited half back:
with a controller at work, stopped, or killed. The control stops the guard as well, and the kernel kills.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.linux.cgroups import CgroupVersion
from tests.support.controller import bill_of, bills, running_controller, sharedctl
from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
HALF_MIB = MIB // 2
BUDGET = 128 * MIB
FILE_BYTES = 120 * MIB
HALF = FILE_BYTES // 2
BURST = 48 * MIB
"""With the interpreter it is less than budget - own half, and much more than any need that was seen, and its room."""
PATIENCE = 30.0

AT_ONCE = f"""
burst = mmap.mmap(-1, {BURST}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
burst.close()
result = 'alive'
"""
RAMP = f"""
import time
burst = mmap.mmap(-1, {BURST}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, {BURST}, {PAGE}):
    burst[at] = 1
    if at % {MIB} == 0: time.sleep(0.05)
burst.close()
result = 'alive'
"""


@pytest.fixture
def stranger(pool: MountedPool, tenants: Tenants) -> Tenant:
    stranger = tenants.make("stranger")
    stranger.do(
        f"fd = os.open('{pool.path}/bait', os.O_RDWR | os.O_CREAT, 0o666)\n"
        f"for _ in range({FILE_BYTES // MIB}): os.write(fd, b'x' * {MIB})"
    )
    return stranger


def make_victim(pool: MountedPool, tenants: Tenants, name: str = "victim") -> Tenant:
    victim = tenants.make(name, BUDGET)
    victim.forbid_swap()
    victim.do(f"fd = os.open('{pool.path}/bait', os.O_RDONLY)\nwhile os.read(fd, {MIB}): pass")
    return victim


@pytest.fixture
def victim(pool: MountedPool, tenants: Tenants, stranger: Tenant) -> Tenant:
    return make_victim(pool, tenants)


def kills(tenant: Tenant) -> int:
    v1 = tenant.hierarchy.version is CgroupVersion.V1
    text = (tenant.directory / ("memory.oom_control" if v1 else "memory.events")).read_text()
    return int(dict(line.split() for line in text.splitlines())["oom_kill"])


def inherits(victim: Tenant) -> bool:
    """It owes more than its budget, half of it by another's exit, and its limit is as low as it bears."""
    line = bill_of(victim.path, bills())
    limit = victim.limit()
    return line["inherited_bytes"] == HALF and limit is not None and limit < BUDGET - HALF - 16 * MIB


def is_kept(victim: Tenant) -> bool:
    """Whether a successor of the controller would know that the victim took its half on itself."""
    with closing(sqlite3.connect(paths.state_directory() / paths.CONTROLLER_DATABASE)) as database:
        rows = database.execute("SELECT bytes FROM own WHERE path = ?", (victim.path,)).fetchall()
    return rows == [(HALF,)]


def exit_and_settle(stranger: Tenant, *victims: Tenant) -> None:
    stranger.exit()
    for victim in victims:
        wait_until(lambda victim=victim: inherits(victim), "the victim inherits, and is settled", PATIENCE)  # type: ignore[misc]


def guard_pid() -> int:
    return int(paths.guard_lock().read_text())


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(params=["at once", "slow ramp"])
def burst(request: pytest.FixtureRequest) -> str:
    return AT_ONCE if request.param == "at once" else RAMP


def test_who_inherits_gets_what_it_needs(victim: Tenant, stranger: Tenant, burst: str) -> None:
    with running_controller():
        wait_until(lambda: victim.limit() == BUDGET - HALF, "its own half is settled", PATIENCE)
        assert bill_of(victim.path, bills())["inherited_bytes"] == 0
        exit_and_settle(stranger, victim)
        assert victim.do(burst) == "alive"
        assert kills(victim) == 0
        limit = victim.limit()
        assert limit is not None
        assert limit <= BUDGET - HALF, "what it took on itself stays off its limit"
        assert bill_of(victim.path, bills())["inherited_bytes"] == HALF
        wait_until(lambda: (limit := victim.limit()) and limit < BUDGET - HALF, "the limit comes down again", PATIENCE)
        assert victim.do(burst) == "alive"
    assert victim.limit() == BUDGET


def test_also_while_the_controller_is_stopped(victim: Tenant, stranger: Tenant, burst: str) -> None:
    with running_controller() as controller:
        exit_and_settle(stranger, victim)
        controller.send_signal(signal.SIGSTOP)
        try:
            assert victim.do(burst) == "alive"
        finally:
            controller.send_signal(signal.SIGCONT)
        assert bill_of(victim.path, bills())["budget_bytes"] == BUDGET, "what the guard wrote is no manager's word"
    assert kills(victim) == 0
    assert victim.limit() == BUDGET


def test_control_with_the_guard_stopped_too_the_kernel_kills(victim: Tenant, stranger: Tenant) -> None:
    with running_controller() as controller:
        exit_and_settle(stranger, victim)
        pids = controller.pid, guard_pid()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            if victim.hierarchy.version is CgroupVersion.V2:  # there the kernel throttles for long before it kills
                (victim.directory / "memory.high").write_text("max")
            with pytest.raises((AssertionError, BrokenPipeError)):
                victim.do(AT_ONCE + RAMP.replace("0.05", "0"))
            assert kills(victim) > 0
        finally:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)


def test_a_killed_controller_leaves_nobody_with_what_it_inherited(victim: Tenant, stranger: Tenant, burst: str) -> None:
    """The guard puts inherited parts back and ends; the next controller knows whose limits they are."""
    with running_controller() as controller:
        wait_until(lambda: is_kept(victim), "what it took on itself is on disk", PATIENCE)
        exit_and_settle(stranger, victim)
        pid = guard_pid()
        controller.kill()
        controller.wait()
        wait_until(lambda: is_gone(pid), "the guard has ended", PATIENCE)
        assert victim.limit() == BUDGET - HALF
        assert victim.do(burst) == "alive"
        with running_controller():
            line = bill_of(victim.path, bills())
            assert line["budget_bytes"] == BUDGET
            assert line["inherited_bytes"] == HALF, "known after a restart"
    assert kills(victim) == 0
    assert victim.limit() == BUDGET


def test_an_exit_while_no_controller_runs_is_inherited_too(victim: Tenant, stranger: Tenant) -> None:
    with running_controller() as controller:
        wait_until(lambda: victim.limit() == BUDGET - HALF, "its own half is settled", PATIENCE)
        wait_until(lambda: is_kept(victim), "what it took on itself is on disk", PATIENCE)
        controller.kill()
        controller.wait()
        stranger.exit()
        with running_controller():
            wait_until(lambda: inherits(victim), "the victim inherits, and is settled", PATIENCE)
            assert victim.do(RAMP) == "alive"
    assert kills(victim) == 0


def test_an_exit_before_any_controller_ran_is_inherited_too(victim: Tenant, stranger: Tenant) -> None:
    """Nobody has told the victim a price by then, and whose act it was nobody knows."""
    stranger.exit()
    with running_controller():
        wait_until(
            lambda: bill_of(victim.path, bills())["inherited_bytes"] == FILE_BYTES, "all of it is inherited", PATIENCE
        )
        assert victim.do(RAMP) == "alive"
        assert kills(victim) == 0
    assert victim.limit() == BUDGET


def test_what_an_operator_hands_over_yields(pool: MountedPool, tenants: Tenants, stranger: Tenant) -> None:
    quiet = tenants.make("quiet", BUDGET)
    with running_controller():
        stranger.exit()
        sharedctl("claim", str(pool.path / "bait"), quiet.path)
        wait_until(
            lambda: bill_of(quiet.path, bills())["inherited_bytes"] == FILE_BYTES, "the bill has what it got", PATIENCE
        )
        assert quiet.do(RAMP) == "alive"
        assert kills(quiet) == 0


def test_what_others_add_to_a_file_that_is_read_unseen_yields(
    run_dir: Path, unique_name: str, tenants: Tenants
) -> None:
    """`tail -f` of a log: with fast reads nobody sees whether its reader has read what was added."""
    options = ("--size", "256M", "--reads", "fast", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool, running_controller():
        log, added = pool.path / "log", 210
        writer, reader = tenants.make("writer"), tenants.make("reader", BUDGET)
        writer.do(f"fd = os.open('{log}', os.O_RDWR | os.O_CREAT, 0o644); os.write(fd, b'x' * {MIB})")
        reader.do(f"fd = os.open('{log}', os.O_RDONLY)")
        wait_until(lambda: bill_of(reader.path, bills())["share_bytes"] == MIB // 2, "the reader pays half", PATIENCE)
        writer.do(f"for _ in range({added}): os.write(fd, b'x' * {MIB})")
        wait_until(
            lambda: bill_of(reader.path, bills())["inherited_bytes"] == added * HALF_MIB, "it inherits", PATIENCE
        )
        assert reader.do(RAMP) == "alive"
        assert kills(reader) == 0
        for tenant in (writer, reader):
            tenant.exit()


def test_a_killed_guard_is_replaced(victim: Tenant, stranger: Tenant) -> None:
    with running_controller():
        exit_and_settle(stranger, victim)
        first = guard_pid()
        os.kill(first, signal.SIGKILL)
        wait_until(
            lambda: is_gone(first) and guard_pid() != first and not is_gone(guard_pid()), "another one", PATIENCE
        )
        sharedctl("bills")  # a settlement later it watches the same limits
        assert victim.do(RAMP) == "alive"
        assert kills(victim) == 0


def test_a_stopped_guard_is_replaced(victim: Tenant, stranger: Tenant) -> None:
    """It does not answer: it is killed, which takes what it could still have written with it."""
    with running_controller():
        exit_and_settle(stranger, victim)
        first = guard_pid()
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: is_gone(first) and guard_pid() != first, "another one", PATIENCE)
        sharedctl("bills")
        assert victim.do(RAMP) == "alive"
        assert kills(victim) == 0
        assert bill_of(victim.path, bills())["budget_bytes"] == BUDGET


def test_two_victims_at_once(pool: MountedPool, tenants: Tenants, stranger: Tenant) -> None:
    """The price is a third each, then a half each: what each inherits is the difference."""
    both = [make_victim(pool, tenants, name) for name in ("first", "second")]
    third = FILE_BYTES // 3
    with running_controller():
        wait_until(lambda: all(victim.limit() == BUDGET - third for victim in both), "all pay a third", PATIENCE)
        stranger.exit()
        wait_until(
            lambda: all(bill_of(victim.path, bills())["inherited_bytes"] == HALF - third for victim in both),
            "both inherit",
            PATIENCE,
        )
        for victim in both:  # more than budget - half leaves, and less than budget - third
            victim.do(
                "def use():\n"
                f"    private = mmap.mmap(-1, {64 * MIB}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
                f"    for at in range(0, {64 * MIB}, {PAGE}): private[at] = 1\n"
                "user = threading.Thread(target=use); user.start()"
            )
        for victim in both:
            assert victim.do("user.join(); result = 'alive'") == "alive"
            assert kills(victim) == 0


def test_a_limit_above_the_tenant_yields_too(pool: MountedPool, tenants: Tenants, stranger: Tenant) -> None:
    """The pod has the limit, its container none: what the container inherits is the pod's to give back."""
    pod = tenants.make("pod", BUDGET)
    tenants.hierarchy.enable_memory(f"{pod.path}/any")
    pod.forbid_swap()
    inside = tenants.make("pod/container")
    inside.do(f"fd = os.open('{pool.path}/bait', os.O_RDONLY)\nwhile os.read(fd, {MIB}): pass")
    with running_controller():
        wait_until(lambda: pod.limit() == BUDGET - HALF, "its half is settled", PATIENCE)
        stranger.exit()
        wait_until(lambda: (limit := pod.limit()) and limit < BUDGET - HALF - 16 * MIB, "it inherits", PATIENCE)
        (group,) = (group for group in bills()["groups"] if group["cgroup"] == pod.path)
        assert group["inherited_bytes"] == HALF
        assert inside.do(RAMP) == "alive"
        assert kills(pod) == kills(inside) == 0
    assert pod.limit() == BUDGET


@pytest.fixture
def writer(pool: MountedPool, tenants: Tenants) -> Iterator[Tenant]:
    writer = tenants.make("writer", BUDGET)
    writer.forbid_swap()
    with running_controller():
        writer.do(
            f"fd = os.open('{pool.path}/own', os.O_RDWR | os.O_CREAT, 0o666)\n"
            f"for _ in range({HALF // MIB}): os.write(fd, b'x' * {MIB})"
        )
        wait_until(lambda: writer.limit() == BUDGET - HALF, "its own share is settled", PATIENCE)
        yield writer


def test_what_a_tenant_took_on_itself_does_not_grow_its_limit(writer: Tenant) -> None:
    bound = BUDGET - HALF
    writer.do(
        f"private = mmap.mmap(-1, {BUDGET}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        f"for at in range(0, {bound - 20 * MIB}, {PAGE}): private[at] = 1"
    )
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert writer.limit() == bound
        time.sleep(0.1)
    with pytest.raises((AssertionError, BrokenPipeError)):
        writer.do(f"for at in range(0, {bound + 8 * MIB}, {PAGE}): private[at] = 1")
    assert kills(writer) > 0
