"""The kernel's word on moves and ends of threads: none is missed, and nothing else counts."""

import os
import threading
from collections.abc import Iterator

import pytest

from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupVersion
from sharedfs.linux.perf_events import TaskEvents
from tests.support.tenants import Tenants


@pytest.fixture
def events() -> Iterator[TaskEvents]:
    try:
        made = TaskEvents()
    except HostFault as fault:
        pytest.skip(str(fault))
    yield made
    made.close()


def test_every_move_is_seen_at_once(events: TaskEvents, tenants: Tenants) -> None:
    """Thousands in a row: a ring of one page has gone round many times, and no event was throttled."""
    groups = [tenants.make("a"), tenants.make("b")]
    # v1 moves single threads, v2 whole processes: an agent's, so that this one stays where it is.
    name = "tasks" if groups[0].hierarchy.version is CgroupVersion.V1 else "cgroup.procs"
    pid = str(groups[0].agent().pid)
    for number in range(5000):
        seen = events.count()
        (groups[(number + 1) % 2].directory / name).write_text(pid)
        assert events.count() > seen, number


def test_the_end_of_a_thread_is_seen_when_it_is_joined(events: TaskEvents) -> None:
    for _ in range(100):
        seen = events.count()
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        # Python's join returns a little before the kernel has taken the thread's id away.
        while os.path.exists(f"/proc/self/task/{thread.native_id}"):
            pass
        assert events.count() > seen


def test_all_cpus_are_covered_until_one_comes_or_goes(events: TaskEvents) -> None:
    assert events.covers_all_cpus()
    assert len(events.heads) == os.sysconf("SC_NPROCESSORS_ONLN")
