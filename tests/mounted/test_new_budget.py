"""A manager that writes cgroup files itself: each of its writes is a new budget, found by the sweep."""

import statistics
import time

import pytest

from tests.support.controller import running_controller
from tests.support.mount import MountedPool
from tests.support.tenants import Tenants, wait_until

MIB = 1 << 20
SHARE = 8 * MIB


def test_each_write_of_a_manager_is_a_new_budget(
    pool: MountedPool, tenants: Tenants, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant = tenants.make("tenant", 64 * MIB)
    took = []
    with running_controller():
        tenant.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'x' * {SHARE}, 0)")
        wait_until(lambda: tenant.limit() == 64 * MIB - SHARE, "the share is settled", 20)
        for budget in (80 * MIB, 40 * MIB, 41 * MIB, 100 * MIB, 36 * MIB, 64 * MIB):
            begun = time.monotonic()
            tenant.set_limit(budget)
            wait_until(lambda budget=budget: tenant.limit() == budget - SHARE, "the new budget is settled", 20)  # type: ignore[misc]
            took.append(time.monotonic() - begun)
        with capsys.disabled():
            print(f"\na new budget is settled after {statistics.median(took):.2f} s, at most {max(took):.2f} s")
    assert tenant.limit() == 64 * MIB
