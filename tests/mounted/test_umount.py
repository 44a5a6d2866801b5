"""`sharedfs umount` of a pool that is used where the host does not see it: refused with names, lazy, or forced."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from errno import ECONNABORTED, ENOTCONN
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import mount_at, mounts
from sharedfs.mount.mount_users import other_mountpoints
from sharedfs.pool import registry
from tests.support.deaths import assert_nothing_left
from tests.support.mount import MountedPool, bound, mounted_pool, sharedfs, unmount
from tests.support.tenants import AgentError, Tenant, Tenants, wait_until

PATIENCE = 30.0
SHARED = "sharedfs-test-shared"

# CLONE_NEWNS; MS_REC | MS_PRIVATE
LEAVE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x4000 | 1 << 18, None) == 0
for line in open("/proc/self/mounts").read().splitlines():  # pools of other tests, which it would be a user of
    _, place, kind, *_ = line.split()
    if kind == "fuse.sharedfs" and place != {place!r}:
        libc.umount2(place.encode(), 2)
"""


@pytest.fixture
def nothing_left(run_dir: Path, unique_name: str) -> Callable[[], None]:
    def check() -> None:
        left = [mount for mount in mounts() if mount.mountpoint.startswith(str(run_dir))]
        assert [mount.mountpoint for mount in left if mount.source != SHARED] == []
        assert not find_memory_hierarchy().directory(f"{unique_name}-pools").exists()
        assert list(paths.pools_directory().iterdir()) == []

    return check


@pytest.fixture
def user(pool: MountedPool, tenants: Tenants) -> Iterator[Tenant]:
    """A tenant that has the pool in a mount namespace of its own, with nothing of it open, as a container has."""
    tenant = tenants.make("user")
    tenant.do(LEAVE.format(place=str(pool.path)) + f"with open('{pool.path}/f', 'wb') as file: file.write(b'kept')")
    yield tenant
    tenant.end_processes()


def content(pool: MountedPool, user: Tenant) -> object:
    return user.do(f"with open('{pool.path}/f', 'rb') as file: result = file.read().decode()")


def test_a_pool_that_a_container_has_stays_and_its_users_are_named(
    pool: MountedPool, user: Tenant, nothing_left: Callable[[], None]
) -> None:
    done = sharedfs("umount", str(pool.path), check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert user.path in done.stderr
    assert "--lazy" in done.stderr
    assert mount_at(str(pool.path)) is not None
    assert pool.path.joinpath("f").read_bytes() == b"kept"
    assert content(pool, user) == "kept"
    user.end_processes()
    unmount(str(pool.path))
    nothing_left()


def test_a_lazy_umount_lets_users_go_on_over_the_daemons_death(
    pool: MountedPool, user: Tenant, nothing_left: Callable[[], None]
) -> None:
    done = sharedfs("umount", "--lazy", str(pool.path))
    assert user.path in done.stdout
    assert mount_at(str(pool.path)) is None
    before = pool.status()
    assert content(pool, user) == "kept"
    os.kill(before.daemon_pid, signal.SIGKILL)
    assert content(pool, user) == "kept"
    wait_until(lambda: (now := pool.status_or_none()) and now.restarts == before.restarts + 1, "another", PATIENCE)
    user.do(f"with open('{pool.path}/f', 'ab') as file: file.write(b' still')")
    assert content(pool, user) == "kept still"
    refused = sharedfs("umount", str(pool.path), check=False)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    record = registry.record_at(str(pool.path))
    assert record is not None
    user.end_processes()
    assert registry.wait_for_end(record, PATIENCE)
    nothing_left()


@pytest.mark.parametrize("lazy_before", [False, True])
def test_force_ends_the_pool_and_says_for_whom(
    pool: MountedPool, user: Tenant, nothing_left: Callable[[], None], lazy_before: bool
) -> None:
    if lazy_before:
        sharedfs("umount", "--lazy", str(pool.path))
    done = sharedfs("umount", "--force", str(pool.path))
    assert user.path in done.stdout
    assert "ENOTCONN" in done.stdout
    nothing_left()
    with pytest.raises(AgentError) as failed:
        content(pool, user)
    assert failed.value.errno in (ENOTCONN, ECONNABORTED)  # what the kernel says of one that is just being cut


def test_the_pool_that_is_mounted_is_meant_not_one_that_was(
    run_dir: Path, unique_name: str, pool: MountedPool, user: Tenant
) -> None:
    """`--force` ended the one that went on for its users, and left the other one mounted."""
    assert sharedfs("umount", "--lazy", str(pool.path)).returncode == 0
    newer = f"{unique_name}-newer"  # of names, the later one
    with mounted_pool(pool.path, newer, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools") as other:
        sharedfs("mount", str(pool.path), "-o", "remount,size=32M")
        assert other.status().size_bytes == 32 << 20
        assert pool.status().size_bytes != 32 << 20
        sharedfs("reload", str(pool.path))
        assert (pool.status().reloads, other.status().reloads) == (0, 1)
        sharedfs("umount", "--force", str(pool.path))
        assert registry.read_record(newer) is None
        assert content(pool, user) == "kept"
        sharedfs("umount", "--force", str(pool.path))
        assert registry.read_record(pool.name) is None


def test_lazy_and_force_of_a_pool_that_nobody_uses_are_as_plain(
    run_dir: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    place = run_dir / "mnt"
    place.mkdir()
    for manner in ("--lazy", "--force"):
        sharedfs("mount", str(place), "--name", unique_name, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
        assert sharedfs("umount", manner, str(place)).stdout == ""
        nothing_left()
    assert sharedfs("umount", "--lazy", "--force", str(place), check=False).returncode == 2


def test_a_second_mount_of_it_here_keeps_it_and_is_named(pool: MountedPool, run_dir: Path) -> None:
    with bound(pool.path, run_dir / "bound"):
        done = sharedfs("umount", str(pool.path), check=False)
        assert done.returncode == 2
        assert f"its mount at {run_dir / 'bound'}" in done.stderr
        assert mount_at(str(pool.path)) is not None


@pytest.fixture
def shared(run_dir: Path) -> Iterator[Path]:
    """A mount that shares what is mounted on it with its copies, as systemd makes all of them."""
    place = run_dir / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", SHARED, str(place)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_copy_that_goes_along_keeps_nobody_waiting(
    shared: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    """Below a directory that is bound to itself the pool stands twice, one mount on the other's place."""
    subprocess.run(["mount", "--bind", str(shared), str(shared)], check=True)
    try:
        place = shared / "mnt"
        place.mkdir()
        sharedfs("mount", str(place), "--name", unique_name, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
        assert len([mount for mount in mounts() if mount.mountpoint == str(place)]) == 2
        sharedfs("umount", str(place))
        nothing_left()
    finally:
        subprocess.run(["umount", str(shared)], check=True)


def test_a_mount_of_which_this_one_is_a_copy_stays_and_is_named(shared: Path, run_dir: Path, unique_name: str) -> None:
    """Mounts come from a master to its slaves, and so do unmounts: never the other way."""
    place, copy = shared / "mnt", run_dir / "copy"
    place.mkdir()
    with bound(shared, copy):
        subprocess.run(["mount", "--make-slave", str(copy)], check=True)
        with mounted_pool(place, unique_name, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools"):
            seen = mount_at(str(copy / "mnt"))
            here = mount_at(str(place))
            assert seen is not None
            assert here is not None
            assert other_mountpoints(here.device, here) == []
            assert other_mountpoints(seen.device, seen) == [str(place)]


def test_a_mount_that_goes_along_keeps_nobody_waiting(
    shared: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    """A service of systemd's with PrivateTmp= sees the host's mounts as a slave: they go when the host's do."""
    place = shared / "mnt"
    place.mkdir()
    sharedfs("mount", str(place), "--name", unique_name, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
    service = subprocess.Popen(
        ["unshare", "-m", "--propagation", "slave", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert service.stdin is not None
    assert service.stdout is not None
    service.stdin.write(b"x")
    service.stdin.flush()
    assert service.stdout.read(1) == b"x"  # it has its namespace
    assert any(mount.mountpoint == str(place) for mount in mounts(service.pid))
    sharedfs("umount", str(place))
    assert not any(mount.mountpoint == str(place) for mount in mounts(service.pid))
    service.stdin.close()
    service.wait(10)
    service.stdout.close()
    nothing_left()


def test_another_mount_on_a_shared_mount_stays_and_is_named(shared: Path, unique_name: str) -> None:
    """systemd makes the root shared: an unmount goes to the same place of the copies, and to no other place."""
    place, other = shared / "mnt", shared / "other"
    place.mkdir()
    options = ("--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(place, unique_name, *options), bound(place, other):
        done = sharedfs("umount", str(place), check=False)
        assert done.returncode == 2
        assert f"its mount at {other}" in done.stderr


def test_force_without_a_record_changes_nothing(pool: MountedPool) -> None:
    """It took the mount away and said to do what was just done; the processes went on."""
    record = paths.pool_record(pool.name)
    kept = record.read_bytes()
    record.write_text("{")
    try:
        done = sharedfs("umount", "--force", str(pool.path), check=False)
        assert done.returncode == 1
        assert "no record that can be read" in done.stderr
        assert mount_at(str(pool.path)) is not None
    finally:
        record.write_bytes(kept)


def test_a_damaged_record_is_told_and_the_pool_can_be_ended(
    run_dir: Path, unique_name: str, mount_options: list[str]
) -> None:
    """`status` said that there are no pools, and `reload` that none is mounted there."""
    place = run_dir / "mnt"
    with mounted_pool(place, unique_name, *mount_options) as pool:
        (pool.path / "f").write_bytes(b"x")
        record = paths.pool_record(pool.name)
        record.write_text("{")
        shown = sharedfs("status")
        told = f"sharedfs: {record} is damaged"
        assert shown.stderr.startswith(told)
        assert shown.stderr.count("\n") == 1
        for command in (["reload", str(place)], ["mount", str(place), "-o", "remount,ro"]):
            done = sharedfs(*command, check=False)
            assert done.returncode == 2
            assert f"; {record} is damaged" in done.stderr
            assert done.stderr.count("\n") == 1
        assert (pool.path / "f").read_bytes() == b"x"
    # Without a record `umount` cannot wait for the keeper.
    wait_until(lambda: not paths.pool_directory(unique_name).exists(), "the keeper has cleaned up", 20)
    assert_nothing_left(place, unique_name)
    assert sharedfs("status").stderr == ""
