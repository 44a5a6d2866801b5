"""mount(8) with -o remount: what changes, what cannot, and that nothing changes by half."""

import os
from errno import EROFS
from pathlib import Path

import pytest

from sharedfs.api.types import PoolStatus
from sharedfs.mount import mount_helper
from tests.support.mount import MountedPool, sharedfs
from tests.support.mount_command import Run, flags, mounted_at, refused, run
from tests.support.posix import fails, opened, tmpfs
from tests.support.tenants import wait_until

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("helper")


def test_remount_flags(mount: Run, remount: Run, mountpoint: Path) -> None:
    mount()
    (mountpoint / "f").write_bytes(b"x")
    remount("ro")
    assert flags(mountpoint) == {"ro", "nosuid", "nodev", "relatime"}
    with fails(EROFS):
        (mountpoint / "f").write_bytes(b"y")
    remount("rw,noexec,noatime,sync")
    assert flags(mountpoint) == {"rw", "nosuid", "nodev", "noexec", "noatime", "sync"}
    remount("exec,async,suid")
    assert flags(mountpoint) == {"rw", "nodev", "noatime"}
    remount("nosuid")
    assert flags(mountpoint) == {"rw", "nosuid", "nodev", "noatime"}
    assert (mountpoint / "f").read_bytes() == b"x"


def test_remount_read_only_with_a_writer(mount: Run, remount: Run, mountpoint: Path) -> None:
    mount("size=64m")
    with opened(mountpoint / "f", os.O_RDWR | os.O_CREAT) as fd:
        done = remount("ro,size=32m", ok=False)
        refused(done, mount_helper.EXIT_MOUNT_FAILURE, "open for writing", f"pid {os.getpid()}")
        assert os.write(fd, b"x") == 1
    assert os.statvfs(mountpoint).f_blocks * os.statvfs(mountpoint).f_frsize == 64 * MIB, "nothing has changed"


def test_remount_size(mount: Run, remount: Run, mountpoint: Path, unique_name: str) -> None:
    mount("size=16m,idle=300")
    pool = MountedPool(mountpoint, unique_name)

    def status() -> PoolStatus:
        return pool.status()

    with fails(28):
        (mountpoint / "f").write_bytes(bytes(20 * MIB))
    remount("size=32m")
    (mountpoint / "f").write_bytes(bytes(20 * MIB))
    assert status().size_bytes == 32 * MIB
    refused(
        remount("ro,size=8m", ok=False), mount_helper.EXIT_MOUNT_FAILURE, "size=8.00M is less than the 20.0M in use"
    )
    assert status().size_bytes == 32 * MIB
    assert "rw" in flags(mountpoint), "the flags are as they were"
    refused(remount("size=900t", ok=False), mount_helper.EXIT_MOUNT_FAILURE, "at most this host's memory")
    (mountpoint / "f").unlink()
    wait_until(lambda: pool.resident_by_statfs() == 0, "the file is forgotten")
    remount("size=8m,idle=20.5")
    assert os.statvfs(mountpoint).f_blocks * os.statvfs(mountpoint).f_frsize == 8 * MIB
    assert "idle=20.5" in status().settings


def test_remount_names_what_cannot_change(mount: Run, remount: Run, mountpoint: Path, unique_name: str) -> None:
    mount()
    pool = MountedPool(mountpoint, unique_name)
    before = pool.status()
    for word in ("mode=700", "uid=3", "gid=3", "reserve=4k", "cgroup_parent=other", "no_passthrough"):
        done = remount(f"noexec,size=32m,{word}", ok=False)
        named = word.partition("=")[0].removeprefix("no_")
        refused(done, mount_helper.EXIT_MOUNT_FAILURE, f"{named} cannot change")
    refused(remount("noexec,blue", ok=False), mount_helper.EXIT_INVOCATION, "blue is no mount option")
    after = pool.status()
    assert (after.flags, after.settings) == (before.flags, before.settings), "nothing has changed"


def test_remount_of_what_is_no_pool(run_dir: Path) -> None:
    with tmpfs(run_dir / "tmpfs") as other:
        done = run("mount", "-t", "fuse.sharedfs", "-o", "remount,ro", "name", str(other))
        refused(done, mount_helper.EXIT_MOUNT_FAILURE, "no pool is mounted")
        done = sharedfs("mount", str(other), "-o", "remount,ro", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "rw" in mounted_at(other).options
