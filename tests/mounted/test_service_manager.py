"""A keeper whose descriptors a service manager keeps (sd_notify(3), sd_listen_fds(3)): it may be killed, too.

The manager is a socket of the test's own; tests/guest has the real one.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sharedfs.linux.mountinfo import mount_at
from sharedfs.pool import registry
from tests.support.mount import MountedPool, sharedfs, unmount, unmount_whatever_happened
from tests.support.service_manager import Manager
from tests.support.tenants import Tenants, wait_until

PAGE = 4096


@pytest.fixture
def manager(run_dir: Path, unique_name: str) -> Iterator[Manager]:
    place = run_dir / "mnt"
    place.mkdir()
    made = Manager(MountedPool(place, unique_name), "--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    with ExitStack() as resources:
        resources.callback(unmount_whatever_happened, place)
        resources.callback(made.stop)
        resources.callback(lambda: sharedfs("umount", str(place), check=False))
        made.start()
        yield made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_keeper_is_followed_by_another_and_nobody_notices(
    tenants: Tenants, manager: Manager, number: signal.Signals
) -> None:
    pool = manager.pool
    user = tenants.make(
        "user"
    )  # not this process: who has a file of the mount may not be the one that starts its keeper
    assert sorted(manager.kept) == ["device", "feed", "lock", "state", "store"]
    user.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.write(fd, b'x' * {PAGE})")
    user.do(f"mapping = mmap.mmap(fd, {PAGE})")
    before = pool.status()
    os.kill(manager.process_id, number)
    assert manager.wait() == (0 if number == signal.SIGTERM else -number)
    user.do("mapping[0] = ord('y')")
    record = registry.record_at(str(pool.path))
    assert record is not None
    assert registry.is_served(record), "it is to go on"
    manager.start()
    assert user.do("result = os.pread(fd, 2, 0).decode()") == "yx"
    after = pool.status()
    assert after.keeper_pid != before.keeper_pid
    assert after.resident_bytes == before.resident_bytes == PAGE
    user.do("os.close(fd); mapping.close()")
    unmount(str(pool.path))
    assert manager.wait() == 0
    assert mount_at(str(pool.path)) is None


def test_a_mount_that_is_detached_ends_with_its_keeper(tenants: Tenants, manager: Manager) -> None:
    """So a service that stops while its pool is in use leaves nothing behind."""
    tenants.make("user").do(f"fd = os.open('{manager.pool.path}', os.O_RDONLY)")
    subprocess.run(["umount", "-l", manager.pool.path], check=True)
    os.kill(manager.process_id, signal.SIGTERM)
    assert manager.wait() == 0
    wait_until(lambda: registry.record_at(str(manager.pool.path)) is None, "nothing is left")
