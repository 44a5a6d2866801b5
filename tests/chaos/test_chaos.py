"""The chaos job, as long as CI bears it."""

import random

from tests.chaos.job import Chaos, pool_bytes
from tests.support.mount import MountedPool
from tests.support.tenants import Tenants

SECONDS = 20.0


def test_nothing_is_lost_while_daemon_and_controller_are_killed(pool: MountedPool, tenants: Tenants) -> None:
    assert pool.status().size_bytes >= pool_bytes(workers=2, hostile=2)
    figures = Chaos(pool, tenants, random.SystemRandom().getrandbits(32), workers=2, hostile=2).run(SECONDS)
    print(figures)  # pytest shows it when it fails: the seed repeats it
    assert figures.errors == []
    assert figures.kills > 0
    assert figures.operations > 0
    assert len(figures.hostile) > 2
