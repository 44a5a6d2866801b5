"""A's charge must not kill B: the largest owner exits while all tenants are at 95 % of their budgets and busy (I5).

Each tenant uses private memory and a shared file all the time, allocates and frees, and counts its own heartbeats. When
the owner is gone, everybody's share rises, and together with what each has in use that is more than its budget.
Settlement must leave everybody alive and at work, and say what it could not take off. The control does what the
argument against such a design fears: it writes budget - share whatever the tenant uses.
"""

import time
from contextlib import suppress

import pytest

from controller.billing.inheritance import FRESH_SECONDS
from sharedfs.linux.cgroups import CgroupVersion
from tests.support.controller import bills, running_controller
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
FILE_BYTES = 48 * MIB
BUDGET = 64 * MIB
BUSY = BUDGET * 95 // 100
SHARE, SHARE_AFTER = FILE_BYTES // 4, FILE_BYTES // 3
HANG_SECONDS = 30
"""Nobody's progress stops for so long. It tells a hang from a busy machine and is no promise."""

WORK = f"""
import time
class Work:
    beats = longest = 0
    allocated = []
    def run(self):
        last = time.monotonic()
        while True:
            for block in self.allocated:
                for at in range(0, len(block), 4 * {PAGE}): block[at] = 1
            sum(shared[at] for at in range(0, {FILE_BYTES}, 16 * {PAGE}))
            passing = mmap.mmap(-1, {MIB}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for at in range(0, {MIB}, {PAGE}): passing[at] = 1
            passing.close()
            now = time.monotonic()
            self.beats, self.longest, last = self.beats + 1, max(self.longest, now - last), now
work = Work()
threading.Thread(target=work.run, daemon=True).start()
"""


def usage(tenant: Tenant) -> int:
    v1 = tenant.hierarchy.version is CgroupVersion.V1
    return int((tenant.directory / ("memory.usage_in_bytes" if v1 else "memory.current")).read_text())


def kills(tenant: Tenant) -> int:
    v1 = tenant.hierarchy.version is CgroupVersion.V1
    text = (tenant.directory / ("memory.oom_control" if v1 else "memory.events")).read_text()
    return int(dict(line.split() for line in text.splitlines())["oom_kill"])


def beats(tenant: Tenant) -> int:
    count = tenant.do("result = work.beats")
    assert isinstance(count, int)
    return count


def longest_pause(tenant: Tenant) -> float:
    """The longest time between two heartbeats since this was asked last."""
    seconds = tenant.do("result = work.longest; work.longest = 0")
    assert isinstance(seconds, float | int)
    return float(seconds)


def fill_up(tenant: Tenant) -> None:
    """Work, and take private memory until the tenant uses 95 % of its budget, its share included."""
    tenant.do(WORK)
    while (missing := BUSY - SHARE - usage(tenant)) > MIB // 4:
        size = missing // 2 // PAGE * PAGE + PAGE
        tenant.do(
            f"block = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
            f"for at in range(0, len(block), {PAGE}): block[at] = 1\n"
            "work.allocated.append(block)"
        )


def beat_on(workers: list[Tenant], times: int) -> None:
    """Until each of them has done so many rounds more."""
    before = {tenant.path: beats(tenant) for tenant in workers}
    wait_until(
        lambda: all(beats(tenant) >= before[tenant.path] + times for tenant in workers), "all make progress", 240
    )


@pytest.fixture
def owner(pool: MountedPool, tenants: Tenants) -> Tenant:
    owner = tenants.make("owner", 4 * BUDGET)
    owner.do(
        f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666)\n"
        f"for _ in range({FILE_BYTES // MIB}): os.write(fd, b'x' * {MIB})\n"
        f"shared = mmap.mmap(fd, {FILE_BYTES}, prot=mmap.PROT_READ)"
    )
    return owner


@pytest.fixture
def workers(pool: MountedPool, tenants: Tenants, owner: Tenant) -> list[Tenant]:
    made = [tenants.make(f"worker{number}", BUDGET) for number in range(3)]
    for tenant in made:
        tenant.forbid_swap()
        tenant.do(
            f"fd = os.open('{pool.path}/f', os.O_RDONLY)\n"
            f"shared = mmap.mmap(fd, {FILE_BYTES}, prot=mmap.PROT_READ)\n"
            f"result = sum(shared[at] for at in range(0, {FILE_BYTES}, {PAGE}))"
        )
    return made


def test_the_largest_owner_exits_and_nobody_is_killed(
    pool: MountedPool, owner: Tenant, workers: list[Tenant], capsys: pytest.CaptureFixture[str]
) -> None:
    with running_controller():
        for tenant in workers:
            wait_until(lambda tenant=tenant: tenant.limit() == BUDGET - SHARE, "the shares are settled", 120)  # type: ignore[misc]
        time.sleep(FRESH_SECONDS + 1)  # a limit yields to who needs what was taken off for touches of late
        for tenant in workers:
            fill_up(tenant)
        beat_on(workers, 8)
        before = [longest_pause(tenant) for tenant in workers]
        owner.exit()
        wait_until(lambda: sum(line["debt_bytes"] > 0 for line in bills()["tenants"]) == 3, "all are in debt", 120)
        beat_on(workers, 20)
        told = bills()
        assert [kills(tenant) for tenant in workers] == [0, 0, 0]
        after = [longest_pause(tenant) for tenant in workers]
        for tenant, line in zip(workers, told["tenants"], strict=True):
            assert line["tenant"] == tenant.path
            assert line["share_bytes"] == SHARE_AFTER
            assert line["limit_bytes"] == tenant.limit()
            assert line["debt_bytes"] == line["limit_bytes"] - (BUDGET - SHARE_AFTER) > 0, "right to the byte"
            assert line["limit_bytes"] <= BUDGET - SHARE, "it has not got more than before"
            assert line["debt_age_seconds"] is not None
        assert told["debt_bytes"] == sum(line["debt_bytes"] for line in told["tenants"])
        with capsys.disabled():
            print(f"\nlongest pause of a tenant: {max(before):.3f} s before the exit, {max(after):.3f} s after")
        assert max(after) < HANG_SECONDS
        for tenant in workers:
            tenant.do("work.allocated.clear()")
        for tenant in workers:  # there is room for it: the debt is paid
            wait_until(lambda tenant=tenant: tenant.limit() == BUDGET - SHARE_AFTER, "the debt is paid", 120)  # type: ignore[misc]
        assert [line["debt_bytes"] for line in bills()["tenants"]] == [0, 0, 0]
        assert [kills(tenant) for tenant in workers] == [0, 0, 0]


def test_control_a_naive_settlement_kills(pool: MountedPool, owner: Tenant, workers: list[Tenant]) -> None:
    """On v2 the write itself calls the OOM killer. v1 refuses it and takes no less than what is in use at the moment;
    who then allocates what it has just freed is killed."""
    for tenant in workers:
        tenant.set_limit(BUDGET - SHARE)
        fill_up(tenant)
    owner.exit()
    target = BUDGET - SHARE_AFTER
    deadline = time.monotonic() + 60
    while not any(kills(tenant) for tenant in workers):
        assert time.monotonic() < deadline, "nobody was killed: this test shows nothing"
        for tenant in workers:
            try:
                tenant.set_limit(target)
            except OSError:  # v1, EBUSY
                with suppress(OSError):
                    tenant.set_limit(usage(tenant))
